"""Releases, rollbacks and reloads under load: not one failed request, and systemd tells the truth afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.fleet import Fleet
from witness import check

HOSTS = ("app1", "app2")
REPETITIONS = 3


def assert_truth(fleet: Fleet) -> None:
    for host in HOSTS:
        assert fleet.truth(host) == [], host


def on_both(fleet: Fleet, commands: Sequence[str]) -> None:
    """Run one command on each host at the same moment."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fleet.ssh, HOSTS, commands))


def test_nothing_is_lost(fleet: Fleet, variants: Any, one: str) -> None:
    """Release, rollback, reload, a reload of nginx, with workers being replaced by max_requests all the time.

    The first time by playbook, host by host; then by the engine alone, on both hosts at once. One history of every
    request, one checker: each answer is a 2xx of exactly one of the two releases, and after a host has committed, the
    old one answers no more.
    """
    restarts = {host: fleet.restarts(host) for host in HOSTS}
    activations: dict[str, str] = {}
    for number in range(REPETITIONS):
        with fleet.witness(*HOSTS, rate=20) as witness:
            if number == 0:
                fleet.good("release.yml", **variants("two"))
                activations = {host: fleet.status(host)["serving"] for host in HOSTS}
            else:
                on_both(fleet, [f"bareforge activate forge {activations[host]}" for host in HOSTS])
            for host in HOSTS:
                witness.mark(f"commit {host}")
            assert_truth(fleet)
            two = fleet.release("app1")
            assert two == fleet.release("app2") != one
        result = witness.result()
        print(f"release {number + 1} of {REPETITIONS}: {result.line}")
        assert result.document["failed"] == 0, (result.line, result.details)
        commits = {event["name"].removeprefix("commit "): event["at"] for event in result.document["events"]}
        assert check(result.records, one, two, commits) == []
        assert check(result.records, one, one, {}) != [], "the checker must be able to object"
        with fleet.witness(*HOSTS, rate=20) as witness:
            if number == 0:
                fleet.good("rollback.yml")
            else:
                on_both(fleet, ["bareforge rollback forge"] * 2)
            assert [fleet.release(host) for host in HOSTS] == [one, one]
            assert_truth(fleet)
            witness.mark("reload")
            if number == 0:
                fleet.good("reload.yml", **variants("one"))
            else:
                on_both(fleet, ["systemctl reload forge"] * 2)
            assert_truth(fleet)
            witness.mark("nginx reload")
            on_both(fleet, ["systemctl reload nginx"] * 2)
        result = witness.result()
        print(f"rollback, reload, nginx reload {number + 1} of {REPETITIONS}: {result.line}")
        assert result.document["failed"] == 0, (result.line, result.details)
        assert set(result.document["releases"]) == {one, two}
    assert {host: fleet.restarts(host) for host in HOSTS} == restarts


def test_a_changed_setting_takes_the_restart_behind_the_held_socket(fleet: Fleet, variants: Any, one: str) -> None:
    """Neither USR2 nor HUP sees the environment file; requests wait, none fails."""
    changed = variants("one")
    changed["asgi_app_environment"] = {**changed["asgi_app_environment"], "FORGE_LOG_LEVEL": "warning"}
    before = fleet.status("app1")["serving"]
    with fleet.witness("app1", rate=20) as witness:
        fleet.good("reload.yml", "--limit", "app1", **changed)
    result = witness.result()
    assert result.document["failed"] == 0, (result.line, result.details)
    main = fleet.status("app1")["unit"]["MainPID"]
    assert "FORGE_LOG_LEVEL=warning" in fleet.ssh("app1", f"tr '\\0' '\\n' < /proc/{main}/environ")
    assert "restart" in fleet.ssh("app1", "bareforge history forge | tail -1")
    fleet.ssh("app1", f"bareforge activate forge {before}")
    assert_truth(fleet)
    main = fleet.status("app1")["unit"]["MainPID"]
    assert "FORGE_LOG_LEVEL" not in fleet.ssh("app1", f"tr '\\0' '\\n' < /proc/{main}/environ")


def test_commands_by_hand_keep_working(fleet: Fleet, one: str) -> None:
    """After hand-overs systemd still reloads, restarts and shows the right process and its journal."""
    with fleet.witness("app2", rate=20) as witness:
        fleet.ssh("app2", "systemctl reload forge")
        assert fleet.truth("app2") == []
        fleet.ssh("app2", "systemctl reload forge")
        assert fleet.truth("app2") == []
        fleet.ssh("app2", "systemctl restart forge")
        assert fleet.truth("app2") == []
    assert witness.result().document["failed"] == 0, witness.result().line
    main = fleet.status("app2")["unit"]["MainPID"]
    assert main in fleet.ssh("app2", "systemctl status forge --no-pager")
    assert f"[{main}]" in fleet.ssh("app2", f"journalctl --no-pager _PID={main} --lines=3")


def test_history_says_who_did_what(fleet: Fleet, one: str) -> None:
    shown = fleet.good("history.yml")
    line = re.compile(
        r"\S+Z (deploy|release|rollback|reload) \S+ ok "
        r"\((handover|hup|restart), [\d.]+ s, config [0-9a-f]{12}, schema 0001\) by \S+@\S+"
    )
    found = {match[1] for match in line.finditer(shown.replace("\n", " "))}
    assert found >= {"deploy", "release", "rollback", "reload"}, shown
