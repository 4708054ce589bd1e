"""Where a process waits: the stacks of its threads and of its asyncio tasks."""

import asyncio
import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any


def where_it_waits() -> str:
    """Return the stack of every other thread and of every asyncio task, innermost frame last."""
    stacks = []
    for thread in threading.enumerate():
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None and thread is not threading.current_thread():
            stacks.append(f"thread {thread.name}:\n{''.join(traceback.format_stack(frame))}")
    for task in [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]:
        frames = [(frame, frame.f_lineno) for frame in _suspended_frames(task.get_coro())]
        summary = traceback.StackSummary.extract(iter(frames))
        stacks.append(f"task {task.get_name()}:\n{''.join(summary.format())}")
    return "\n".join(stacks)


def _suspended_frames(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine and of what it awaits, outermost first."""
    for _ in range(sys.getrecursionlimit()):
        for frame_name, next_name in (("cr_frame", "cr_await"), ("ag_frame", "ag_await")):
            if hasattr(awaited, frame_name):
                frame, following = getattr(awaited, frame_name), getattr(awaited, next_name)
                if frame is not None:
                    yield frame
                break
        else:
            if isinstance(awaited, asyncio.Future):
                return
            # What stands between a coroutine and an async generator (asend) shows its generator to gc only.
            inner = (it for it in gc.get_referents(awaited) if hasattr(it, "ag_frame") or hasattr(it, "cr_frame"))
            following = next(inner, None)
        if following is None:
            return
        awaited = following
