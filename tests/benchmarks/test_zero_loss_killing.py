"""A run that is killed at a task boundary, for real, against this machine: it dies there and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.figures import Point, plan_points
from benchmarks.fleet import Fleet, FleetError
from benchmarks.killing import Runner, environment_of, numbers

INVENTORY = "all: {hosts: {one: {}, two: {}}, vars: {ansible_connection: local}}"
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Leave a trace
      ansible.builtin.file: {path: "{{ traces }}/{{ inventory_hostname }}", state: touch, mode: "0644",
                             modification_time: "{{ modified | default('now') }}", access_time: preserve}

    - name: Take a minute
      ansible.builtin.command: sleep {{ seconds }}

    - name: Refuse
      ansible.builtin.assert: {that: not refuse}
"""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(INVENTORY)
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "traces").mkdir()
    return Runner(Fleet(tmp_path, (inventory,), dict(os.environ)), tmp_path)


def of_the_run(directory: Path) -> list[int]:
    mark = f"BAREFORGE_TASKS={directory}".encode()
    return [pid for pid in numbers() if any(item.startswith(mark) for item in environment_of(pid))]


def test_a_run_to_its_end_names_its_tasks(runner: Runner, tmp_path: Path) -> None:
    run = runner.good(tmp_path / "play.yml", traces=f"{tmp_path}/traces", seconds=0, refuse=False)
    assert (run.status, run.killed) == (0, False)
    assert run.tasks == ["Leave a trace", "Take a minute", "Refuse"]
    # the second says that it has changed something, the third cannot
    assert run.idle == {3}
    again = runner.good(
        tmp_path / "play.yml", traces=f"{tmp_path}/traces", seconds=0, refuse=False, modified="preserve"
    )
    assert again.idle == {1, 3}
    with pytest.raises(FleetError, match=r"play\.yml failed"):
        runner.good(tmp_path / "play.yml", traces=f"{tmp_path}/traces", seconds=0, refuse=True)


def test_a_run_that_is_killed_at_a_boundary_has_done_what_is_before_it(runner: Runner, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    for point in plan_points(["Leave a trace", "Take a minute"], 1, {}):
        run = runner.run(tmp_path / "play.yml", point=point, traces=str(traces), seconds=60, refuse=False)
        assert run.killed
        assert len(run.tasks) == point.task
        assert {item.name for item in traces.iterdir()} == (set() if point.task == 1 else {"one", "two"})


def test_nothing_of_a_run_that_is_killed_inside_a_task_is_left(runner: Runner, tmp_path: Path) -> None:
    """Ansible's workers leave the process group of the run, and the module goes on without it."""
    point = Point(2, 2, "Take a minute")
    run = runner.run(tmp_path / "play.yml", point=point, traces=f"{tmp_path}/traces", seconds=60, refuse=False)
    assert run.killed
    assert of_the_run(tmp_path) == []
