"""Letting others serve first: a worker that stops goes on accepting while nobody else would.

HUP starts new workers and stops the old ones at the same moment; and several workers may reach max_requests together.
Both would leave nobody to accept until new workers have booted. Needs the markers of bareforge_runtime.markers.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from bareforge_runtime import markers

# Seconds between two looks.
INTERVAL = 0.25


async def await_successors(directory: Path, master: int, limit: float) -> None:
    """Return when no younger worker of `master` is still on its way to ready, at most after `limit` seconds.

    directory: of the markers.
    """
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and os.getppid() == master and _on_their_way(directory, master):
        await asyncio.sleep(INTERVAL)


async def await_turn(directory: Path, master: int, others: int, limit: float, told_to_stop: Callable[[], bool]) -> None:
    """Return when the `others` workers of `master` are ready and none is being replaced, or when told to stop.

    At most after `limit` seconds. directory: of the markers. The turn ends with the process: the kernel takes back the
    lock that stands for it.
    """
    deadline = time.monotonic() + limit
    turn = -1
    with contextlib.suppress(OSError):
        turn = os.open(directory / f"{master}.turn", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    while time.monotonic() < deadline and not told_to_stop():
        if _has(turn) and _ready_beside_me(directory, master) >= others:
            return
        await asyncio.sleep(INTERVAL)


def _has(turn: int) -> bool:
    """Whether it is this worker's turn; without a file to lock everybody's turn is now."""
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _ready_beside_me(directory: Path, master: int) -> int:
    said = markers.read(directory, master)
    return sum(marker.ready and marker.pid != os.getpid() and _started(marker.pid) > 0 for marker in said)


def _on_their_way(directory: Path, master: int) -> bool:
    try:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    except OSError:
        return False
    mine = _started(os.getpid())
    ready = {marker.pid for marker in markers.read(directory, master) if marker.ready}
    younger = [pid for pid in map(int, children) if _started(pid) > mine]
    return any(pid not in ready and not _is_next_master(pid, master) for pid in younger)


def _is_next_master(pid: int, master: int) -> bool:
    """A second master, started by USR2, is a child of the first, which says so in its environment."""
    with contextlib.suppress(OSError):
        return f"GUNICORN_PID={master}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
