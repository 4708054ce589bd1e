"""The trial: the candidate under the real gunicorn, on a private socket, watched for a while.

The check in one process (bareforge_runtime.candidate) names a cause best and comes first. This one finds what only
shows when the release really runs: a hook of gunicorn, a worker that ends a moment after it was ready, another release
than meant.
"""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bareforge_runtime import drain, gunicorn_process, headers, markers, watching
from bareforge_runtime.candidate import Candidate, CheckError
from bareforge_runtime.gunicorn_process import GunicornProcess
from bareforge_runtime.redact import Redactor


@dataclass(frozen=True)
class Trial:
    """What is tried, for how long, and where.

    candidate: with absolute paths; its timeout counts from `started` (monotonic clock), so that it is for the check
    before as well. soak: seconds for which it then has to stay ready. socket: a free path; None is for one in a
    temporary directory. environment: that of the service, without secrets.
    """

    candidate: Candidate
    soak: float
    environment: Mapping[str, str]
    started: float
    socket: Path | None = None


def arguments(
    trial: Trial, directory: Path, socket: Path, own: Mapping[str, str], raw_env: Mapping[str, str]
) -> list[str]:
    """Return gunicorn's arguments: the service's configuration, and what must not be shared with the service.

    directory: private, for its other files. own: the environment that the trial gives; raw_env: what the configuration
    sets, which would win over it.
    """
    candidate = trial.candidate
    words = (
        ["--config", str(candidate.gunicorn_config)]
        if candidate.gunicorn_config
        else ["--worker-class", watching.WORKER_CLASS]
    )
    words += ["--bind", f"unix:{socket}", "--workers", "1", "--max-requests", "0"]
    words += ["--pid", str(directory / "gunicorn.pid"), "--no-control-socket"]
    words += ["--error-logfile", "-", "--log-level", "info", "--access-logfile", "/dev/null"]
    words += ["--chdir", str(candidate.chdir)] if candidate.chdir else []
    if own.keys() & raw_env.keys():
        # The option replaces the whole setting, and arguments can be seen by others: only where it must be.
        words += [word for name, value in {**raw_env, **own}.items() for word in ("--env", f"{name}={value}")]
    return [*words, candidate.app]


def prove(trial: Trial, raw_env: Mapping[str, str], redact: Redactor) -> str:
    """Return one line that says what was found good.

    Raises CheckError, after it has shown gunicorn's last lines on standard error, without secrets. gunicorn has ended
    and the socket is gone when this returns or raises, also when SIGTERM or SIGINT arrives meanwhile. Beyond the
    timeout and the soak only an answer (5 s) and gunicorn's end (5 s) are waited for.
    """
    with _heard() as signals, _private_directory() as directory:
        socket = trial.socket or directory / "app.sock"
        if socket.exists():
            raise CheckError(f"the private socket {socket} exists already; name a path that is free with --socket")
        candidate = trial.candidate
        expectation = watching.Expectation(
            path=candidate.ready_path,
            host=candidate.host,
            deadline=trial.started + candidate.timeout,
            timeout=candidate.timeout,
            soak=trial.soak,
        )
        own = {
            markers.DIRECTORY_VARIABLE: str(directory / "workers"),
            markers.PATH_VARIABLE: candidate.ready_path,
            markers.HOST_VARIABLE: candidate.host,
            headers.VARIABLE: watching.HEADER,
            # nobody but the trial has a connection to it
            drain.VARIABLE: "0",
        }
        gunicorn = GunicornProcess(
            Path(sys.executable),
            arguments(trial, directory, socket, own, raw_env),
            gunicorn_process.environment(trial.environment, own),
        )
        try:
            watching.Watch(expectation, gunicorn, socket, directory / "workers", signals, redact).watch()
        finally:
            gunicorn.end()
            socket.unlink(missing_ok=True)
    return f"{candidate.app} became ready on a private socket and stayed so for {trial.soak:g} s"


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="bareforge-")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise CheckError(
            f"cannot make a temporary directory for the trial: {reason}; is there a /tmp that this user can write?"
        ) from None
    with directory as name:
        yield Path(name)


@contextlib.contextmanager
def _heard() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of ending: what was started has to be ended first."""
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
