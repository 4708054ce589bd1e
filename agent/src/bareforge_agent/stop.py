"""Being asked to stop, or to renew what can be, for a program of one thread that mostly waits."""

import signal

STOP = {signal.SIGTERM, signal.SIGINT}
RENEW = {signal.SIGHUP}


class Stop:
    """Takes its signals when the program waits, and only then: no call is interrupted halfway.

    The signals are blocked, so make it before anything else and start no child processes after it.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP | RENEW)
        self._asked = False
        self._renewal = False

    def wait(self, seconds: float) -> bool:
        """Wait until asked for something, for `seconds` at most; returns whether it was to stop, now or before."""
        if not self._asked:
            received = signal.sigtimedwait(STOP | RENEW, seconds)
            if received is not None:
                self._renewal = self._renewal or received.si_signo in RENEW
                self._asked = received.si_signo in STOP
        return self._asked

    def asked(self) -> bool:
        """Whether it was asked to stop."""
        return self.wait(0)

    def take_renewal(self) -> bool:
        """Whether it was asked to renew since the last time that this was called."""
        taken, self._renewal = self._renewal, False
        return taken
