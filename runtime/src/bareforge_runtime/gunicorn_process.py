"""gunicorn as a child process: started by this interpreter, its words kept in memory, ended for certain."""

import collections
import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# How many of its last pieces of output are kept, and how long one may be, in characters.
KEPT = 200
LONGEST = 10_000

# Seconds that it has between TERM and KILL.
PATIENCE = 5.0

# What systemd tells the process it starts. gunicorn would take the sockets, and report to systemd in its name.
_FROM_SYSTEMD = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")

# "[time] [pid] [LEVEL] " of gunicorn's log
_PREFIX = re.compile(r"^\[[^\]]*\] \[\d+\] \[[A-Z]+\] ")
_WORKER_END = re.compile(r"Worker \(pid:(\d+)\) (?:exited with code (\d+)|was sent (SIG[A-Z0-9]+))")
# What gunicorn and uvicorn say around every end, whatever the cause.
_AROUND = re.compile(
    r"^(Worker exiting|Worker \(pid:|Shutting down|Reason:|Booting worker|Using worker|Listening at|Starting gunicorn|"
    r"Error while closing socket|the master of this worker has ended|"
    r"Handling signal|Started server|Finished server|Waiting for application|Application (startup|shutdown))"
)


def environment(inherited: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a gunicorn that stands on its own: without systemd's sockets, with `own`."""
    return {name: value for name, value in inherited.items() if name not in _FROM_SYSTEMD} | dict(own)


def worker_end(lines: Sequence[str], pid: int | None = None) -> str:
    """Return how the log says that a worker ended, "worker ended with exit code 1", or an empty text.

    pid: of the worker; None is for any.
    """
    for found in filter(None, map(_WORKER_END.search, reversed(lines))):
        if pid in (None, int(found[1])):
            return f"worker ended with exit code {found[2]}" if found[2] else f"worker was ended by {found[3]}"
    return ""


def why_it_ended(lines: Sequence[str]) -> tuple[str, str]:
    """Return what the log says about an end, (cause, cure); the cure is empty unless the runtime itself has said it."""
    said = [_PREFIX.sub("", line).strip() for line in lines]
    own = [line for line in said if line.startswith("bareforge-runtime: ")]
    if own:
        cause, _, cure = own[-1].removeprefix("bareforge-runtime: ").partition("; ")
        return cause, cure
    boots = [number for number, line in enumerate(said) if line.startswith("Booting worker")]
    since_boot = [line for line in said[boots[-1] if boots else 0 :] if line and not _AROUND.match(line)]
    return (since_boot or [worker_end(lines) or "it gave no reason"])[-1], ""


class GunicornProcess:
    """A gunicorn that was started with these arguments and environment, in "/" and in a session of its own."""

    def __init__(self, executable: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._said: collections.deque[str] = collections.deque(maxlen=KEPT)
        # By path, as the service does, so that the script is proven as well and no directory gets into sys.path.
        script = executable.parent / "gunicorn"
        self._process = subprocess.Popen(
            [str(executable), str(script), *arguments],
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The master's process number."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether the master has ended; its last words are in `lines` then."""
        if self._process.poll() is None:
            return False
        self._reader.join(1)
        return True

    def lines(self) -> list[str]:
        """Return the last lines of its output; they may contain secrets."""
        return "".join(self._said.copy()).splitlines()

    def end(self) -> None:
        """End it and everything it has started."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        # Workers do not notice that their master was killed, nor does it end what the application has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._reader.join(1)

    def _read(self, output: IO[str]) -> None:
        with output:
            for piece in iter(lambda: output.readline(LONGEST), ""):
                self._said.append(piece)
