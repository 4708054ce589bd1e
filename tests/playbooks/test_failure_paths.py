"""Which host is asked what when one fails or is lost. The engine is a stand-in here, so that every path can be walked.

The same with real hosts: molecule/zero_loss/tests/test_failures.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Entry points that need a real host; what they do has tests of its own.
STUBS = {
    "asgi_app": ("preflight", "variables", "prepare", "migrate"),
    "nginx_site": ("preflight", "prepare", "activate"),
    "vault_agent": (),
}
PREPARED = """
- name: Stage
  bareforge: {name: forge, state: staged}
  register: __asgi_app_staged
"""
HOOK = """
- name: Hook
  ansible.builtin.command: {command} "{fleet}/drained {{{{ inventory_hostname }}}}"
  delegate_to: localhost
"""
LOST = (
    "{0} could not be reached any more before the switch there had ended, so the others are taken back; it may serve "
    "either release, see there: bareforge status forge; run again when it answers, or leave it out: --limit 'app:!{0}'"
)
STOPPED = (
    "stopped before {1}: {0} of an earlier batch failed or could not be reached any more, see above; "
    "run again when every host answers, or leave one out: --limit 'app:!HOST'"
)


@dataclass
class Outcome:
    """After a run: its status, messages, hosts by what they serve, locked hosts, drained hosts, calls of the engine."""

    status: int
    messages: list[str]
    new: set[str]
    old: set[str]
    locked: set[str]
    drained: set[str]
    calls: list[str]


@dataclass
class Fleet:
    directory: Path

    def run(self, playbook: str, hosts: int, faults: dict[str, str], *arguments: str, hooks: bool = True) -> Outcome:
        names = [f"app{number + 1}" for number in range(hosts)]
        here = f"ansible_connection=local ansible_become=false ansible_python_interpreter={sys.executable}"
        inventory = [f"{name} {here}" for name in names]
        variables = ["asgi_app_name=forge", "asgi_app_source=x", "asgi_app_module=m:app"]
        if hooks:
            variables += [f"deploy_{hook}={self.directory}/{hook}.yml" for hook in ("drain", "undrain")]
        text = "\n".join(["[app]", *inventory, "[app:vars]", *variables])
        (self.directory / "inventory").write_text(f"{text}\n")
        (self.directory / "faults.json").write_text(json.dumps(faults))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.directory / "inventory")]
        run = subprocess.run(
            [*command, str(ROOT / "playbooks" / playbook), *arguments],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.directory / "home"),
                "ANSIBLE_ROLES_PATH": str(self.directory / "roles"),
                "ANSIBLE_ACTION_PLUGINS": str(Path(__file__).parent / "action"),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "ANSIBLE_NOCOLOR": "1",
                "FLEET": str(self.directory),
            },
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        failures = re.findall(r"^fatal: .*?FAILED! => (\{.*\})$", run.stdout, re.M)
        calls = self.directory / "calls"
        serving = {path.name.split()[1]: path.read_text() for path in self.directory.glob("serving *")}
        return Outcome(
            run.returncode,
            [str(json.loads(failure)["msg"]) for failure in failures],
            {host for host, release in serving.items() if release == "new"},
            {host for host, release in serving.items() if release == "old"},
            {path.name.split()[1] for path in self.directory.glob("lock *")},
            {path.name.split()[1] for path in self.directory.glob("drained *")},
            calls.read_text().splitlines() if calls.exists() else [],
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    for role, stubs in STUBS.items():
        shutil.copytree(ROOT / "roles" / role, tmp_path / "roles" / role, ignore=shutil.ignore_patterns("meta"))
        for stub in stubs:
            text = PREPARED if (role, stub) == ("asgi_app", "prepare") else "[]\n"
            (tmp_path / "roles" / role / "tasks" / f"{stub}.yml").write_text(text)
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    (tmp_path / "drain.yml").write_text(HOOK.format(command="touch", fleet=tmp_path))
    (tmp_path / "undrain.yml").write_text(HOOK.format(command="rm -f", fleet=tmp_path))
    return Fleet(tmp_path)


@pytest.mark.parametrize("playbook", ["deploy.yml", "release.yml", "rollback.yml", "reload.yml"])
def test_where_nothing_fails_every_host_switches_and_is_left_unlocked(playbook: str, fleet: Fleet) -> None:
    done = fleet.run(playbook, 3, {})
    assert (done.status, done.messages) == (0, [])
    assert done.new == {"app1", "app2", "app3"}
    assert (done.old, done.locked, done.drained) == (set(), set(), set())


@pytest.mark.parametrize("playbook", ["deploy.yml", "release.yml", "rollback.yml", "reload.yml"])
def test_check_mode_locks_drains_and_switches_nothing(playbook: str, fleet: Fleet) -> None:
    done = fleet.run(playbook, 2, {}, "--check")
    assert (done.status, done.calls) == (0, [])


def test_a_limit_is_a_fleet_of_its_own(fleet: Fleet) -> None:
    done = fleet.run("deploy.yml", 3, {}, "--limit", "app2")
    assert (done.status, done.new, done.locked) == (0, {"app2"}, set())


@pytest.mark.parametrize(
    ("playbook", "hosts", "failing", "old"),
    [
        ("deploy.yml", 2, "app2", {"app1", "app2"}),
        ("deploy.yml", 3, "app1", {"app1", "app2", "app3"}),
        ("release.yml", 3, "app2", {"app1", "app2", "app3"}),
        ("rollback.yml", 3, "app3", {"app1", "app2", "app3"}),
        ("reload.yml", 3, "app2", {"app1", "app2", "app3"}),
    ],
)
def test_one_that_fails_takes_all_back_and_leaves_no_lock_anywhere(
    playbook: str, hosts: int, failing: str, old: set[str], fleet: Fleet
) -> None:
    done = fleet.run(playbook, hosts, {failing: "activated"})
    assert done.status != 0
    assert f"{failing} failed when it was to be activated" in done.messages
    assert (done.new, done.old, done.locked, done.drained) == (set(), old, set(), set())


@pytest.mark.parametrize(
    ("playbook", "hosts", "message"),
    [
        ("deploy.yml", 2, LOST.format("app2")),
        ("deploy.yml", 3, LOST.format("app2")),
        ("release.yml", 3, LOST.format("app2")),
        ("rollback.yml", 2, LOST.format("app2")),
        ("reload.yml", 3, STOPPED.format("app2", "app3")),
    ],
)
def test_one_that_is_lost_takes_all_others_back(playbook: str, hosts: int, message: str, fleet: Fleet) -> None:
    done = fleet.run(playbook, hosts, {"app2": "activated:lost"})
    others = {f"app{number + 1}" for number in range(hosts)} - {"app2"}
    assert done.status != 0
    assert message in done.messages
    # its lock expires, and where there is a load balancer it stays out of it
    drained = {"app2"} if playbook != "reload.yml" else set()
    assert (done.new, done.old, done.locked, done.drained) == (set(), others, {"app2"}, drained)


def test_after_a_lost_canary_no_other_host_is_drained(fleet: Fleet) -> None:
    done = fleet.run("deploy.yml", 2, {"app1": "activated:lost"})
    assert STOPPED.format("app1", "app2") in done.messages
    assert "app2 activated" not in done.calls
    assert (done.locked, done.drained) == ({"app1"}, {"app1"})


def test_a_host_that_has_switched_and_is_lost_keeps_nobody_from_the_same_release(fleet: Fleet) -> None:
    done = fleet.run("deploy.yml", 3, {"app1": "activated:lost afterwards"}, hooks=False)
    assert done.new == {"app1", "app2", "app3"}
    assert done.locked == {"app1"}


def test_one_that_cannot_be_taken_back_is_named_last_and_drains_nobody(fleet: Fleet) -> None:
    done = fleet.run("deploy.yml", 3, {"app3": "activated", "app1": "reverted"})
    cause = "app3 failed when it was to be activated; NOT taken back: app1, see above and run again when it answers"
    assert cause in done.messages
    assert (done.new, done.old) == ({"app1"}, {"app2", "app3"})
    assert (done.locked, done.drained) == (set(), set())


def test_a_refused_lock_leaves_none_behind(fleet: Fleet) -> None:
    done = fleet.run("deploy.yml", 3, {"app2": "locked"})
    assert "app2 failed when it was to be locked" in done.messages[-3:]
    assert (done.locked, done.new, done.old) == (set(), set(), set())


@pytest.mark.parametrize(
    ("playbook", "state"), [("deploy.yml", "staged"), ("deploy.yml", "proven"), ("release.yml", "released")]
)
@pytest.mark.parametrize("fault", ["", ":lost"])
def test_what_fails_before_the_switch_switches_nothing(playbook: str, state: str, fault: str, fleet: Fleet) -> None:
    done = fleet.run(playbook, 2, {"app2": f"{state}{fault}"})
    assert done.status != 0
    assert (done.new, done.old, done.drained) == (set(), set(), set())
    # a release takes the lock with its first action
    assert done.locked == ({"app2"} if fault and state != "released" else set())


def test_a_release_asks_each_host_three_times(fleet: Fleet) -> None:
    done = fleet.run("release.yml", 2, {}, hooks=False)
    assert sorted(done.calls) == [f"app{n} {state}" for n in (1, 2) for state in ("activated", "released", "unlocked")]


def test_a_release_waits_in_an_order_in_which_two_do_not_wait_for_each_other(fleet: Fleet) -> None:
    done = fleet.run("release.yml", 2, {}, "-e", "deploy_wait=5")
    assert done.calls[0] == "app1 locked"
    assert set(done.calls[1:3]) == {"app1 locked", "app2 locked"}
    assert done.locked == set()


def test_a_release_that_serves_already_is_one_question(fleet: Fleet) -> None:
    (fleet.directory / "idle app1").touch()
    (fleet.directory / "idle app2").touch()
    done = fleet.run("release.yml", 2, {})
    assert (done.status, sorted(done.calls)) == (0, ["app1 released", "app2 released"])
    waited = fleet.run("release.yml", 2, {}, "-e", "deploy_wait=5")
    assert (waited.status, waited.locked) == (0, set())


def test_hosts_that_have_the_release_are_not_in_the_way_of_one_that_has_not(fleet: Fleet) -> None:
    (fleet.directory / "idle app1").touch()
    done = fleet.run("release.yml", 2, {})
    assert (done.status, done.new, done.locked) == (0, {"app2"}, set())
    assert "app1 activated" not in done.calls


def test_what_a_dead_run_has_switched_is_unlocked_at_the_end(fleet: Fleet) -> None:
    for host in ("app1", "app2"):
        (fleet.directory / f"idle {host}").touch()
    (fleet.directory / "inherited app1").touch()
    done = fleet.run("release.yml", 2, {})
    assert "app1 unlocked" in done.calls
    assert (done.status, done.locked) == (0, set())


@pytest.mark.parametrize("playbook", ["deploy.yml", "release.yml"])
def test_a_run_that_gives_up_keeps_what_a_dead_run_has_left(playbook: str, fleet: Fleet) -> None:
    """Or the run after it would not know which hosts to take back."""
    done = fleet.run(playbook, 2, {"app2": "staged" if playbook == "deploy.yml" else "released"})
    assert {"app1 unlocked unfinished", "app2 unlocked unfinished"} <= set(done.calls)
    ended = fleet.run(playbook, 2, {})
    assert {"app1 unlocked", "app2 unlocked"} <= set(ended.calls)


def test_a_migration_comes_once_and_before_the_proof(fleet: Fleet) -> None:
    """On the first host that has something to switch, and with it the lock."""
    for host in ("app2", "app3"):
        (fleet.directory / f"unproven {host}").touch()
    (fleet.directory / "idle app1").touch()
    migrate = fleet.directory / "roles/asgi_app/tasks/migrate.yml"
    migrate.write_text("- name: Migrate\n  bareforge: {name: forge, state: migrated}\n")
    done = fleet.run("release.yml", 3, {}, "-e", "deploy_batches=1")
    assert done.calls[3] == "app2 migrated"
    assert set(done.calls[4:6]) == {"app2 proven", "app3 proven"}
    assert done.new == {"app2", "app3"}
