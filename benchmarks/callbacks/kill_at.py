"""Ends ansible-playbook with SIGKILL at one task boundary, as a dying controller would; counts boundaries otherwise.

BAREFORGE_KILL_AT: at which task start to die: its number from 1, or its name ("NAME #2" for the second); unset: never.
BAREFORGE_KILL_AFTER: seconds to wait first, so that the task is under way on the hosts.
BAREFORGE_TASKS: file that gets one line "NUMBER begun TASK" for each task start, and one "NUMBER touched TASK" for each
host that the task may have changed: it says so, or it is one of the project's own, which keep records that they do not
count as a change.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kill_at
type: notification
short_description: Die at a task boundary
description: For tests of what a dead controller leaves behind.
"""


OWN = ("bareforge", "vault_")


class CallbackModule(CallbackBase):
    """Counts the starts of tasks and ends the run at one of them."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kill_at"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._seen: Counter[str] = Counter()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        """Count one boundary, and die there if it is the one."""
        self._count += 1
        self._write("begun", task)
        self._seen[task.get_name()] += 1
        names = {str(self._count), f"{task.get_name()} #{self._seen[task.get_name()]}"}
        if self._seen[task.get_name()] == 1:
            names.add(task.get_name())
        if os.environ.get("BAREFORGE_KILL_AT") in names:
            delay = float(os.environ.get("BAREFORGE_KILL_AFTER") or 0)
            if delay:
                threading.Timer(delay, self._die).start()
            else:
                self._die()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note that a task has touched a host."""
        if result.is_changed() or result.task.action.rpartition(".")[2].startswith(OWN):
            self._write("touched", result.task)

    def _write(self, word: str, task: Any) -> None:
        if file := os.environ.get("BAREFORGE_TASKS"):
            with Path(file).open("a") as handle:
                handle.write(f"{self._count} {word} {task.get_name()}\n")

    @staticmethod
    def _die() -> None:
        # workers of Ansible have sessions of their own and live on: benchmarks/killing.py ends them
        os.killpg(os.getpgrp(), signal.SIGKILL)
