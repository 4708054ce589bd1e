"""Runs of ansible-playbook that die at a task boundary, and with them all they have started here and on the hosts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Point
from benchmarks.fleet import ROOT, Fleet, FleetError

CALLBACKS = ROOT / "benchmarks/callbacks"
TIMEOUT = 900  # seconds for one run

# A module runs below sudo, whose command line Ansible marks; what has lost its parent is known by its own. The brackets
# keep the patterns from matching the shell that carries them.
KILL_MODULES = (
    'tree() { for child in $(pgrep --parent "$1"); do tree "$child"; done; kill -9 "$1" 2>/dev/null; }; '
    "for pid in $(pgrep --full '[B]ECOME-SUCCESS'); do tree \"$pid\"; done; "
    "pkill -9 --full --exact '/usr/bin/python3'; "
    "pkill -9 --full '[A]nsiballZ|[a]nsible-tmp|[b]areforge.py module'; true"
)


@dataclass(frozen=True)
class Run:
    """A run that has ended: its status (-9 where it was killed), its output, the names of the tasks it began.

    idle: the numbers, from 1, of the tasks that left every host as it was.
    """

    status: int
    output: str
    tasks: list[str]
    idle: frozenset[int]

    @property
    def killed(self) -> bool:
        """Whether it died at its point."""
        return self.status == -signal.SIGKILL


class Runner:
    """Starts runs. `directory` takes the lists of tasks, whose paths mark the processes of a run."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self._fleet = fleet
        self._directory = directory

    def run(self, playbook: Path, *arguments: str, point: Point | None = None, **variables: Any) -> Run:
        """Run a playbook with extra variables, to its end or to the point at which it is killed.

        A killed run has left no process on this machine afterwards. Raises FleetError for one that does not end.
        """
        descriptor, name = tempfile.mkstemp(prefix="tasks-", dir=self._directory)
        os.close(descriptor)
        file = Path(name)
        command = ["ansible-playbook"]
        for item in self._fleet.inventory:
            command += ["-i", str(item)]
        command += [str(playbook), *arguments]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        try:
            # a session of its own: the callback kills the whole process group
            done = subprocess.run(
                command,
                env=self._environment(file, point),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=TIMEOUT,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise FleetError(f"{playbook.name} did not end within {TIMEOUT} s") from None
        finally:
            if point:
                end_processes(file)
        lines = [line.split(" ", 2) for line in file.read_text().splitlines()]
        tasks = [name for _, word, name in lines if word == "begun"]
        touched = {int(number) for number, word, _ in lines if word == "touched"}
        idle = frozenset(range(1, len(tasks) + 1)) - touched
        return Run(done.returncode, done.stdout + done.stderr, tasks, idle)

    def good(self, playbook: Path, *arguments: str, **variables: Any) -> Run:
        """Run a playbook that has to succeed. Raises FleetError."""
        run = self.run(playbook, *arguments, **variables)
        if run.status:
            raise FleetError(f"{playbook.name} failed:\n{run.output[-8000:]}")
        return run

    def _environment(self, file: Path, point: Point | None) -> dict[str, str]:
        environment = {
            **self._fleet.environment,
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "kill_at",
            "BAREFORGE_TASKS": str(file),
        }
        if point:
            environment |= {"BAREFORGE_KILL_AT": str(point.task), "BAREFORGE_KILL_AFTER": str(point.after)}
        return environment


def end_processes(file: Path) -> None:
    """Kill what a run that was killed has left: Ansible's workers have sessions of their own, and their SSH clients.

    file: the run's list of tasks, which is in the environment of each of them and of nothing else.
    """
    mark = f"BAREFORGE_TASKS={file}".encode()
    for _ in range(50):
        left = [pid for pid in numbers() if mark in environment_of(pid)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    raise FleetError(f"processes {', '.join(map(str, left))} of a killed run do not end")


def numbers() -> list[int]:
    """The processes of this machine."""
    return [int(item.name) for item in Path("/proc").iterdir() if item.name.isdigit()]


def environment_of(pid: int) -> list[bytes]:
    """The environment that a process was started with; empty where it is gone or somebody else's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
