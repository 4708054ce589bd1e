"""The code-only path on the host: what it asks of the controller, what it refuses, what it stages."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.action.bareforge import engine_digest, read_answer
from plugins.modules import bareforge
from plugins.modules.bareforge import (
    EngineError,
    bring,
    code_files,
    complete_arguments,
    digest,
    holder,
    receive,
)
from tests.engine.host import ENGINE, NODE, Host

TARGET = {
    "python_version": platform.python_version(),
    "machine": platform.machine(),
    "libc_version": platform.libc_ver()[1],
}
RUN = {"id": "r", "owner": "alice@ci"}


@pytest.fixture
def serving(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Serves release r1; what systemd would say of its workers is said here, for real in Molecule's zero_loss."""
    activation = host.activation("r1")
    host.paths.active.symlink_to(f"activations/{activation}")
    host.state(serving=activation, served=[activation])
    (host.paths.releases / "r1/release.json").write_text(
        json.dumps({"id": "r1", "python_version": TARGET["python_version"], "layer": "l1"})
    )
    monkeypatch.setattr(bareforge, "running_activation", lambda _: activation)
    return host


def asked(release: str, parts: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    want = {"id": release, "layer": "l1", "target": TARGET, "parts": parts or [], **changes}
    return complete_arguments(
        {"name": "shop", "state": "released", "python": sys.executable, "run": RUN, "bundle": want}
    )


def test_a_release_that_serves_needs_nothing_and_leaves_no_lock(serving: Host) -> None:
    found = bring(serving.paths, asked("r1"), io.BytesIO(), check_mode=False)
    assert found == {
        "changed": False, "activation": bareforge.active_id(serving.paths), "pending": False, "serving": True,
        "proven": False, "locked": False, "releases": ["r1"],
    }  # fmt: skip
    assert holder(serving.paths) == {}


def test_what_serves_by_the_record_and_not_in_fact_is_pending(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bareforge, "running_activation", lambda _: "")
    assert bring(serving.paths, asked("r1"), io.BytesIO(), check_mode=True)["pending"]


def test_what_a_dead_run_has_switched_stays_locked_so_that_it_can_be_taken_back(serving: Host) -> None:
    """Another host may fail in this run, and the fleet goes back together."""
    bareforge.acquire(serving.paths, {"id": "dead", "owner": "bob@ci"}, "release", 30)
    given = asked("r1")
    found = bring(serving.paths, {**given, "steal": "dead"}, io.BytesIO(), check_mode=False)
    assert (found["pending"], found["locked"]) == (False, True)
    assert bareforge.family(serving.paths, RUN) == {"r", "dead"}


def test_a_run_that_gives_up_leaves_what_a_dead_run_had_begun_to_the_next(serving: Host) -> None:
    bareforge.acquire(serving.paths, {"id": "dead", "owner": "bob@ci"}, "release", 30)
    bareforge.acquire(serving.paths, {"id": "second", "owner": "bob@ci"}, "release", 30, steal="dead")
    given = {**asked("r1"), "state": "unlocked", "run": {"id": "second"}}
    assert bareforge.module_state(serving.paths, {**given, "unfinished": True}, check_mode=False)["changed"]
    # it is in nobody's way
    assert holder(serving.paths) == {}
    assert bring(serving.paths, asked("r1"), io.BytesIO(), check_mode=False)["locked"]
    assert bareforge.family(serving.paths, RUN) == {"r", "second", "dead"}
    bareforge.module_state(serving.paths, {**given, "run": RUN}, check_mode=False)
    assert not bring(serving.paths, asked("r1"), io.BytesIO(), check_mode=False)["locked"]


def test_a_host_on_which_the_next_run_has_begun_has_nothing_to_take_back(serving: Host) -> None:
    bareforge.acquire(serving.paths, {"id": "next", "owner": "bob@ci"}, "release", 30)
    given = {**asked("r1"), "state": "reverted"}
    assert bareforge.module_state(serving.paths, given, check_mode=False)["method"] == "none"
    assert holder(serving.paths)["id"] == "next"


def reached(host: Host, given: dict[str, Any]) -> dict[str, Any]:
    if given["state"] == "released":
        return bring(host.paths, given, io.BytesIO(), check_mode=False)
    return bareforge.module_state(host.paths, given, check_mode=False)


@pytest.mark.parametrize("expired", [False, True])
def test_after_a_deploy_that_did_not_end_a_release_is_refused(serving: Host, expired: bool) -> None:
    """It would ship to each host with the configuration that serves there, and make a difference between them last."""
    bareforge.acquire(serving.paths, {"id": "dead", "owner": "bob@ci"}, "deploy", 0 if expired else 30)
    for state in ("released", "locked"):
        given = {**asked("r2"), "state": state, "action": "release", "steal": "" if expired else "dead"}
        with pytest.raises(EngineError) as refusal:
            reached(serving, given)
        assert str(refusal.value) == (
            f"the last deploy of shop (by bob@ci) did not end on {NODE}, so hosts may have different configurations; "
            "run it again, it takes up where it ended, then release"
        )
    # which the next deploy still has to know
    assert bareforge.read_json(serving.paths.state / "lock.json")["id"] == "dead"


def test_a_host_with_another_python_says_which(serving: Host) -> None:
    taken_for = {**TARGET, "python_version": "3.9.1"}
    assert bring(serving.paths, asked("r2", target=taken_for), io.BytesIO(), check_mode=False) == {
        "changed": False, "needs": "target", "target": TARGET, "releases": ["r1"],
    }  # fmt: skip


def test_a_host_asks_for_the_layer_first_and_then_for_the_release(serving: Host) -> None:
    assert bring(serving.paths, asked("r2"), io.BytesIO(), check_mode=False)["needs"] == "layer"
    layer = serving.paths.releases.parent / "layers/l1"
    layer.mkdir(parents=True)
    (layer / "layer.json").write_text("{}")
    assert bring(serving.paths, asked("r2"), io.BytesIO(), check_mode=False)["needs"] == "release"
    # the run goes on with what is missing, and nobody comes between
    assert holder(serving.paths)["id"] == "r"


def test_a_check_changes_nothing(serving: Host) -> None:
    found = bring(serving.paths, asked("r2"), io.BytesIO(), check_mode=True)
    assert (found["changed"], found["pending"]) == (True, True)
    assert holder(serving.paths) == {}


def test_the_lock_of_another_run_is_named(serving: Host) -> None:
    bareforge.acquire(serving.paths, {"id": "other", "owner": "bob@ci"}, "deploy", 30)
    found = bring(serving.paths, asked("r2"), io.BytesIO(), check_mode=False)
    assert found["held"]["id"] == "other"
    assert found["text"].startswith(f"shop is locked on {NODE} by bob@ci (deploy) since ")


def test_a_host_that_serves_nothing_is_told_to_deploy_first(host: Host) -> None:
    with pytest.raises(EngineError) as refusal:
        bring(host.paths, asked("r1"), io.BytesIO(), check_mode=False)
    assert str(refusal.value) == f"shop serves nothing on {NODE}; deploy a release first"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_archives_that_arrive_are_parted_and_whole(tmp_path: Path) -> None:
    parts = [["layer", 3, sha256(b"abc")], ["release", 2, sha256(b"de")]]
    archives = receive({"id": "r2", "parts": parts}, io.BytesIO(b"abcde"), tmp_path)
    assert {kind: Path(file).read_bytes() for kind, file in archives.items()} == {"layer": b"abc", "release": b"de"}


@pytest.mark.parametrize(("bundle", "size"), [(b"abcd", 1), (b"abc", 0), (b"abcdf", 2)])
def test_an_archive_that_arrives_damaged_is_refused(serving: Host, bundle: bytes, size: int) -> None:
    parts = [["layer", 3, sha256(b"abc")], ["release", 2, sha256(b"de")]]
    with pytest.raises(EngineError) as refusal:
        bring(serving.paths, asked("r2", parts), io.BytesIO(bundle), check_mode=False)
    assert str(refusal.value) == (
        f"the release of r2 arrived damaged on {NODE} ({size} of 2 bytes, SHA-256 differs); run again"
    )
    assert [item.name for item in serving.paths.releases.iterdir()] == ["r1"]
    assert not list(serving.paths.releases.parent.glob(".received-*"))


def test_only_the_release_differs_from_the_activation_that_serves(serving: Host) -> None:
    """An activation that deploy.yml would make of the same release has the same id, so neither undoes the other."""
    files = code_files(serving.paths, bareforge.active_id(serving.paths), "r2")
    assert bareforge.activation_id(files) == serving.activation("r2")


# ------------------------------------------------------------------------------------------- asked by a controller


def module(asked: dict[str, Any], bundle: bytes = b"", engine: Path = ENGINE) -> str:
    sent = json.dumps(asked).encode() + b"\n" + bundle
    done = subprocess.run(
        ["/usr/bin/python3", "-I", str(engine), "module"], input=sent, capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_a_controller_with_the_same_engine_needs_to_send_arguments_only() -> None:
    arguments = {"name": "bareforge-nobody", "state": "history"}
    said = read_answer(module({"engine": engine_digest(), "check_mode": False, "arguments": arguments}))
    assert said == {"changed": False, "entries": [], "lines": []}
    assert digest() == engine_digest()


def test_a_refusal_comes_back_as_one() -> None:
    arguments = {"name": "bareforge-nobody", "state": "planned"}
    said = read_answer(module({"engine": engine_digest(), "check_mode": True, "arguments": arguments}))
    assert said == {
        "failed": True, "details": [], "msg": f"bareforge-nobody serves nothing on {NODE}; deploy a release first",
    }  # fmt: skip


def test_another_engine_does_nothing_at_all() -> None:
    said = module({"engine": "0" * 64, "check_mode": False, "arguments": {}})
    assert json.loads(said) == {"other_engine": True}
    assert read_answer(said) is None


@pytest.mark.parametrize("said", ["bareforge: started\n", "noise\nbareforge: started\nTraceback"])
def test_an_engine_that_died_did_not_do_nothing(said: str) -> None:
    assert read_answer(said) == {"failed": True, "msg": "the engine on this host ended without an answer; run again"}
    assert (read_answer(said, "line\nKilled\n") or {})["msg"].startswith(
        "the engine on this host ended without an answer: Killed; run "
    )


def test_what_a_login_shell_prints_before_is_passed_over() -> None:
    assert read_answer('Welcome {"to": 1}\nbareforge: started\n{"changed": true}\n') == {"changed": True}
    assert read_answer("sh: 1: /usr/bin/python3: not found\n") is None


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("keep", "3", 3),
        ("soak", "1.5", 1.5),
        # what -e sets is text
        ("ignore_schema", "false", False),
        ("ignore_schema", "yes", True),
        ("ignore_schema", True, True),
        ("command", ["shop.migrate", "--timeout", 300], ["shop.migrate", "--timeout", "300"]),
        ("command", "shop.migrate", ["shop.migrate"]),
        ("release", 1.2, "1.2"),
        ("release", None, ""),
    ],
)
def test_arguments_are_what_ansible_would_make_of_them(name: str, value: Any, meant: Any) -> None:
    given = complete_arguments({"name": "shop", "state": "released", name: value})
    assert given[name] == meant
    assert type(given[name]) is type(meant)
    assert (given["minutes"], given["method"]) == (30, "handover")


def test_an_argument_that_is_not_of_its_type_is_named() -> None:
    arguments = {"name": "shop", "state": "released", "soak": "8s"}
    said = read_answer(module({"engine": engine_digest(), "check_mode": False, "arguments": arguments}))
    assert said == {"failed": True, "msg": "soak is '8s', which is no float; correct the variable"}


def test_what_the_engine_did_not_expect_is_told_and_not_lost() -> None:
    arguments = {"name": "bareforge-nobody", "state": "history", "name\0": 1}
    asked_for = {"engine": engine_digest(), "check_mode": False, "arguments": {**arguments, "name": "a\0b"}}
    said = read_answer(module(asked_for))
    assert said is not None
    assert said["msg"].startswith("the engine failed: ValueError: embedded null byte; run again, ")
    assert "Traceback" in said["exception"]
