"""Watching a gunicorn on a private socket: does the application become ready, and does it stay so?"""

import contextlib
import http.client
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bareforge_runtime import gunicorn_process, markers, release
from bareforge_runtime.candidate import BODY_SHOWN, CheckError
from bareforge_runtime.gunicorn_process import GunicornProcess
from bareforge_runtime.redact import Redactor
from bareforge_runtime.waiting import UnixConnection, alive

# The release header that is asked for, and the worker class that gives it.
HEADER = "X-Release"
WORKER_CLASS = "bareforge_runtime.worker.Worker"

# Seconds: between two questions while it starts and afterwards, for one answer, and between two looks at what else
# may have happened; then until gunicorn has noticed that a worker ended, and logged how.
BOOT_INTERVAL = 0.1
INTERVAL = 0.5
PATIENCE = 5.0
LOOK_INTERVAL = 0.1
END_PATIENCE = 1.5

# How many of gunicorn's last lines are shown with a refusal.
SHOWN = 30

_CURE = "see its last lines above, fix it and deploy again"


@dataclass(frozen=True)
class Answer:
    """An answer over the private socket; release and pid: of the release header, empty and 0 without one."""

    status: int
    body: bytes
    release: str
    pid: int


def parse_release(header: str) -> tuple[str, int]:
    """Return release id and pid of a release header's value, "ID; host=HOST; pid=PID"."""
    name, *parameters = (part.strip() for part in header.split(";"))
    pid = dict(parameter.partition("=")[::2] for parameter in parameters).get("pid", "")
    return name, int(pid) if pid.isdigit() else 0


@dataclass(frozen=True)
class Expectation:
    """What is expected: 200 on `GET path` with Host `host`, before `deadline` (monotonic clock) for the first time.

    timeout: seconds that the deadline was made from. soak: seconds for which it then has to stay so.
    """

    path: str
    host: str
    deadline: float
    timeout: float
    soak: float


