"""The candidate on a private socket: gunicorn itself, with its worker class and hooks, watched for a while.

The check in one process (bareforge_runtime.candidate) names a cause best; this one finds what only shows when the
release really runs: a hook of gunicorn, a worker that ends a moment after it was ready, another release than meant.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bareforge_runtime import headers, markers, release
from bareforge_runtime.waiting import UnixConnection

HEADER = "X-Release"
INTERVAL = 0.5  # seconds between two questions
SHOWN = 20  # last lines of gunicorn's log that are shown with a refusal
PATIENCE = 5.0  # seconds for one answer, and for gunicorn to end

LOOK = "see its last lines above, fix it and deploy again"


class TrialError(Exception):
    """The candidate was refused. The text is one line, `cause; cure`; log: what gunicorn said, maybe with secrets."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Trial:
    """What is tried: app and chdir as for gunicorn; ready_path and host of the question; timeout until it is ready and
    soak for how long it then has to stay so, in seconds. environment: that of the service, without secrets.
    """

    app: str
    gunicorn_config: Path
    ready_path: str
    host: str
    timeout: float
    soak: float
    environment: dict[str, str]
    chdir: Path | None = None


def carry_out(trial: Trial) -> None:
    """Return when the candidate became ready and stayed so. Raises TrialError."""
    with tempfile.TemporaryDirectory(prefix="bareforge-") as scratch, _gunicorn(trial, Path(scratch)) as process:
        started = _Started(trial, Path(scratch), process)
        worker = started.await_ready()
        ready = time.monotonic()
        while time.monotonic() - ready < trial.soak:
            time.sleep(INTERVAL)
            started.still(worker, time.monotonic() - ready)


@contextlib.contextmanager
def _gunicorn(trial: Trial, scratch: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(Path(sys.prefix) / "bin/gunicorn"), "--config", str(trial.gunicorn_config)]
    command += [
        "--bind",
        f"unix:{scratch}/app.sock",
        "--workers",
        "1",
        "--pid",
        f"{scratch}/pid",
        "--no-control-socket",
    ]
    command += ["--chdir", str(trial.chdir)] if trial.chdir else []
    own = {
        markers.DIRECTORY_VARIABLE: f"{scratch}/workers",
        headers.VARIABLE: HEADER,
        "BAREFORGE_READY_PATH": trial.ready_path,
        "BAREFORGE_READY_HOST": trial.host,
        # nobody else is connected
        "BAREFORGE_DRAIN_SECONDS": "0",
    }
    systemd = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
    environment = {name: value for name, value in trial.environment.items() if name not in systemd}
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, trial.app],
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(1)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        # the master and whatever worker it has left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


class _Started:
    """A gunicorn that was started, and what is known of it."""

    def __init__(self, trial: Trial, scratch: Path, process: subprocess.Popen[bytes]) -> None:
        self._trial = trial
        self._scratch = scratch
        self._process = process

    def await_ready(self) -> int:
        """Return the worker that is ready. Raises TrialError."""
        deadline = time.monotonic() + self._trial.timeout
        while True:
            answer = self._ask()
            worker = self._worker()
            if answer == "" and worker:
                return worker
            if self._process.poll() is not None:
                raise self._refusal(f"gunicorn did not start on a private socket: {self._last_error()}; {LOOK}")
            if answer.startswith("release "):
                raise self._refusal(f"{answer} on the private socket; deploy again")
            if time.monotonic() >= deadline:
                raise self._refusal(
                    f"the application did not become ready on a private socket within {self._trial.timeout:g} s "
                    f"({answer or 'its worker did not'}); {LOOK}"
                )
            time.sleep(INTERVAL / 2)

    def still(self, worker: int, seconds: float) -> None:
        """Return if the same worker is still ready. Raises TrialError."""
        ended = (
            self._process.poll() is not None
            or self._worker() not in (worker, 0)
            or not Path(f"/proc/{worker}").exists()
        )
        answer = "" if ended else self._ask()
        # it may have ended while it was asked
        if ended or not Path(f"/proc/{worker}").exists():
            raise self._refusal(
                f"the application became ready and ended {seconds:.0f} s later: {self._last_error()}; {LOOK}"
            )
        if answer:
            raise self._refusal(f"the application became ready and after {seconds:.0f} s {answer}; {LOOK}")

    def _ask(self) -> str:
        """What is wrong with the answer over the private socket, empty if nothing is."""
        path, question = self._scratch / "app.sock", f"GET {self._trial.ready_path}"
        try:
            with contextlib.closing(UnixConnection(path, self._trial.host, PATIENCE)) as connection:
                connection.request("GET", self._trial.ready_path)
                response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            return f"{question} got no answer ({type(error).__name__})"
        if response.status != 200:
            return f"{question} answered {response.status}"
        answered = (response.getheader(HEADER) or "").partition(";")[0]
        if answered != release.current().id:
            return f"release {answered or 'unknown'} answered instead of {release.current().id}"
        return ""

    def _worker(self) -> int:
        """The worker that says it is ready, 0 if none does."""
        for file in (self._scratch / "workers").glob(f"{self._process.pid}.*.json"):
            with contextlib.suppress(OSError, ValueError):
                said = json.loads(file.read_text())
                if said["ready"]:
                    return int(said["pid"])
        return 0

    def _log(self) -> str:
        return (self._scratch / "log").read_text(errors="replace")

    def _last_error(self) -> str:
        """The line of gunicorn's log that says most about an end."""
        lines = [line for line in self._log().splitlines() if line.strip() and not line.startswith('{"method"')]
        own = [line for line in lines if "bareforge-runtime: " in line]
        ends = [line for line in lines if "exited with code" in line or "was sent SIG" in line]
        chosen = (own or ends or lines or ["it said nothing"])[-1]
        return chosen.rpartition("] ")[2].removeprefix("bareforge-runtime: ").strip().rstrip(".")

    def _refusal(self, message: str) -> TrialError:
        return TrialError(message, "\n".join(self._log().splitlines()[-SHOWN:]))
