"""Turns for the import of the application: half of the cores, nobody for ever, nobody behind the dead."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from bareforge_runtime.turns import places, turn

from tests.runtime.conftest import APPLICATION, Gunicorn

CORES = len(os.sched_getaffinity(0))
# says when it begins and when it ends, and takes its time in between
SLOW_IMPORT = (
    """
import os, time
with open("imports", "a") as imports:
    imports.write(f"begin {os.getpid()}\\n")
time.sleep(0.5)
with open("imports", "a") as imports:
    imports.write(f"end {os.getpid()}\\n")
"""
    + APPLICATION
)


def at_once(text: str) -> int:
    """How many imports were under way at the same moment, at most."""
    now = most = 0
    for line in text.splitlines():
        now += 1 if line.startswith("begin") else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_half_of_the_cores_at_least_one(cores: int, expected: int) -> None:
    assert places(cores) == expected


def test_workers_import_in_turn(gunicorn: Gunicorn, tmp_path: Path) -> None:
    server = gunicorn.start(
        source=SLOW_IMPORT, configuration=f"workers = {CORES + 1}\n", BAREFORGE_MARKERS=str(tmp_path / "run/workers")
    )
    server.wait_until_serving()
    deadline = time.monotonic() + 30
    while (said := (tmp_path / "imports").read_text()).count("end") <= CORES and time.monotonic() < deadline:
        time.sleep(0.1)
    assert said.count("end") == CORES + 1, said
    assert at_once(said) == places(CORES), said


def test_without_a_directory_for_markers_all_import_at_once(gunicorn: Gunicorn, tmp_path: Path) -> None:
    """What the test above sees is the turns, not the machine."""
    server = gunicorn.start(source=SLOW_IMPORT, configuration=f"workers = {CORES + 1}\n")
    server.wait_until_serving()
    time.sleep(1)
    assert at_once((tmp_path / "imports").read_text()) > places(CORES)


def test_the_wait_ends_when_a_turn_does_and_beats_meanwhile(tmp_path: Path) -> None:
    beats: list[float] = []
    with ExitStack() as holding:
        for _ in range(places(CORES)):
            assert holding.enter_context(turn(tmp_path, lambda: None))

        def beat() -> None:
            beats.append(time.monotonic())
            if len(beats) == 3:
                holding.close()

        with turn(tmp_path, beat) as held:
            assert held
    assert len(beats) == 3


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with ExitStack() as holding:
        for _ in range(places(CORES)):
            holding.enter_context(turn(tmp_path, lambda: None))
        started = time.monotonic()
        with turn(tmp_path, lambda: None, patience=0.3) as held:
            assert not held
        assert 0.3 <= time.monotonic() - started < 3


def test_a_turn_ends_although_a_child_of_the_import_lives_on(tmp_path: Path) -> None:
    with ExitStack() as holding:
        for _ in range(places(CORES)):
            holding.enter_context(turn(tmp_path, lambda: None))
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
    try:
        with turn(tmp_path, lambda: None, patience=1) as held:
            assert held
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_a_failed_import_ends_its_turn(tmp_path: Path) -> None:
    got: list[bool] = []

    def fail() -> None:
        with turn(tmp_path, lambda: None, patience=1) as held:
            got.append(held)
            raise ImportError

    for _ in range(places(CORES) + 1):
        with pytest.raises(ImportError):
            fail()
    assert all(got)


def test_where_no_file_can_be_made_nobody_waits(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with turn(blocked / "workers", lambda: pytest.fail("nothing to wait for")) as held:
        assert not held
