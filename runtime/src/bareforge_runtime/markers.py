"""What each worker says of itself: a file that appears when it is ready, for whoever has to prove a generation.

gunicorn's own signs are of no use for that: systemd's READY comes before any worker exists, and the application may
start and yet not be ready. So a worker asks itself, in its own process, and writes the answer.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bareforge_runtime.asking import get
from bareforge_runtime.logs import Application

DIRECTORY_VARIABLE = "BAREFORGE_MARKERS"
INTERVAL = 0.25  # seconds between two questions
PATIENCE = 5.0  # seconds for one answer

log = logging.getLogger("gunicorn.error")


class Marker:
    """The file of this worker, MASTER.WORKER.json, and what it is made from: the application's own readiness.

    others: how many workers the master has beside this one.
    """

    def __init__(self, directory: Path, application: Application, release: str, others: int) -> None:
        self._others = others
        self._turn = -1
        self._directory = directory
        self._application = application
        self._master = os.getppid()
        self._file = directory / f"{self._master}.{os.getpid()}.json"
        self._fields = {
            "pid": os.getpid(),
            "master": self._master,
            "release": release,
            "activation": os.environ.get("BAREFORGE_ACTIVATION", ""),
        }

    async def watch(self, state: dict[str, Any]) -> None:
        """Ask until the application is ready; the file says at each moment what the last answer was.

        state: of the lifespan. A directory that cannot be written is logged once: the worker serves all the same.
        """
        said = None
        while said != "":
            answer = await self._ask(state)
            if answer != said:
                try:
                    self._write(answer)
                except OSError as error:
                    log.warning("bareforge-runtime: cannot write %s: %s", error.filename, error.strerror)
                    return
                said = answer
            if answer:
                await asyncio.sleep(INTERVAL)

    async def _ask(self, state: dict[str, Any]) -> str:
        """What is wrong with the ready path's answer, empty if nothing is."""
        path = os.environ.get("BAREFORGE_READY_PATH") or "/ready"
        host = os.environ.get("BAREFORGE_READY_HOST") or "localhost"
        try:
            status, _ = await asyncio.wait_for(get(self._application, path, host, state), PATIENCE)
        except TimeoutError:
            return f"GET {path} gave no answer within {PATIENCE:g} s"
        except Exception as error:
            # without its text, which may quote a secret
            return f"GET {path} raised {type(error).__name__}"
        return "" if status == 200 else f"GET {path} answered {status}"

    def _write(self, answer: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({**self._fields, "ready": not answer, "answer": answer}))
        partial.chmod(0o644)
        partial.rename(self._file)

    def remove(self) -> None:
        """Say no more: the worker ends."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    async def await_successors(self, limit: float) -> None:
        """Return when no younger worker of the same master is still on its way to ready, at most after limit seconds.

        HUP starts new workers and stops the old ones at the same moment; until the new ones can serve, somebody has to.
        """
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and os.getppid() == self._master and self._successors_on_their_way():
            await asyncio.sleep(INTERVAL)

    async def await_turn(self, limit: float, told_to_stop: Callable[[], bool]) -> None:
        """Return when every other worker of the same master is ready and none is being replaced, after limit seconds,
        or when told to stop.

        max_requests may be reached by all workers at nearly the same moment; then nobody would accept until one of
        their replacements has booted. The turn ends with the process.
        """
        deadline = time.monotonic() + limit
        with contextlib.suppress(OSError):
            # kept open: the kernel gives it back when this process is gone
            self._turn = os.open(
                self._directory / f"{self._master}.turn", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644
            )
        while time.monotonic() < deadline and not told_to_stop():
            if self._has_turn() and self._others_ready():
                return
            await asyncio.sleep(INTERVAL)

    def _has_turn(self) -> bool:
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _others_ready(self) -> bool:
        files = self._directory.glob(f"{self._master}.*.json")
        pids = {int(file.name.split(".")[1]) for file in files} - {os.getpid()}
        return sum(_started(pid) > 0 and self._is_ready(pid) for pid in pids) >= self._others

    def _successors_on_their_way(self) -> bool:
        try:
            siblings = Path(f"/proc/{self._master}/task/{self._master}/children").read_text().split()
        except OSError:
            return False
        mine = _started(os.getpid())
        younger = [pid for pid in map(int, siblings) if _started(pid) > mine]
        return any(not self._is_ready(pid) and not self._is_next_master(pid) for pid in younger)

    def _is_next_master(self, pid: int) -> bool:
        """A second master, started by USR2, is a child of the first, which says so in its environment."""
        with contextlib.suppress(OSError):
            return f"GUNICORN_PID={self._master}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def _is_ready(self, pid: int) -> bool:
        with contextlib.suppress(OSError, ValueError):
            ready: bool = json.loads((self._directory / f"{self._master}.{pid}.json").read_text())["ready"]
            return ready
        return False


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
