"""Being asked to stop, for a program of one thread that mostly waits."""

import signal

SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Stop:
    """Takes SIGTERM and SIGINT when the program waits, and only then: no call is interrupted halfway.

    The signals are blocked, so make it before anything else and start no child processes after it.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._asked = False

    def wait(self, seconds: float) -> bool:
        """Wait until asked to stop, for `seconds` at most; returns whether it was asked, now or before."""
        if not self._asked:
            self._asked = signal.sigtimedwait(SIGNALS, seconds) is not None
        return self._asked

    def asked(self) -> bool:
        """Whether it was asked to stop."""
        return self.wait(0)
