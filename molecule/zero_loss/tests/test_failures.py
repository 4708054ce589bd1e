"""What fails takes nothing with it: broken releases, one bad host, processes and controllers that are killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Point
from benchmarks.fleet import CODE, ROOT, Fleet
from benchmarks.killing import KILL_MODULES, Runner
from benchmarks.trial.variants import Fault
from tests.recorded import RecordedFleet

HOSTS = ("app1", "app2")
# The cause that the message has to name. The other faults: scenario default, tests/benchmarks; all of them under load:
# benchmarks/zero_loss.py.
CAUSES = {
    Fault.NOT_READY: "the application is not ready: GET /ready answered 503; ",
    Fault.CRASH: "the application became ready and ended ",
}
# Seconds after which one is given up that never becomes ready
GIVEN_UP = {Fault.NOT_READY: 15}


def last_message(run: subprocess.CompletedProcess[str]) -> str:
    failures = re.findall(r"^fatal: .*?FAILED! => (\{.*\})$", run.stdout, re.M)
    assert failures, run.stdout[-3000:] + run.stderr[-2000:]
    return str(json.loads(failures[-1])["msg"])


@pytest.fixture(scope="module")
def messages(fleet: Fleet, variants: Any, one: str) -> dict[Fault, str]:
    """Every broken release tried under load, on two hosts side by side."""

    def attempt(host: str, faults: list[Fault]) -> dict[Fault, str]:
        found = {}
        for fault in faults:
            name = fault.name.lower().replace("_", ".")
            broken = variants(name, fault, asgi_app_soak=7, asgi_app_start_timeout=GIVEN_UP.get(fault, 60))
            run = fleet.play("deploy.yml", *CODE, "--limit", host, **broken)
            assert run.returncode != 0, run.stdout[-3000:]
            found[fault] = last_message(run)
        return found

    faults = list(CAUSES)
    with fleet.witness(*HOSTS, rate=20) as witness, ThreadPoolExecutor(2) as pool:
        first = pool.submit(attempt, "app1", faults[::2])
        second = pool.submit(attempt, "app2", faults[1::2])
        said = {**first.result(), **second.result()}
    result = witness.result()
    print(result.line)
    assert result.document["failed"] == 0, (result.line, result.details)
    assert set(result.document["releases"]) == {one}
    return said


@pytest.mark.parametrize("fault", CAUSES)
def test_a_broken_release_reaches_nobody_and_names_its_cause(messages: dict[Fault, str], fault: Fault) -> None:
    assert messages[fault].startswith(f"bareforge-runtime: {CAUSES[fault]}"), messages[fault]


def test_after_broken_releases_everything_is_as_it_was(messages: dict[Fault, str], fleet: Fleet, one: str) -> None:
    assert messages
    for host in HOSTS:
        assert fleet.truth(host) == []
        assert fleet.release(host) == one


def test_one_bad_host_takes_the_fleet_back(fleet: Fleet, variants: Any, one: str) -> None:
    """The hook fails in the real master of app2 alone: app1 has switched by then, and must not stay alone."""
    hook = (
        "def on_starting(server):\n"
        "    import socket\n"
        "    if socket.gethostname() == 'app2' and server.cfg.pidfile.startswith('/run/'):\n"
        "        raise RuntimeError('fails on app2')"
    )
    with fleet.witness(*HOSTS) as witness:
        run = fleet.play("deploy.yml", *CODE, **variants("two", asgi_app_gunicorn_extra=hook))
    assert run.returncode != 0
    message = last_message(run)
    cause = r"master \d+ ended before its workers were ready"
    assert re.match(rf"Release \S+ did not become ready on app2 \({cause}\); ", message), message
    assert "the release before it never stopped serving. Last lines of its journal: " in message
    assert "fails on app2" in message
    for host in HOSTS:
        assert fleet.truth(host) == []
        assert fleet.release(host) == one
    assert "revert" in fleet.ssh("app1", "bareforge history forge | tail -1")
    result = witness.result()
    assert result.document["failed"] == 0, (result.line, result.details)


HOOK = """
- name: Lose the host in the middle of the run
  ansible.builtin.command: {engine} exec {container} sh -c 'systemctl stop ssh; pkill -KILL sshd; true'
  delegate_to: localhost
  become: false
  when: inventory_hostname == 'app2'
