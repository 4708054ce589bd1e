"""The lock of a host: one run at a time, renewed while it goes on, free when it is over or dead."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from plugins.modules.bareforge import (
    EngineError,
    Paths,
    acquire,
    alone,
    describe_lock,
    holder,
    read_json,
    refuse_locked,
    release_lock,
    write_json,
)
from tests.engine.host import NODE, Host

FORK = multiprocessing.get_context("fork")
RACES = 50
PATIENCE = 30


def run(name: str) -> dict[str, Any]:
    return {"id": name, "owner": f"{name}@desk"}


def lock(host: Host) -> dict[str, Any]:
    return read_json(host.paths.state / "lock.json")


def test_a_lock_is_taken_refused_to_another_given_up_and_taken_again(host: Host) -> None:
    paths = host.paths
    assert holder(paths) == {}
    assert acquire(paths, run("alice"), "deploy", 30) == {}
    assert acquire(paths, run("bob"), "rollback", 30)["owner"] == "alice@desk"
    assert lock(host)["id"] == "alice"
    assert not release_lock(paths, run("bob"))
    assert release_lock(paths, run("alice"))
    assert not release_lock(paths, run("alice"))
    assert acquire(paths, run("bob"), "rollback", 30) == {}
    assert (lock(host)["id"], lock(host)["what"]) == ("bob", "rollback")


def test_a_lock_is_renewed_by_its_run_and_says_since_when(host: Host) -> None:
    acquire(host.paths, run("alice"), "deploy", 1)
    before = lock(host)
    time.sleep(0.05)
    assert acquire(host.paths, run("alice"), "another word", 5) == {}
    after = lock(host)
    assert (after["acquired"], after["what"]) == (before["acquired"], "deploy")
    assert 240 < after["expires"] - before["expires"] < 241
    # each step of the run renews, for as long as the lock was taken for
    time.sleep(0.05)
    refuse_locked(host.paths, run("alice"))
    assert lock(host)["expires"] > after["expires"]
    assert lock(host)["minutes"] == 5


def test_a_step_of_another_run_is_refused(host: Host) -> None:
    acquire(host.paths, run("alice"), "deploy", 30)
    with pytest.raises(EngineError, match=r"^shop is locked on .* by alice@desk \(deploy\) since "):
        refuse_locked(host.paths, run("bob"))
    assert lock(host)["id"] == "alice"


def test_a_lock_that_nobody_renews_expires(host: Host) -> None:
    acquire(host.paths, run("alice"), "deploy", 30)
    write_json(host.paths.state / "lock.json", {**lock(host), "expires": time.time() - 1})
    assert holder(host.paths) == {}
    refuse_locked(host.paths, run("bob"))
    assert acquire(host.paths, run("bob"), "rollback", 30) == {}
    assert lock(host)["acquired"] > time.time() - 5


def test_the_lock_of_a_dead_run_is_taken_over_but_not_that_of_another(host: Host) -> None:
    acquire(host.paths, run("dead"), "deploy", 30)
    assert acquire(host.paths, run("bob"), "rollback", 30, steal="other")["id"] == "dead"
    assert acquire(host.paths, run("bob"), "rollback", 30, steal="dead") == {}
    assert (lock(host)["id"], lock(host)["what"]) == ("bob", "rollback")
    # somebody else was quicker
    assert acquire(host.paths, run("carol"), "deploy", 30, steal="dead")["id"] == "bob"


def test_unlock_takes_it_from_whoever_holds_it(host: Host) -> None:
    acquire(host.paths, run("alice"), "deploy", 30)
    assert release_lock(host.paths, None)
    assert not release_lock(host.paths, None)


def test_who_is_refused_reads_who_since_when_how_long_and_what_to_do(host: Host) -> None:
    now = time.time()
    held = {**run("alice"), "what": "deploy", "acquired": now - 65.5, "expires": now + 1734.5, "minutes": 30}
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 65.5))
    assert describe_lock(host.paths, held) == (
        f"shop is locked on {NODE} by alice@desk (deploy) since {since}, 65 s ago, expires in 1734 s unless it goes on"
        "; wait for it with -e deploy_wait=600, or if that run is dead: ansible-playbook playbooks/unlock.yml"
    )


def _race(root: Path, name: str, start: Barrier, results: Any) -> None:
    paths, outcome = Paths("shop", root), []
    for _ in range(RACES):
        start.wait(PATIENCE)
        outcome.append(acquire(paths, run(name), "race", 30).get("id", "won"))
        start.wait(PATIENCE)
        release_lock(paths, run(name))
    results.put((name, outcome))


def test_of_two_processes_that_want_the_lock_at_once_exactly_one_gets_it_every_time(host: Host) -> None:
    start, results = FORK.Barrier(2), FORK.Queue()
    racers = [
        FORK.Process(target=_race, args=(host.paths.root, name, start, results), daemon=True)
        for name in ("alice", "bob")
    ]
    for racer in racers:
        racer.start()
    outcome = dict(results.get(timeout=PATIENCE) for _ in racers)
    for racer in racers:
        racer.join(PATIENCE)
    # the loser is told who won
    pairs = list(zip(outcome["alice"], outcome["bob"], strict=True))
    assert len(pairs) == RACES
    assert [pair for pair in pairs if pair not in (("won", "alice"), ("bob", "won"))] == []


def _ask(root: Path, ended: Any) -> None:
    while not ended.is_set():
        acquire(Paths("shop", root), run("waiting"), "deploy", 30)
        time.sleep(0.001)


def test_a_run_that_waits_for_the_lock_does_not_disturb_the_one_that_holds_it(host: Host) -> None:
    acquire(host.paths, run("alice"), "deploy", 30)
    ended = FORK.Event()
    waiting = FORK.Process(target=_ask, args=(host.paths.root, ended), daemon=True)
    waiting.start()
    try:
        for _ in range(100):
            refuse_locked(host.paths, run("alice"))
            assert waiting.is_alive()
        assert release_lock(host.paths, run("alice"))
    finally:
        ended.set()
        waiting.join(PATIENCE)
    assert waiting.exitcode == 0


def _hold(root: Path, held: Any) -> None:
    with alone(Paths("shop", root), "switch"):
        held.set()
        time.sleep(PATIENCE)


def test_two_switches_at_once_are_refused_until_the_first_has_died(host: Host) -> None:
    held = FORK.Event()
    other = FORK.Process(target=_hold, args=(host.paths.root, held), daemon=True)
    other.start()
    assert held.wait(PATIENCE)
    with pytest.raises(EngineError) as refusal, alone(host.paths, "switch"):
        pytest.fail("two at once")
    assert str(refusal.value) == f"another process is changing shop on {NODE} right now; wait until it has ended"
    assert other.pid
    os.kill(other.pid, 9)
    other.join(PATIENCE)
    with alone(host.paths, "switch"):
        pass
