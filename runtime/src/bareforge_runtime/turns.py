"""Workers import their application in turn, so that those which serve keep half of the processor.

An import keeps a core busy for a second and more. At a hand-over or a reload all new workers would do it at once beside
the old ones, which have all the requests. Measured with two cores and two hosts on them, two workers each: the p99 of
requests during a hand-over was 4 times the steady one, in turn it is less than twice (benchmarks, section release).
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Seconds between two tries for a turn, and until a worker goes on without one: imports that take longer are not to make
# a start as long as all of them in a row.
INTERVAL = 0.05
PATIENCE = 10.0


def places(cores: int) -> int:
    """How many workers may import at the same time on so many cores: half of them, at least one."""
    return max(1, cores // 2)


@contextlib.contextmanager
def turn(directory: Path, beat: Callable[[], None], patience: float = PATIENCE) -> Iterator[bool]:
    """Wait for a turn and hold it for the block; yields whether there was one. That of a process that dies is free.

    directory: of the files that stand for the places; made where it is missing. beat: called while waiting, since
    gunicorn's watchdog runs. patience: seconds after which the block is entered without a turn; it is entered at once
    where the directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptors = [
                stack.enter_context((directory / f"turn.{number}").open("w")).fileno()
                for number in range(places(len(os.sched_getaffinity(0))))
            ]
        except OSError:
            descriptors = []
        deadline = time.monotonic() + patience
        while (held := _take(descriptors)) is None and descriptors and time.monotonic() < deadline:
            beat()
            time.sleep(INTERVAL)
        try:
            yield held is not None
        finally:
            if held is not None:
                # not left to the end of the file: a process that the import has started has it too
                fcntl.flock(held, fcntl.LOCK_UN)


def _take(descriptors: list[int]) -> int | None:
    for descriptor in descriptors:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    return None
