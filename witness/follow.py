"""While the load runs: the command, signals, the stop file, the events file, lines on the way."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from witness.load import Witness
from witness.options import Options

POLL_SECONDS = 0.05
PROGRESS_SECONDS = 5.0
# the load goes on for this long after the command has ended
AFTER_SECONDS = 2.0
# of the events file, read in one poll
MAXIMUM_LINES = 65536
MAXIMUM_NAME = 200


class Tail:
    """The lines that are appended to a file from now on; the file may come later, or be begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = self._size()
        self._rest = b""

    def lines(self) -> list[str]:
        """Return the lines completed since the last call, empty ones left out."""
        size = self._size()
        if size < self._offset:
            self._offset, self._rest = 0, b""
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(MAXIMUM_LINES)
        self._offset += len(data)
        *complete, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAXIMUM_NAME]
        names = (raw.decode("utf-8", "replace").strip()[:MAXIMUM_NAME] for raw in complete)
        return [name for name in names if name]

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


class Command:
    """The command that runs meanwhile, as a child with this process's input and output."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.name = Path(arguments[0]).name
        self.code: int | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.code is None

    @property
    def waiting(self) -> bool:
        """Whether it was not started yet."""
        return self._process is None and self.code is None

    def start(self) -> None:
        """Start it; one that cannot be started counts as ended with 126, as in a shell."""
        try:
            self._process = subprocess.Popen(self._arguments)
        except OSError as error:
            print(f"witness: {self.name} cannot be started: {error.strerror}; correct it", file=sys.stderr)
            self.code = 126

    def look(self) -> bool:
        """Return whether it has ended since the last call; `code` is 128 + N after signal N."""
        if not self.running or self._process is None or (code := self._process.poll()) is None:
            return False
        self.code = code if code >= 0 else 128 - code
        return True

    def terminate(self) -> None:
        """Pass a SIGTERM on."""
        if self.running and self._process is not None:
            self._process.terminate()


class Follower:
    """Follows a witness until load and command have ended."""

    def __init__(self, witness: Witness, options: Options) -> None:
        self._witness = witness
        self._options = options
        self._tail = Tail(options.events) if options.events else None
        self._command = Command(options.command) if options.command else None
        self._signals: list[int] = []
        self._end: float | None = None
        self._told = False
        self._next_progress = PROGRESS_SECONDS

    def follow(self) -> int:
        """Return the exit code of the command once all has ended; 0 without one, 128 + N if signal N came before it.

        The load is bounded by the plan; the command is not: it is never cut off.
        """
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._witness.running or (self._command is not None and self._command.running):
                time.sleep(POLL_SECONDS)
                self._look()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._command is None:
            return 0
        if self._command.code is None:
            print(f"witness: ended before {self._command.name} was started", file=sys.stderr)
            return 128 + self._signals[0] if self._signals else 1
        return self._command.code

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        # a terminal sends SIGINT to the command as well; SIGTERM comes to this process alone
        if number == signal.SIGTERM and self._command is not None:
            self._command.terminate()

    def _look(self) -> None:
        witness = self._witness
        for name in self._tail.lines() if self._tail else ():
            witness.mark(name)
        if self._command is not None:
            self._look_at_command(self._command)
        stop = self._options.stop
        if self._signals or (stop and stop.exists()) or (self._end is not None and witness.seconds >= self._end):
            witness.stop()
        if witness.running and witness.seconds >= self._next_progress:
            self._next_progress += PROGRESS_SECONDS
            print(witness.progress(), file=sys.stderr, flush=True)

    def _look_at_command(self, command: Command) -> None:
        witness = self._witness
        if command.waiting and witness.running and not self._signals and witness.seconds >= self._options.plan.steady:
            witness.mark(f"{command.name} begins")
            command.start()
        if command.running and not witness.running and not self._told:
            self._told = True
            print(f"witness: no more requests are sent, {command.name} goes on", file=sys.stderr, flush=True)
        if command.look() or (command.code is not None and self._end is None):
            witness.mark(f"{command.name} ends")
            self._end = witness.seconds + AFTER_SECONDS
