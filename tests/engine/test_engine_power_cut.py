"""A power cut at the worst moment: a real ext4 file system, copied while it is mounted, and mounted again.

What the kernel has not written to the image is lost, as in a power cut. The journal may be written at any moment, as
soon as any process syncs anything: names then survive whose content does not.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.power import SETTINGS, Disk, differing, ext4, no_systemd, tree
from plugins.modules.bareforge import (
    Paths,
    activation_id,
    append_history,
    plan_files,
    point_active,
    prune,
    read_history,
    read_json,
    stage,
    write_json,
)
from plugins.modules.bareforge_release import finish
from tests.engine.host import Host

ATTEMPTS = 5
FILES = 200  # of a release
CUTS = 12
CONTENT = os.urandom(2**15)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ext4(tmp_path) as disk:
        yield disk


def write_release(host: Host, release: str) -> None:
    """A release of many files, finished as the module that installs releases does."""
    directory = host.paths.releases / release
    (directory / "app").mkdir(parents=True)
    for number in range(FILES):
        (directory / f"app/{number}.py").write_bytes(CONTENT[number:])
    finish(directory / "release.json", {"id": release})


@pytest.fixture(autouse=True)
def without_systemd(tmp_path: Path) -> Iterator[None]:
    with no_systemd(tmp_path):
        yield


def test_a_power_cut_after_a_switch_loses_nothing_not_even_of_a_release_that_was_never_synced(disk: Disk) -> None:
    host = Host(Paths("shop", disk.root / "host"))
    write_release(host, "r1")
    for number in range(FILES):
        (host.release(f"late{number}") / "app.py").write_bytes(CONTENT[number:])
    activation = stage(host.paths, plan_files(host.paths, "r1", host.files(), SETTINGS))
    point_active(host.paths, activation)
    before = tree(disk.root)
    assert len(before) > 3 * FILES
    with disk.after_power_cut() as found:
        assert differing(before, tree(found)) == []
        active = found / "host/etc/shop/active"
        assert str(active.readlink()) == f"activations/{activation}"
        assert {item.name for item in active.iterdir()} == {*host.paths.files(), "activation.json", "release"}


def test_a_release_an_activation_and_a_switch_survive_each_on_its_own(disk: Disk) -> None:
    host = Host(Paths("shop", disk.root / "host"))
    write_release(host, "r1")
    with disk.after_power_cut() as found:
        assert differing(tree(disk.root), tree(found)) == []
    activation = stage(host.paths, plan_files(host.paths, "r1", host.files(), SETTINGS))
    staged = tree(disk.root)
    with disk.after_power_cut() as found:
        assert differing(staged, tree(found)) == []
    # a second activation, cut before the flip: the first is still the active one, whole
    point_active(host.paths, activation)
    before = tree(disk.root)
    other = stage(host.paths, plan_files(host.paths, "r1", host.files(environment="A=1\n"), SETTINGS))
    with disk.after_power_cut() as found:
        assert differing(before, tree(found)) == []
    point_active(host.paths, other)
    with disk.after_power_cut() as found:
        assert (found / "host/etc/shop/active/environment").read_text() == "A=1\n"


def test_a_record_survives_as_soon_as_it_is_written(disk: Disk) -> None:
    paths = Host(Paths("shop", disk.root / "host")).paths
    write_json(paths.state / "state.json", {"serving": "one"})
    append_history(paths, {"run": "1", "release": "r1"})
    os.sync()
    append_history(paths, {"run": "2", "release": "r2"})
    with disk.after_power_cut() as found:
        survived = Paths("shop", found / "host")
        assert [item["release"] for item in read_history(survived)] == ["r1", "r2"]
    write_json(paths.state / "state.json", {"serving": "two"})
    with disk.after_power_cut() as found:
        assert read_json(Paths("shop", found / "host").state / "state.json") == {"serving": "two"}
    write_json(paths.state / "switch.json", {"to": "two"})
    with disk.after_power_cut() as found:
        assert read_json(Paths("shop", found / "host").state / "switch.json") == {"to": "two"}


def test_the_first_line_of_a_history_survives(disk: Disk) -> None:
    paths = Host(Paths("shop", disk.root / "host")).paths
    os.sync()
    append_history(paths, {"run": "1", "release": "r1"})
    with disk.after_power_cut() as found:
        assert [item["release"] for item in read_history(Paths("shop", found / "host"))] == ["r1"]


def _switch_for_ever(host: Host) -> None:
    """Switch from one activation to the next, as the engine does, until somebody ends this process."""
    paths, served = host.paths, [""]
    for number in itertools.count():
        files = plan_files(paths, "r1", host.files(environment=f"NUMBER={number}\n" * (1 + number % 50)), SETTINGS)
        target = stage(paths, files)
        write_json(paths.state / "switch.json", {"from": served[-1], "to": target})
        point_active(paths, target)
        served.append(target)
        host.state(serving=target, served=served[-50:])
        (paths.state / "switch.json").unlink()
        append_history(paths, {"run": str(number), "release": target})
        prune(paths, 2)


def test_at_any_moment_of_any_switch_a_whole_activation_is_active(disk: Disk) -> None:
    host = Host(Paths("shop", disk.root / "host"))
    write_release(host, "r1")
    point_active(host.paths, host.activation("r1"))
    switching = multiprocessing.get_context("fork").Process(target=_switch_for_ever, args=(host,), daemon=True)
    switching.start()
    found_active = set()
    try:
        for cut in range(CUTS):
            time.sleep(0.05 + 0.013 * cut)
            assert switching.pid
            os.kill(switching.pid, signal.SIGSTOP)
            if cut % 2:
                disk.journal()
            with disk.after_power_cut() as found:
                survived = Paths("shop", found / "host")
                active = survived.active.resolve()
                files = {item.name: item.read_text() for item in active.iterdir() if not item.is_symlink()}
                # the id of an activation is the hash of its content
                assert activation_id(files) == active.name
                state = read_json(survived.state / "state.json")
                switch = read_json(survived.state / "switch.json")
                assert active.name in (state.get("serving", active.name), switch.get("to"))
                read_history(survived)
                found_active.add(active.name)
            os.kill(switching.pid, signal.SIGCONT)
            assert switching.is_alive()
    finally:
        switching.kill()
        switching.join(10)
    assert len(found_active) > CUTS / 2


def test_without_syncing_files_are_lost_so_these_tests_can_fail(disk: Disk) -> None:
    """At one of several attempts: a sync of another process, at the same moment, saves them."""
    host = Host(Paths("shop", disk.root / "host"))
    lost = [written_without_sync(disk, host, attempt) for attempt in range(ATTEMPTS)]
    assert FILES in lost, lost


def written_without_sync(disk: Disk, host: Host, attempt: int) -> int:
    """Write files and a link to them without sync, cut the power; returns how many of the files were there and lost."""
    os.sync()
    for number in range(FILES):
        (host.paths.state / f"{attempt}-{number}.py").write_bytes(CONTENT[number:])
    link = host.paths.active.with_name(f"naive{attempt}")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("activations/naive")
    before = tree(disk.root)
    disk.journal()
    with disk.after_power_cut() as found:
        after = tree(found)
        lost = differing(before, after)
        assert f"host/etc/shop/naive{attempt}" not in lost
        return sum(name in after for name in lost)
