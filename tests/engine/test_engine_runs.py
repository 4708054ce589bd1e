"""Runs of ansible-playbook and the lock: who holds it, what a killed run leaves, how to wait."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.power import root_command
from plugins.action.bareforge import identity, is_dead, process_start
from plugins.modules.bareforge import Paths, acquire, holder, process_status, release_lock, wait_for, write_json
from tests.engine.host import NODE
from tests.plugins.conftest import ROOT, Ansible

PATIENCE = 60


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait(10)


def test_a_run_is_its_process_on_this_machine_since_its_start(process: subprocess.Popen[bytes]) -> None:
    run = identity(process.pid)
    assert run == identity(process.pid)
    assert re.fullmatch(r"[0-9a-f]{12}", run["id"])
    assert run["owner"].endswith(f"@{NODE}")
    assert run["id"] != identity(os.getpid())["id"]
    # what is sent to a host and comes back as JSON
    assert not is_dead(json.loads(json.dumps(run)))


def test_a_run_whose_process_has_ended_is_dead(process: subprocess.Popen[bytes]) -> None:
    run = identity(process.pid)
    process.kill()
    process.wait(10)
    assert process_start(process.pid) == ""
    assert is_dead(run)


def test_a_process_that_got_the_number_of_another_is_not_that_run(process: subprocess.Popen[bytes]) -> None:
    assert is_dead({**identity(process.pid), "pid_started": "1"})


def test_a_run_whose_process_was_not_collected_by_its_parent_is_dead(process: subprocess.Popen[bytes]) -> None:
    # a container whose first process collects nobody keeps a killed ansible-playbook for ever
    run = identity(process.pid)
    process.kill()
    assert wait_for(lambda: process_status(process.pid) is None, 10)
    assert Path(f"/proc/{process.pid}/stat").exists()
    assert is_dead(run)


# Prints who it is, and stays until its standard input is closed
RUN = "import json, os, sys; from plugins.action.bareforge import identity; print(json.dumps(identity(os.getpid())),"
RUN += " flush=True); sys.stdin.read()"


def test_a_run_in_another_container_of_this_machine_is_not_known_to_be_dead() -> None:
    container = root_command("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", RUN)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    elsewhere: subprocess.Popen[str] = subprocess.Popen(container, cwd=ROOT, **pipes)
    try:
        assert elsewhere.stdout
        run = json.loads(elsewhere.stdout.readline())
        assert run["pid"] == 1
        assert not is_dead(run)
    finally:
        elsewhere.communicate(timeout=30)


@pytest.mark.parametrize("run", [{}, {"id": "local-1", "owner": "root@app1"}, {"machine": "another", "pid": 1}])
def test_of_a_run_elsewhere_nobody_here_knows_whether_it_is_dead(run: dict[str, Any]) -> None:
    assert not is_dead(run)


def lock(paths: Paths, **arguments: Any) -> dict[str, Any]:
    return {"name": "lock", "bareforge": {"name": paths.name, "state": "locked", "action": "deploy", **arguments}}


def unlock(paths: Paths) -> dict[str, Any]:
    return {"name": "unlock", "bareforge": {"name": paths.name, "state": "unlocked"}}


def test_a_run_takes_the_lock_keeps_it_over_its_tasks_and_gives_it_up(machine: Paths, ansible: Ansible) -> None:
    record = {"name": "record", "bareforge": {"name": machine.name, "state": "recorded", "witness": {"failed": 0}}}
    run = ansible.tasks([lock(machine), record, unlock(machine)])
    assert run.status == 0, run.output
    assert run.tasks["unlock"]["changed"]
    assert holder(machine) == {}
    assert (machine.state / "history.jsonl").read_text().count("witness") == 1


@pytest.fixture
def killed(machine: Paths, ansible: Ansible) -> Iterator[dict[str, Any]]:
    """The lock of a run that was killed while it held it; what the run had started still lives."""
    ended = ansible.directory / "ended"
    work = {"name": "work", "ansible.builtin.wait_for": {"path": str(ended), "timeout": PATIENCE}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [lock(machine), work]}
    playbook = ansible.directory / "killed.json"
    playbook.write_text(json.dumps([{**play, "vars": {"ansible_python_interpreter": sys.executable}}]))
    environment = {**os.environ, "HOME": str(ansible.directory), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    with (ansible.directory / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "ansible-playbook", playbook],
            cwd=ROOT,
            env={**environment, "ANSIBLE_HOME": str(ansible.directory / ".ansible")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        assert wait_for(lambda: bool(holder(machine)), PATIENCE), (ansible.directory / "killed.log").read_text()
        held = holder(machine)
        assert held["pid"] == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        yield held
    finally:
        ended.touch()
        process.kill()
        process.wait(10)


def test_the_lock_of_a_killed_run_is_taken_over_and_the_run_says_so(
    machine: Paths, ansible: Ansible, killed: dict[str, Any]
) -> None:
    assert holder(machine) == killed
    run = ansible.tasks([lock(machine)])
    assert run.status == 0, run.output
    assert f"taking over the lock of {killed['owner']}, whose run has ended without giving it up" in run.output
    assert holder(machine)["id"] != killed["id"]


def test_the_lock_of_another_machine_is_refused_and_kept_until_somebody_takes_it_away(
    machine: Paths, ansible: Ansible
) -> None:
    now = time.time()
    held = {**identity(1), "id": "0123456789ab", "owner": "bob@desk", "machine": "another", "what": "deploy"}
    held |= {"acquired": now - 100, "expires": now + 1000, "minutes": 30}
    write_json(machine.state / "lock.json", held)
    step = {"name": "step", "bareforge": {"name": machine.name, "state": "planned"}}
    refused = [{**task, "ignore_errors": True} for task in (lock(machine), step)]
    run = ansible.tasks([*refused, unlock(machine)])
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 100))
    message = (
        f"{machine.name} is locked on {NODE} by bob@desk (deploy) since {since}, N s ago, expires in N s unless it "
        "goes on; wait for it with -e deploy_wait=600, or if that run is dead: ansible-playbook playbooks/unlock.yml"
    )
    for name in ("lock", "step"):
        assert re.sub(r"\d+ s ", "N s ", run.tasks[name]["msg"]) == message
        assert run.tasks[name]["msg"] in run.output.replace("\n", " ")
    assert "ignored=2 " in run.output
    # a run gives up its own lock only
    assert not run.tasks["unlock"]["changed"]
    assert holder(machine) == held
    run = ansible.task("bareforge", {"name": machine.name, "state": "unlocked", "steal": "*"})
    assert run.result()["changed"]
    assert holder(machine) == {}


def test_a_run_waits_for_the_lock_of_another(machine: Paths, ansible: Ansible) -> None:
    mine = identity(os.getpid())
    acquire(machine, mine, "rollback", 30)
    asked = machine.state / ".lock"
    before = asked.stat().st_mtime_ns

    def give_up() -> None:
        # once the run has asked for the first time, and has read the answer
        assert wait_for(lambda: asked.stat().st_mtime_ns != before, PATIENCE)
        time.sleep(0.5)
        release_lock(machine, mine)

    given_up = threading.Timer(0, give_up)
    given_up.start()
    try:
        run = ansible.tasks([lock(machine, wait="{{ deploy_wait }}")], "-e", "deploy_wait=30")
    finally:
        given_up.join()
    assert run.status == 0, run.output
    waiting = f"waiting for the lock: {machine.name} is locked on {NODE} by {mine['owner']} (rollback) since "
    assert waiting in run.output.replace("\n", " ")
    assert holder(machine)["id"] not in ("", mine["id"])
