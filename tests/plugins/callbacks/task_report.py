"""Callback of the tests: write every task's result, by task name, to the file TASK_REPORT names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_report
type: aggregate
short_description: Results as one JSON object, task name to result
description: [For tests only.]
"""


FAILED = "the failed task"


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[str, Any] = {}

    def _keep(self, result: Any) -> None:
        self._results[result.task.name] = json.loads(self._dump_results(result.result))

    def v2_runner_on_ok(self, result: Any) -> None:
        self._keep(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._keep(result)
        self._results[FAILED] = self._results[result.task.name]

    def v2_playbook_on_stats(self, stats: Any) -> None:
        Path(os.environ["TASK_REPORT"]).write_text(json.dumps(self._results))
