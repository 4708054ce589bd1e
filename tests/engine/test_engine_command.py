"""The engine as a command on the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.power import as_root
from plugins.modules.bareforge import Paths, acquire, append_history, holder, timestamp
from tests.engine.host import ENGINE, NODE

# Debian's own, which has no Ansible, as on a host
PYTHON = "/usr/bin/python3"


def bareforge(*arguments: str, user: int | None = None) -> tuple[int, str, str]:
    """Run the command with the engine on standard input, where every user can read it."""
    with ENGINE.open() as engine:
        done = subprocess.run(
            [PYTHON, "-I", "-", *arguments],
            stdin=engine,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            user=user,
            env={"PATH": os.environ["PATH"], "USER": "alice"},
        )
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command() -> None:
    code, said, _ = bareforge("--help")
    assert code == 0
    for command in ("status", "history", "rollback", "activate", "reload", "unlock", "handover"):
        assert f"\n    {command} " in said


def test_the_file_itself_is_a_command() -> None:
    done = subprocess.run([PYTHON, "-I", str(ENGINE)], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "bareforge: error: the following arguments are required: COMMAND"


@pytest.mark.parametrize("command", ["status", "history", "rollback", "reload", "unlock", "handover"])
@pytest.mark.parametrize("name", ["bareforge-mistyped", "../lib", "", "."])
def test_an_unknown_name_is_refused_and_leaves_nothing(command: str, name: str) -> None:
    assert bareforge(command, name) == (
        1,
        "",
        f"bareforge: there is no application {name} on {NODE}; check the name\n",
    )
    assert not Path("/var/lib/bareforge-mistyped").exists()


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (["rollback"], f"NAME serves nothing on {NODE}; deploy a release first"),
        (["rollback", "--release", "r1"], f"NAME serves nothing on {NODE}; deploy a release first"),
        (["reload"], f"NAME serves nothing on {NODE}; deploy a release first"),
        (["activate", "0123456789ab"], "there is no activation 0123456789ab of NAME; deploy it first"),
    ],
)
def test_where_nothing_serves_there_is_nothing_to_switch(machine: Paths, command: list[str], cause: str) -> None:
    refusal = f"bareforge: {cause.replace('NAME', machine.name)}\n"
    assert bareforge(command[0], machine.name, *command[1:]) == (1, "", refusal)
    assert holder(machine) == {}


def test_the_history_of_nothing_says_so(machine: Paths) -> None:
    assert bareforge("history", machine.name) == (0, "there is no history yet\n", "")


def test_the_history_is_shown(machine: Paths) -> None:
    line = {"at": timestamp(1_700_000_000), "action": "deploy", "release": "r1", "result": "ok", "method": "restart"}
    more = {
        "seconds": 3.0,
        "activation": "0123456789ab",
        "migration_head": "",
        "who": "bob@desk",
        "cause": "",
        "run": "",
    }
    append_history(machine, {**line, **more})
    said = "2023-11-14T22:13:20Z deploy r1 ok (restart, 3 s, config 0123456789ab) by bob@desk\n"
    assert bareforge("history", machine.name) == (0, said, "")


def test_a_switch_by_hand_respects_the_lock_and_unlock_takes_it(machine: Paths) -> None:
    acquire(machine, {"id": "1", "owner": "bob@desk"}, "deploy", 30)
    code, said, refusal = bareforge("rollback", machine.name)
    assert (code, said) == (1, "")
    assert refusal.startswith(f"bareforge: {machine.name} is locked on {NODE} by bob@desk (deploy) since ")
    assert holder(machine)["owner"] == "bob@desk"
    assert bareforge("unlock", machine.name) == (0, "unlocked\n", "")
    assert bareforge("unlock", machine.name) == (0, "there was no lock\n", "")


def test_somebody_who_is_not_root_is_told(machine: Paths) -> None:
    as_root("chown", "-R", "root", str(machine.state))
    refusal = f"bareforge: permission denied: {machine.state}/.lock; run it as root\n"
    nobody = 65534 if os.geteuid() == 0 else None
    assert bareforge("rollback", machine.name, user=nobody) == (1, "", refusal)


def test_records_that_are_not_json_are_named(machine: Paths) -> None:
    (machine.state / "state.json").write_text("{")
    refusal = f"bareforge: {machine.state}/state.json is not JSON; remove it if you know why, and run again\n"
    assert bareforge("rollback", machine.name) == (1, "", refusal)
