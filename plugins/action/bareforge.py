"""Controller half of bareforge: says who acts, waits for the lock, takes over that of a run which is dead."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

INTERVAL = 5  # seconds between two questions for a lock that is waited for


def process_start(pid: int) -> str:
    """When a process of this machine was started, in clock ticks since the boot; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # what its parent has not collected has ended all the same
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def machine() -> str:
    """This machine, or the container on it, since its last boot: a process number means nothing beyond any of them."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def identity(pid: int) -> dict[str, Any]:
    """The run of ansible-playbook whose main process is pid: its id, its owner, and how to tell whether it lives."""
    started = process_start(pid)
    return {
        "id": hashlib.sha256(f"{machine()} {pid} {started}".encode()).hexdigest()[:12],
        "owner": f"{getpass.getuser()}@{socket.gethostname()}",
        "machine": machine(),
        "pid": pid,
        "pid_started": started,
    }


def is_dead(run: dict[str, Any]) -> bool:
    """Whether a run is known to have ended: it was one of this machine and its process is gone."""
    return run.get("machine") == machine() and process_start(int(run.get("pid", 0))) != run.get("pid_started")


class ActionModule(ActionBase):
    """Runs the module of the same name with the identity of this run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; for state=locked a failure that names the holder."""
        super().run(tmp, task_vars)
        # every task runs in a child of ansible-playbook's main process
        arguments = {**self._task.args, "run": identity(os.getppid())}
        if arguments.get("state") != "locked":
            return self._ask(arguments, task_vars)
        deadline = time.monotonic() + int(arguments.get("wait", 0))
        while True:
            answer = self._ask(arguments, task_vars)
            held = answer.get("held")
            if not held:
                return answer
            if is_dead(held):
                Display().display(f"taking over the lock of {held['owner']}, whose run has ended without giving it up")
                arguments["steal"] = held["id"]
                continue
            if time.monotonic() >= deadline:
                return {**answer, "failed": True, "msg": answer["text"]}
            Display().display(f"waiting for the lock: {answer['text']}")
            time.sleep(INTERVAL)

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer = dict(self._execute_module(module_name="bareforge", module_args=arguments, task_vars=task_vars))
        # the message says it all, unless it points at the lines above itself; -v shows them in any case
        if "above" not in str(answer.get("msg", "")) and Display().verbosity == 0:
            answer.pop("details", None)
        return answer
