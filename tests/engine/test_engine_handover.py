"""The hand-over, with the real gunicorn, the runtime's worker class and the project's own configuration."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.modules.bareforge import (
    EngineError,
    Paths,
    children,
    handover,
    process_status,
    read_json,
    reload_command,
    successor,
    wait_for,
    workers,
    write_json,
)
from tests.engine.host import Host
from tests.engine.serving import PATIENCE, Load, Service, adopting

FORK = multiprocessing.get_context("fork")
ENDED = r"master \d+ ended before its workers were ready"
LATE = r"0 of 2 workers became ready within 2 s"
# name: (what the release does, the cause that is named)
BAD = {
    "raises": ({"at_import": "raise RuntimeError('no such thing')"}, ENDED),
    "lacks": ({"at_import": "import nonsense"}, ENDED),
    "misspelt": ({"at_import": "this is no Python"}, ENDED),
    "fails": ({"at_startup": "await send({'type': 'lifespan.startup.failed'})"}, ENDED),
    "unready": ({"ready": "503"}, rf"{LATE}, the others say: GET /ready answered 503"),
    "hangs": ({"at_import": "time.sleep(600)"}, LATE),
    "starts-for-ever": ({"at_startup": "await asyncio.sleep(600)"}, LATE),
}


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Service]:
    with adopting():
        found = Service(Host(Paths("shop", root)))
        found.release("r1")
        found.flip("r1")
        try:
            found.start()
            yield found
        finally:
            found.end()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An application that serves r1."""
    with serving(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that serves r1 whatever the tests try; each of them finds it as the first one did."""
    with serving(tmp_path_factory.mktemp("lasting")) as found:
        yield found


def serves(service: Service, master: int, release: str) -> None:
    """All there is: this master in its pid file, its two workers with the release, and no other process."""
    assert service.master() == master
    assert successor(master) == 0
    assert not (service.paths.runtime / "gunicorn.pid.2").exists()
    found = workers(service.paths)
    assert [(item.master, item.release, item.ready) for item in found] == 2 * [(master, release, True)]
    assert service.processes() == service.generation(master) == {master, *(item.pid for item in found)}


def test_a_new_release_takes_over_without_a_lost_request(service: Service) -> None:
    old = service.master()
    service.release("r2")
    activation = service.flip("r2")
    with Load(service.socket) as load, Load(service.socket, "/slow") as slow:
        assert wait_for(lambda: load.releases["r1"] > 20, PATIENCE)
        said = handover(service.paths)
        seen = load.releases["r2"]
        assert wait_for(lambda: load.releases["r2"] > seen + 20 and slow.releases["r2"] > 0, PATIENCE)
    new = service.master()
    assert (load.failures, slow.failures) == ([], [])
    assert set(load.releases) == {"r1", "r2"}
    assert re.fullmatch(rf"master {old} handed over to {new}, 2 workers ready, \d+\.\d s", said)
    assert process_status(old) is None
    serves(service, new, "r2")
    assert {item.activation for item in workers(service.paths)} == {activation}
    # and back, which needs the listener that the new master was given
    service.flip("r1")
    with Load(service.socket) as load:
        handover(service.paths)
    assert load.failures == []
    serves(service, service.master(), "r1")
    assert service.master() not in (old, new)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_release_leaves_the_old_one_alone(lasting: Service, name: str) -> None:
    old = lasting.master()
    release, cause = BAD[name]
    lasting.release(name, **release)
    # longer than the engine waits for a master whose workers serve nothing
    lasting.flip(name, start_timeout=2, extra="graceful_timeout = 30")
    with Load(lasting.socket) as load:
        with pytest.raises(EngineError) as refusal:
            handover(lasting.paths)
        seen = load.releases["r1"]
        assert wait_for(lambda: load.releases["r1"] > seen + 20, PATIENCE)
    assert re.fullmatch(cause, str(refusal.value))
    assert load.failures == []
    serves(lasting, old, "r1")


def test_a_master_that_dies_at_once_is_not_waited_for(lasting: Service) -> None:
    """One worker that fails at once: pid file and master are gone within a tenth of a second."""
    lasting.release("brief", at_import="raise RuntimeError('no such thing')")
    lasting.flip("brief", extra="workers = 1")
    for _ in range(5):
        with pytest.raises(EngineError, match=f"^{ENDED}$"):
            handover(lasting.paths)
    serves(lasting, lasting.master(), "r1")


def killed(service: Service, moment: Callable[[], bool]) -> None:
    """Begin a hand-over in a process of its own and kill that at a moment."""
    engine = FORK.Process(target=handover, args=(service.paths,), daemon=True)
    engine.start()
    try:
        assert wait_for(moment, PATIENCE)
    finally:
        engine.kill()
        engine.join(PATIENCE)


@pytest.mark.parametrize("name", ["unready", "hangs"])
def test_what_a_killed_hand_over_left_is_removed_by_the_next(lasting: Service, name: str) -> None:
    old = lasting.master()
    lasting.release(f"left-{name}", **BAD[name][0])
    lasting.flip(f"left-{name}")
    # at the first moment, when it has not yet written its pid file
    killed(lasting, lambda: successor(old) != 0)
    left = successor(old)
    assert left
    lasting.release(f"after-{name}", **BAD["raises"][0])
    lasting.flip(f"after-{name}")
    with Load(lasting.socket) as load, pytest.raises(EngineError, match=f"^{ENDED}$") as refusal:
        handover(lasting.paths)
    assert f"master {left} " not in str(refusal.value)
    assert load.failures == []
    assert process_status(left) is None
    serves(lasting, old, "r1")


def test_a_master_that_has_no_time_for_the_end_of_what_was_left_is_waited_for(lasting: Service) -> None:
    """It would serve USR2 first, and ignore it, since it had a successor for all it knew."""
    old = lasting.master()
    lasting.release("left-behind", **BAD["unready"][0])
    lasting.flip("left-behind")
    killed(lasting, lambda: successor(old) != 0)
    left = successor(old)
    lasting.release("after-behind", **BAD["raises"][0])
    lasting.flip("after-behind")
    os.kill(old, signal.SIGSTOP)
    try:
        # it may have come to start workers, which end when they notice that it is gone
        kin = [left, *children(left)]
        os.kill(left, signal.SIGKILL)
        assert wait_for(lambda: all(process_status(pid) is None for pid in kin), PATIENCE)
        going_on = threading.Timer(1, os.kill, (old, signal.SIGCONT))
        going_on.start()
        with pytest.raises(EngineError, match=f"^{ENDED}$"):
            handover(lasting.paths)
        going_on.join()
    finally:
        os.kill(old, signal.SIGCONT)
    serves(lasting, old, "r1")


def test_a_hand_over_that_is_killed_while_the_old_master_ends_is_finished_by_gunicorn(service: Service) -> None:
    old = service.master()
    service.release("r2")
    service.flip("r2")
    with Load(service.socket) as load:
        killed(service, lambda: process_status(old) is None)
        assert wait_for(lambda: service.master() not in (0, old), PATIENCE)
        serves(service, service.master(), "r2")
        service.flip("r1")
        handover(service.paths)
    assert load.failures == []
    serves(service, service.master(), "r1")


def test_without_a_master_there_is_nothing_to_hand_over(host: Host) -> None:
    host.paths.active.symlink_to(f"activations/{host.activation('r1')}")
    pidfile = host.paths.runtime / "gunicorn.pid"
    for text in (None, str(os.getpid() + 2**22)):
        if text:
            pidfile.write_text(text)
        with pytest.raises(EngineError) as refusal:
            handover(host.paths)
        assert str(refusal.value) == f"no master runs according to {pidfile}; start it: systemctl start shop"


def test_a_reload_that_nobody_has_proven_checks_first_and_touches_nothing(lasting: Service) -> None:
    before = lasting.log.read_text().count("Handling signal: usr2")
    lasting.release("unproven", at_import="import nonsense")
    lasting.flip("unproven")
    outcome = lasting.paths.runtime / "handover.json"
    outcome.write_text('{"cause": "of another reload"}')
    with pytest.raises(EngineError, match=r"nonsense") as refusal:
        reload_command(lasting.paths)
    assert read_json(outcome) == {"cause": str(refusal.value)}
    assert lasting.log.read_text().count("Handling signal: usr2") == before
    serves(lasting, lasting.master(), "r1")


def test_a_reload_of_a_switch_tells_it_why_it_failed(lasting: Service) -> None:
    lasting.release("switched", at_import="import nonsense")
    write_json(lasting.paths.state / "switch.json", {"to": lasting.flip("switched")})
    try:
        with pytest.raises(EngineError, match=f"^{ENDED}$") as refusal:
            reload_command(lasting.paths)
    finally:
        (lasting.paths.state / "switch.json").unlink()
    assert read_json(lasting.paths.runtime / "handover.json") == {"cause": str(refusal.value)}
    serves(lasting, lasting.master(), "r1")


def test_a_reload_by_hand_gives_a_new_generation_of_the_same_release(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    old = service.master()
    reload_command(service.paths)
    serves(service, service.master(), "r1")
    assert service.master() != old
    assert capsys.readouterr().out.startswith(f"bareforge: master {old} handed over to {service.master()}, 2 workers")
    assert not (service.paths.runtime / "handover.json").exists()
