"""Runs one command and tells what it cost, with all that it has started, also what would outlive it.

    python -m benchmarks.speed.measured RESULT COMMAND [ARGUMENT...]

Writes JSON to the file RESULT: status, wall (seconds until the command ended) and cpu (seconds, of all its processes).
A program of its own, so that what it collects is the command's and nobody else's.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

SET_CHILD_SUBREAPER = 36
"""Of prctl(2), from linux/prctl.h."""
PATIENCE = 10.0
"""Seconds until what outlives the command, and does not end when told to, is killed."""


def children() -> list[int]:
    """The processes whose parent is this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def end_orphans() -> None:
    """End what the command has left, such as the masters of shared SSH connections, and collect it."""
    deadline = time.monotonic() + PATIENCE
    while left := children():
        for pid in left:
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.05)
        while left and os.waitpid(-1, os.WNOHANG)[0]:
            left = children()


def main(arguments: list[str]) -> int:
    """Run the command; returns its status."""
    result, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    began = time.monotonic()
    status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    wall = time.monotonic() - began
    end_orphans()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(result).write_text(json.dumps({"status": status, "wall": wall, "cpu": used.ru_utime + used.ru_stime}))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