class Watch:
    """A gunicorn that was started, and what is known of it.

    socket and markers: where it listens and where its workers announce themselves. signals: those that have arrived.
    """

    def __init__(
        self,
        expectation: Expectation,
        gunicorn: GunicornProcess,
        socket: Path,
        markers: Path,
        signals: list[int],
        redact: Redactor,
    ) -> None:
        self._expectation = expectation
        self._gunicorn = gunicorn
        self._socket = socket
        self._markers = markers
        self._signals = signals
        self._redact = redact
        self._asked = f"GET {expectation.path}"
        # why it is not ready yet; the worker that was ready, and when
        self._last = "nobody listens"
        self._worker = 0
        self._ready_at = 0.0

    def watch(self) -> None:
        """Return when the application became ready and stayed so.

        Raises CheckError, after it has shown gunicorn's last lines on standard error, which the caller has made to
        pass through a redactor.
        """
        while not self._is_ready():
            self._pause(BOOT_INTERVAL)
        self._ready_at = time.monotonic()
        end = self._ready_at + self._expectation.soak
        while (left := end - time.monotonic()) > 0:
            self._pause(min(INTERVAL, left))
            self._expect_ready()

    def _is_ready(self) -> bool:
        """Whether it answers with 200 and its worker says so as well."""
        try:
            answer = self._ask()
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(error, FileNotFoundError | ConnectionRefusedError):
                self._last = f"{self._asked} gave {_named(error)}"
            return False
        if answer.status != 200:
            self._last = f"{self._asked} answered {answer.status}"
            return False
        self._refuse_other_release(answer)
        self._last = "its worker wrote no marker"
        for marker in markers.read(self._markers, self._gunicorn.pid):
            if marker.pid == answer.pid and marker.ready:
                self._worker = marker.pid
            elif marker.answer:
                self._last = marker.answer
        return self._worker != 0

    def _expect_ready(self) -> None:
        since = self._since()
        try:
            answer = self._ask()
        except (OSError, http.client.HTTPException) as error:
            # it may just be ending
            self._pause(END_PATIENCE)
            self._refuse(f"the application became ready and {since} later {self._asked} gave {_named(error)}")
        self._look_at_worker()
        if answer.pid not in (0, self._worker):
            self._refuse_end(self._how_the_worker_ended(), since)
        if answer.status != 200:
            self._refuse(
                f"the application became ready and answered {self._asked} with {answer.status} after {since}",
                "its answer above names what is missing" if answer.body else _CURE,
                answer.body,
            )
        self._refuse_other_release(answer)

    def _ask(self) -> Answer:
        """Return one answer, looking at what else happens while it is waited for. Raises CheckError, OSError."""
        with contextlib.closing(UnixConnection(self._socket, self._expectation.host, PATIENCE)) as connection:
            connection.request("GET", self._expectation.path)
            patience = time.monotonic() + PATIENCE
            while not select.select([connection.sock], [], [], LOOK_INTERVAL)[0]:
                self._last = "connected, but no answer"
                self._look()
                if self._worker and time.monotonic() >= patience:
                    raise TimeoutError
            response = connection.getresponse()
            name, pid = parse_release(response.getheader(HEADER) or "")
            return Answer(response.status, response.read() if response.status != 200 else b"", name, pid)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._look()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_INTERVAL))
            self._look()

    def _look(self) -> None:
        """Raise CheckError if there is nothing left to wait for."""
        if self._signals:
            self._refuse(f"the check was stopped by {signal.Signals(self._signals[0]).name}", "run it again")
        if self._worker:
            self._look_at_worker()
            return
        ended = self._gunicorn.ended()
        lines = self._gunicorn.lines()
        if ended or gunicorn_process.worker_end(lines):
            cause, cure = gunicorn_process.why_it_ended(lines)
            self._refuse(f"gunicorn did not start on a private socket: {cause}", cure or _CURE)
        if time.monotonic() >= self._expectation.deadline:
            self._refuse(
                f"the application did not become ready on a private socket within {self._expectation.timeout:g} s "
                f"({self._last})"
            )

    def _look_at_worker(self) -> None:
        since = self._since()
        if self._gunicorn.ended():
            self._refuse_end(gunicorn_process.why_it_ended(self._gunicorn.lines())[0], since)
        if not alive(self._worker):
            self._refuse_end(self._how_the_worker_ended(), since)

    def _how_the_worker_ended(self) -> str:
        patience = time.monotonic() + END_PATIENCE
        while not (how := gunicorn_process.worker_end(self._gunicorn.lines(), self._worker)):
            if time.monotonic() >= patience:
                # gunicorn logs no exit code 0
                return "worker ended"
            time.sleep(LOOK_INTERVAL)
        return how

    def _since(self) -> str:
        return f"{time.monotonic() - self._ready_at:.0f} s"

    def _refuse_end(self, how: str, since: str) -> NoReturn:
        self._refuse(f"the application became ready and ended {since} later: {how}")

    def _refuse_other_release(self, answer: Answer) -> None:
        own = release.current().id
        if not answer.release:
            self._refuse(
                f"no release id came with the answer on the private socket (header {HEADER})",
                f'set worker_class = "{WORKER_CLASS}" in the gunicorn configuration',
            )
        if answer.release != own:
            self._refuse(
                f"release {answer.release} answered instead of {own} on the private socket",
                "the gunicorn configuration leads to another release, correct it and deploy again",
            )

    def _refuse(self, cause: str, cure: str = _CURE, body: bytes = b"") -> NoReturn:
        shown = "".join(f"{line}\n" for line in self._gunicorn.lines()[-SHOWN:])
        if body:
            # without its secrets before it is cut: a part of one would not be known for what it is
            shown += f"{self._asked} answered:\n{self._redact(body.decode('utf-8', 'replace'))[:BODY_SHOWN]}\n"
        sys.stderr.write(shown)
        raise CheckError(f"{cause}; {cure}")


def _named(error: BaseException) -> str:
    """Return what came in place of an answer."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:g} s"
    return f"no answer ({type(error).__name__})"