"""


def test_a_host_that_is_lost_takes_the_fleet_back(fleet: Fleet, variants: Any, one: str, tmp_path: Path) -> None:
    """Ansible rescues no host that it cannot reach: app1 has switched, and nobody would take it back."""
    engine = os.environ.get("LAB_ENGINE", "podman")
    container = f"bareforge-{os.environ.get('MOLECULE_SCENARIO_NAME', 'demo')}-app2"
    hook = tmp_path / "lose.yml"
    hook.write_text(HOOK.format(engine=engine, container=container))
    try:
        with fleet.witness("app1", rate=20) as witness:
            run = fleet.play("release.yml", **variants("two", deploy_drain=str(hook)))
    finally:
        subprocess.run([engine, "exec", container, "systemctl", "start", "ssh"], check=True, timeout=60)
    assert run.returncode != 0
    assert last_message(run) == (
        "app2 could not be reached any more before the switch there had ended, so the others are taken back; "
        "it may serve either release, see there: bareforge status forge; "
        "run again when it answers, or leave it out: --limit 'app:!app2'"
    )
    assert witness.result().document["failed"] == 0, witness.result().line
    assert "revert" in fleet.ssh("app1", "bareforge history forge | tail -1")
    for host in HOSTS:
        assert fleet.truth(host) == []
        assert fleet.release(host) == one
    # which the run could not give up there
    fleet.good("unlock.yml")


# The application's directory on a disk of its own, which has 6 MB left
FILL = (
    "mkdir -p /run/small && mount -t tmpfs -o size=1g small /run/small && cp -a /srv/forge/. /run/small && "
    "fallocate -l $(($(df --output=avail -B1 /run/small | tail -n 1) - 6000000)) /run/small/filler && "
    "mount --bind /run/small /srv/forge"
)


def test_a_full_disk_is_refused_in_megabytes(fleet: Fleet, variants: Any, one: str) -> None:
    fleet.ssh("app1", FILL)
    try:
        with fleet.witness("app1", rate=20) as witness:
            run = fleet.play("release.yml", "--limit", "app1", **variants("full"))
        left = fleet.ssh("app1", "ls -A /srv/forge /srv/forge/releases")
    finally:
        fleet.ssh("app1", "umount --lazy /srv/forge /run/small")
    assert run.returncode != 0
    assert re.fullmatch(
        r"/srv/forge has 6 MB left and the installation takes up to \d+ MB; "
        "free space, or keep fewer releases, and run again",
        last_message(run),
    ), last_message(run)
    assert ".full-" not in left
    assert "tmp" not in left
    assert witness.result().document["failed"] == 0, witness.result().line
    assert fleet.truth("app1") == []
    assert fleet.release("app1") == one


def test_a_killed_worker_costs_its_own_requests_only(fleet: Fleet, one: str) -> None:
    with fleet.witness("app1") as witness:
        time.sleep(3)
        worker = fleet.status("app1")["workers"][0]["pid"]
        fleet.ssh("app1", f"kill -9 {worker}")
        killed = witness.seconds
        time.sleep(4)
    assert witness.result().document["failed"] <= in_flight(witness.result().records, killed)
    assert fleet.truth("app1") == []


def test_a_killed_master_costs_no_more_than_what_was_in_flight(fleet: Fleet, one: str) -> None:
    """systemd holds the socket: what comes while there is no master waits for the next one."""
    restarts = fleet.restarts("app1")
    with fleet.witness("app1") as witness:
        time.sleep(3)
        main = fleet.status("app1")["unit"]["MainPID"]
        fleet.ssh("app1", f"kill -9 {main}")
        killed = witness.seconds
        time.sleep(8)
    result = witness.result()
    print(result.line)
    assert result.document["failed"] <= in_flight(result.records, killed), (result.line, result.details)
    assert fleet.wait_for_truth("app1") == []
    assert fleet.release("app1") == one
    assert fleet.restarts("app1") == restarts + 1


def in_flight(records: Any, at: float) -> int:
    """How many requests had been sent and not been answered; those sent while the kill travelled count too."""
    return sum(record.at <= at and record.at + record.ms / 1000 >= at - 2 for record in records)


def running(fleet: Fleet, host: str) -> dict[str, Any]:
    """The engine's status once a worker has said that it is ready, a moment after it answered."""
    for _ in range(10):
        found = fleet.status(host)
        if found["running"]:
            break
        time.sleep(1)
    return found


SWITCH = "asgi_app : Switch to the release, or keep what serves"


def test_a_controller_killed_in_a_switch_leaves_whole_releases(
    fleet: RecordedFleet, variants: Any, one: str, tmp_path: Path
) -> None:
    """Of the first host, so that the fleet is mixed; benchmarks/zero_loss.py tries every boundary."""
    with fleet.witness(*HOSTS, rate=20) as witness:
        runner = Runner(fleet, tmp_path)
        run = runner.run(ROOT / "playbooks/deploy.yml", *CODE, point=Point(SWITCH, 1.5, SWITCH), **variants("two"))
        fleet.outputs.append(run.output)
        assert run.killed, run.output[-3000:]
        for host in HOSTS:
            fleet.ssh(host, KILL_MODULES)
        time.sleep(3)
        # stands for a boot at this moment: whatever it starts is one whole release
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda host: fleet.ssh(host, "systemctl restart forge"), HOSTS))
        for host in HOSTS:
            found = running(fleet, host)
            assert found["running"] == found["active"] != "", host
            assert len({worker["release"] for worker in found["workers"]}) == 1
    result = witness.result()
    print(result.line)
    assert result.document["failed"] == 0, (result.line, result.details)
    # the next run, from the same controller, takes the dead one's lock over and converges
    shown = fleet.good("deploy.yml", *CODE, **variants("two"))
    assert "taking over the lock of " in shown
    for host in HOSTS:
        assert fleet.truth(host) == []
    releases = {fleet.release(host) for host in HOSTS}
    assert len(releases) == 1
    assert releases != {one}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda host: fleet.ssh(host, f"bareforge rollback forge --release {one}"), HOSTS))
