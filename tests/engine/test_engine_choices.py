"""What the engine decides: how to switch, what to go back to, what of a unit is its sandbox."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from plugins.modules import bareforge
from plugins.modules.bareforge import EngineError, choose_method, choose_rollback, sandbox, sandboxed
from tests.engine.host import NODE, Host
from tests.templates.render import ROOT, render

SAME: dict[str, str] = {}


@pytest.mark.parametrize(
    ("release", "changes", "prefer", "running", "method"),
    [
        ("r2", SAME, "handover", True, "handover"),
        ("r2", SAME, "hup", True, "handover"),
        ("r2", {"gunicorn": "workers = 3\n"}, "hup", True, "handover"),
        ("r1", {"gunicorn": "workers = 3\n"}, "handover", True, "handover"),
        ("r1", {"gunicorn": "workers = 3\n"}, "hup", True, "hup"),
        ("r1", SAME, "hup", True, "hup"),
        ("r1", SAME, "handover", True, "handover"),
        ("r1", {"environment": "A=1\n"}, "hup", True, "restart"),
        ("r2", {"environment": "A=1\n"}, "handover", True, "restart"),
        ("r1", {"service": "[Service]\nUser=other\n"}, "hup", True, "restart"),
        ("r2", {"service": "[Service]\nUser=other\n"}, "handover", True, "restart"),
        ("r1", {"socket": "[Socket]\nBacklog=1\n"}, "handover", True, "restart"),
        ("r2", SAME, "handover", False, "restart"),
        ("r1", SAME, "hup", False, "restart"),
    ],
)
def test_the_way_to_switch(
    host: Host, release: str, changes: dict[str, str], prefer: str, running: bool, method: str
) -> None:
    origin, target = host.activation("r1"), host.activation(release, **changes)
    assert choose_method(host.paths, origin, target, prefer, running) == method


def test_the_first_release_and_one_after_a_lost_activation_are_started(host: Host) -> None:
    target = host.activation("r1")
    assert choose_method(host.paths, "", target, "handover", running=True) == "restart"
    assert choose_method(host.paths, "0123456789ab", target, "handover", running=True) == "restart"


def served(host: Host, *releases: str) -> dict[str, Any]:
    """State of a host that served these releases, the last one now; a name with + is another configuration of it."""
    made = [host.activation(name.rstrip("+"), gunicorn=f"# {name}\n") for name in releases]
    return {"serving": made[-1], "served": made}


def release_of(host: Host, activation: str) -> str:
    return (host.paths.activations / activation / "release").resolve().name


@pytest.mark.parametrize(
    ("releases", "bad", "named", "chosen"),
    [
        (["r1", "r2"], [], "", "r1"),
        (["r1", "r2", "r3"], [], "", "r2"),
        (["r1", "r2", "r3"], ["r2"], "", "r1"),
        # the configuration of the same release is not another release
        (["r1", "r2", "r2+"], [], "", "r1"),
        (["r1", "r1+", "r2"], [], "", "r1"),
        (["r1", "r2", "r3"], [], "r1", "r1"),
        # a person who names one knows why
        (["r1", "r2", "r3"], ["r1", "r2"], "r1", "r1"),
        (["r1", "r2", "r3"], [], "r3", "r3"),
    ],
)
def test_what_to_go_back_to(host: Host, releases: list[str], bad: list[str], named: str, chosen: str) -> None:
    state = {**served(host, *releases), "bad": dict.fromkeys(bad, "rollback")}
    now = release_of(host, state["serving"])
    assert release_of(host, choose_rollback(host.paths, state, now, named)) == chosen


def test_the_latest_configuration_of_a_release_is_taken(host: Host) -> None:
    state = served(host, "r1", "r1+", "r2")
    assert choose_rollback(host.paths, state, "r2", "") == state["served"][1]


def test_a_release_or_an_activation_that_is_gone_is_passed_over(host: Host) -> None:
    state = served(host, "r1", "r2", "r3", "r4")
    (host.paths.releases / "r3/release.json").unlink()
    (host.paths.activations / state["served"][1] / "activation.json").unlink()
    assert choose_rollback(host.paths, state, "r4", "") == state["served"][0]


@pytest.mark.parametrize(
    ("releases", "bad", "named", "message"),
    [
        (
            ["r1"],
            [],
            "",
            f"there is no good release before r1 on {NODE}; deploy an earlier source with playbooks/deploy.yml",
        ),
        (
            ["r1", "r2", "r3"],
            ["r1", "r2"],
            "",
            f"there is no good release before r3 on {NODE} (r1, r2 marked bad; name one with -e release= to take it "
            "all the same); deploy an earlier source with playbooks/deploy.yml",
        ),
        (
            ["r1", "r2"],
            [],
            "r9",
            f"release r9 is not among those that have served on {NODE} and are kept: r1, r2; name one of them",
        ),
    ],
)
def test_where_there_is_nothing_to_go_back_to_the_cause_is_named(
    host: Host, releases: list[str], bad: list[str], named: str, message: str
) -> None:
    state = {**served(host, *releases), "bad": dict.fromkeys(bad, "rollback")}
    with pytest.raises(EngineError) as refusal:
        choose_rollback(host.paths, state, releases[-1], named)
    assert str(refusal.value) == message


def test_a_host_that_never_served_keeps_none(host: Host) -> None:
    with pytest.raises(EngineError) as refusal:
        choose_rollback(host.paths, {}, "r1", "r1")
    assert str(refusal.value) == (
        f"release r1 is not among those that have served on {NODE} and are kept: none; name one of them"
    )


def test_the_candidate_gets_the_sandbox_of_the_real_unit_and_nothing_about_running() -> None:
    given = {"asgi_app_name": "shop", "asgi_app_module": "shop:app", "asgi_app_source": "/src"}
    unit = render(ROOT / "templates/asgi-app.service.j2", "asgi_app", **given)
    section = re.findall(r"^[A-Z]\w+=.*$", unit[unit.index("[Service]") : unit.index("[Install]")], re.M)
    kept = [item.removeprefix("--property=") for item in sandbox(unit)]
    assert {line.partition("=")[0] for line in section if line not in kept} == {
        "Type",
        "NotifyAccess",
        "PIDFile",
        "EnvironmentFile",
        "ExecStart",
        "ExecStartPost",
        "ExecReload",
        "KillMode",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "Restart",
        "RestartSec",
        "RuntimeDirectory",
        "RuntimeDirectoryPreserve",
    }
    assert kept == [line for line in section if line in kept]
    for line in ("User=shop", "Group=shop", "NoNewPrivileges=yes", "ProtectSystem=strict", "StateDirectory=shop/data"):
        assert line in kept
    assert all(item.startswith("--property=") for item in sandbox(unit))


def test_of_a_unit_of_ones_own_comments_other_sections_and_supervision_are_left_out() -> None:
    unit = (
        "[Unit]\nDescription=x\nUser=nobody\n[Service]\n# User=commented\n;Group=commented\nUser=shop\n"
        "ExecCondition=/bin/true\nExecStartPre=/bin/true\nExecStopPost=/bin/true\nWatchdogSec=5\nRemainAfterExit=yes\n"
        "RestartPreventExitStatus=3\nSockets=shop.socket\nMemoryMax=1G\n\n[Install]\nWantedBy=multi-user.target\n"
    )
    assert sandbox(unit) == ["--property=User=shop", "--property=MemoryMax=1G"]


def test_a_candidate_stands_back_behind_what_serves_and_a_migration_with_its_locks_does_not(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab's hosts run both for real."""
    asked: list[list[str]] = []

    def call(command: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bareforge, "call", call)
    activation = host.activation("r1")
    for purpose in ("candidate", "migration"):
        sandboxed(host.paths, activation, ["true"], purpose, 10)
    candidate, migration = (command for command in asked if command[0] == "systemd-run")
    assert "--nice=10" in candidate
    assert "--nice=10" not in migration


def test_a_release_is_asked_for_its_revision_only_where_it_declares_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    activation = host.activation("r1")
    asked: list[str] = []

    def answer(_paths: Any, _activation: str, _command: list[str], purpose: str, _timeout: float) -> Any:
        asked.append(purpose)
        return subprocess.CompletedProcess([], 0, "0002\n", "")

    monkeypatch.setattr(bareforge, "sandboxed", answer)
    packages = host.paths.releases / "r1/venv/lib/python3.11/site-packages"
    for name, text in (("other", "[console_scripts]\nshop = shop:main\n"), ("none", "")):
        (packages / f"{name}-1.dist-info").mkdir(parents=True)
        (packages / f"{name}-1.dist-info/entry_points.txt").write_text(text)
    assert bareforge.schema_head(host.paths, activation) == ""
    assert asked == []
    (packages / "shop-1.dist-info").mkdir()
    (packages / "shop-1.dist-info/entry_points.txt").write_text("[bareforge]\nschema-head = shop:head\n")
    assert bareforge.schema_head(host.paths, activation) == "0002"
    assert asked == ["schema"]
