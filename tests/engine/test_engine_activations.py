"""Activations: what names them, how they are stored, flipped, compared and forgotten."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from plugins.modules.bareforge import (
    EngineError,
    Switch,
    acquire,
    activation_id,
    active_id,
    commit,
    differences,
    family,
    link_units,
    plan_files,
    point,
    prune,
    read_json,
    release_lock,
    secrets_directories,
    settings_of,
    stage,
    write_json,
)
from tests.engine.host import SETTINGS, Host

READS = 10_000


def test_the_id_of_an_activation_never_changes_and_does_not_depend_on_order() -> None:
    # computed once; another value would make every host of every user switch for nothing
    assert activation_id({"environment": "A=1\n", "gunicorn.conf.py": "workers = 2\n"}) == "7221496242a7"
    assert activation_id({"gunicorn.conf.py": "workers = 2\n", "environment": "A=1\n"}) == "7221496242a7"


@pytest.mark.parametrize(
    "other",
    [
        {"a": "1", "b": "3"},
        {"a": "1", "c": "2"},
        {"a": "1"},
        {"a": "1", "b": "2", "c": ""},
        {"a": "2", "b": "1"},
        {"a": "1b2"},
        {"a1": "", "b": "2"},
        {"a": "1\0b\x001\x002"},
        {"a": "", "b": "12"},
        {"a": "1", "b": "2\n"},
        {"a": "1", "b": "\u00b2"},
    ],
)
def test_another_content_has_another_id(other: dict[str, str]) -> None:
    assert activation_id(other) != activation_id({"a": "1", "b": "2"})


def test_an_activation_is_whole_and_leads_to_its_release(host: Host) -> None:
    files = plan_files(host.paths, "r1", host.files(environment='A="1"\n'), SETTINGS)
    host.release("r1")
    activation = stage(host.paths, files)
    directory = host.paths.activations / activation
    assert {item.name for item in directory.iterdir()} == {*host.paths.files(), "activation.json", "release"}
    assert {name: (directory / name).read_text() for name in files} == files
    assert (directory / "release").resolve() == (host.paths.releases / "r1").resolve()
    assert settings_of(host.paths, activation) == {**SETTINGS, "name": "shop", "release": "r1"}


def test_staging_again_writes_nothing(host: Host) -> None:
    first = host.activation("r1")
    before = {item: item.lstat().st_ctime_ns for item in host.paths.activations.rglob("*")}
    assert host.activation("r1") == first
    assert {item: item.lstat().st_ctime_ns for item in host.paths.activations.rglob("*")} == before


def test_what_a_killed_run_left_is_replaced(host: Host) -> None:
    host.release("r1")
    files = plan_files(host.paths, "r1", host.files(), SETTINGS)
    partial = host.paths.activations / f".{activation_id(files)}.partial"
    partial.mkdir(parents=True)
    (partial / "environment").write_text("HALF")
    (partial / "of-another-engine").write_text("")
    activation = stage(host.paths, files)
    directory = host.paths.activations / activation
    assert {name: (directory / name).read_text() for name in files} == files
    assert [item.name for item in host.paths.activations.iterdir()] == [activation]
    assert not (directory / "of-another-engine").exists()


def test_a_release_that_is_not_there_is_named(host: Host) -> None:
    (host.paths.releases / "r1").mkdir()
    with pytest.raises(EngineError) as refusal:
        host.activation("r1")
    assert str(refusal.value) == "release r1 is not on this host; run playbooks/deploy.yml, which brings it"
    assert not host.paths.activations.exists()


def test_a_missing_file_is_named(host: Host) -> None:
    with pytest.raises(EngineError) as refusal:
        plan_files(host.paths, "r1", {"environment": "", "gunicorn.conf.py": ""}, SETTINGS)
    assert str(refusal.value) == "the activation lacks shop.service, shop.socket; this is a fault of the role"


def test_without_a_release_the_one_that_is_active_is_kept(host: Host) -> None:
    with pytest.raises(EngineError) as refusal:
        plan_files(host.paths, "", host.files(), SETTINGS)
    assert str(refusal.value) == "there is no activation (none) of shop; deploy it first"
    point(host.paths.active, f"activations/{host.activation('r1')}")
    files = plan_files(host.paths, "", host.files(environment="NEW=1\n"), SETTINGS)
    assert json.loads(files["activation.json"])["release"] == "r1"


def test_the_units_and_current_follow_the_active_activation(host: Host) -> None:
    paths = host.paths
    one, other = host.activation("r1"), host.activation("r2", service="# other\n")
    point(paths.active, f"activations/{one}")
    assert link_units(paths)
    assert not link_units(paths)
    assert active_id(paths) == one
    assert paths.current.resolve() == (paths.releases / "r1").resolve()
    point(paths.active, f"activations/{other}")
    assert active_id(paths) == other
    assert paths.current.resolve() == (paths.releases / "r2").resolve()
    for unit in (paths.units / "shop.service", paths.units / "multi-user.target.wants/shop.service"):
        assert unit.read_text() == "# other\n"
    assert (paths.units / "sockets.target.wants/shop.socket").read_text() == "# socket\n"


def test_a_reader_never_misses_the_link(tmp_path: Path) -> None:
    link, ended = tmp_path / "active", threading.Event()
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    point(link, "one")

    def flip() -> None:
        while not ended.is_set():
            point(link, "two")
            point(link, "one")

    flipping = threading.Thread(target=flip)
    flipping.start()
    try:
        seen = [link.read_text() for _ in range(READS)]
    finally:
        ended.set()
        flipping.join()
    assert {name: seen.count(name) > 0 for name in ("one", "two")} == {"one": True, "two": True}
    assert len(seen) == seen.count("one") + seen.count("two") == READS


def test_a_link_that_leads_there_already_is_not_written(tmp_path: Path) -> None:
    point(tmp_path / "active", "one")
    before = (tmp_path / "active").lstat().st_ino, tmp_path.stat().st_mtime_ns
    point(tmp_path / "active", "one")
    assert ((tmp_path / "active").lstat().st_ino, tmp_path.stat().st_mtime_ns) == before


def test_a_link_is_replaced_although_a_killed_run_left_half_of_a_switch(tmp_path: Path) -> None:
    (tmp_path / ".active.partial").symlink_to("nowhere")
    point(tmp_path / "active", "one")
    assert [str(item.readlink()) for item in tmp_path.iterdir()] == ["one"]


def test_differences_are_shown_file_by_file(host: Host) -> None:
    files = host.files()
    before_any = differences(host.paths, files)
    assert [(item["before"], item["after"]) for item in before_any] == [("", text) for text in files.values()]
    point(host.paths.active, f"activations/{host.activation('r1')}")
    assert differences(host.paths, files) == []
    header = f"{host.paths.active}/gunicorn.conf.py"
    assert differences(host.paths, host.files(gunicorn="workers = 3\n")) == [
        {"before_header": header, "after_header": header, "before": "# gunicorn\n", "after": "workers = 3\n"}
    ]


def test_pruning_spares_what_serves_what_served_before_and_what_is_switched_to(host: Host) -> None:
    paths = host.paths
    made = {name: host.activation(name) for name in ("r1", "r2", "r3", "r4", "r5", "r6", "r7")}
    point(paths.active, f"activations/{made['r1']}")
    write_json(paths.state / "switch.json", {"from": made["r4"], "to": made["r5"]})
    host.state(serving=made["r2"], previous=made["r3"], served=[made["r6"], made["r7"]])
    (paths.activations / ".0123456789ab.partial").mkdir()
    prune(paths, 1)
    assert {item.name for item in paths.activations.iterdir()} == set(made.values()) - {made["r6"]}


def test_pruning_keeps_as_many_as_it_is_told_and_counts_none_whose_release_is_gone(host: Host) -> None:
    made = [host.activation(f"r{number}") for number in range(6)]
    host.state(serving=made[5], served=made)
    (host.paths.releases / "r4/release.json").unlink()
    (host.paths.releases / "r4").rmdir()
    prune(host.paths, 3)
    assert {item.name for item in host.paths.activations.iterdir()} == {made[2], made[3], made[5]}


def test_finishing_the_switch_of_a_killed_run_spares_what_the_next_run_has_staged(host: Host) -> None:
    one, two = host.activation("r1"), host.activation("r2")
    host.state(serving=one, served=[one])
    point(host.paths.active, f"activations/{two}")
    write_json(host.paths.state / "switch.json", {"from": one, "to": two, "method": "handover", "run": "dead"})
    staged = host.activation("r3")
    commit(Switch(host.paths, one, two, "handover", "recover", {"id": "dead"}))
    assert settings_of(host.paths, staged)["release"] == "r3"
    assert read_json(host.paths.state / "state.json")["serving"] == two


def test_the_secrets_of_every_activation_that_is_kept_are_known(host: Host) -> None:
    host.activation("r1", environment='A="1"\nBAREFORGE_SECRETS="/run/agent/old"\n')
    host.activation("r2", environment='BAREFORGE_SECRETS="/run/agent/new"\n')
    host.activation("r3", environment='BAREFORGE_SECRETS=""\n')
    host.activation("r4", environment='BAREFORGE_SECRETS="/run/agent/new"\nB="2"\n')
    assert secrets_directories(host.paths) == ["/run/agent/new", "/run/agent/old"]


@pytest.mark.parametrize(("inherited", "before"), [(True, "r0"), (False, "r1")])
def test_a_run_takes_back_what_the_dead_one_before_it_had_switched_too(
    host: Host, inherited: bool, before: str
) -> None:
    """Else the hosts that the dead run had not reached would go back further than those it had."""
    activations = {release: host.activation(release) for release in ("r0", "r1", "r2")}
    acquire(host.paths, {"id": "dead"}, "deploy", 30)
    host.state(serving=activations["r0"], served=[activations["r0"]])
    commit(Switch(host.paths, activations["r0"], activations["r1"], "handover", "deploy", {"id": "dead"}))
    if not inherited:
        release_lock(host.paths, None)
    acquire(host.paths, {"id": "next"}, "deploy", 30, steal="dead")
    assert family(host.paths, {"id": "next"}) == ({"next", "dead"} if inherited else {"next"})
    commit(Switch(host.paths, activations["r1"], activations["r2"], "handover", "deploy", {"id": "next"}))
    assert read_json(host.paths.state / "state.json")["before"] == activations[before]
    prune(host.paths, 1)
    assert activations[before] in {item.name for item in host.paths.activations.iterdir()}
    # and another one after that has nothing to do with either
    release_lock(host.paths, {"id": "next"})
    assert family(host.paths, {"id": "third"}) == {"third"}


def test_an_attempt_of_three_runs_is_one(host: Host) -> None:
    for number, name in enumerate(("one", "two", "three")):
        acquire(host.paths, {"id": name}, "deploy", 30, steal=("", "one", "two")[number])
        # renewed by its own tasks
        acquire(host.paths, {"id": name}, "deploy", 30)
    assert family(host.paths, {"id": "three"}) == {"one", "two", "three"}
    assert family(host.paths, {}) == set()
