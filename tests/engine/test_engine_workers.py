"""What the engine takes for a process and for a worker that is ready."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import bareforge
from plugins.modules.bareforge import (
    EngineError,
    Worker,
    await_generation,
    confirm,
    end_process,
    point_active,
    process_status,
    read_pid,
    status,
    wait_for,
    workers,
)
from tests.engine.host import SETTINGS, Host

# A process with a child; prints the child's number, hears no TERM, and neither does its child
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def mark(host: Host, **changes: Any) -> dict[str, Any]:
    """The marker of a worker, by default of this very process."""
    said = {"pid": os.getpid(), "master": os.getppid(), "release": "r1", "activation": "a1", "ready": True}
    said |= {"answer": "", **changes}
    directory = host.paths.runtime / "workers"
    directory.mkdir(exist_ok=True)
    (directory / f"{said['master']}.{said['pid']}.json").write_text(json.dumps(said))
    return said


@contextlib.contextmanager
def ended() -> Iterator[int]:
    """The number of a process that has ended and that its parent, this one, has not collected."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        assert wait_for(lambda: process_status(process.pid) is None, 10)
        yield process.pid
    finally:
        process.wait(10)


def test_a_worker_is_who_lives_and_has_the_parent_it_names(host: Host) -> None:
    assert workers(host.paths) == []
    said = mark(host)
    assert workers(host.paths) == [Worker(**said)]
    assert status(host.paths)["workers"] == [said]


def test_a_marker_of_somebody_who_is_gone_or_of_another_master_does_not_count(host: Host) -> None:
    mark(host, master=os.getpid())
    with ended() as pid:
        mark(host, pid=pid, master=os.getpid())
        assert workers(host.paths) == []


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", "{}", '{"pid": 1, "master": 0}', "null"])
def test_half_a_marker_is_none(host: Host, text: str) -> None:
    said = mark(host)
    (host.paths.runtime / "workers/1.2.json").write_text(text)
    assert workers(host.paths) == [Worker(**said)]


def test_a_process_that_was_not_collected_has_ended(tmp_path: Path) -> None:
    with ended() as pid:
        assert Path(f"/proc/{pid}/stat").exists()
        assert process_status(pid) is None
        (tmp_path / "pid").write_text(f"{pid}\n")
        assert read_pid(tmp_path / "pid") == 0


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "self", "4194304999"])
def test_a_pid_file_that_names_no_process_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert read_pid(tmp_path / "pid") == 0
    assert read_pid(tmp_path / "nothing") == 0


def test_the_parent_is_found_whatever_a_process_is_called(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/usr/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        assert wait_for(lambda: ") S 1 (" in Path(f"/proc/{process.pid}/stat").read_text(), 10)
        found = process_status(process.pid)
        assert found
        assert found[1] == os.getpid()
    finally:
        process.kill()
        process.wait(10)


def test_a_process_that_hears_no_term_is_killed_with_its_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        started = time.monotonic()
        end_process(process.pid, 0.5)
        assert 0.5 <= time.monotonic() - started < 5
        assert process_status(process.pid) is None
        # nobody would tell it to end any more, and it would serve on
        assert wait_for(lambda: process_status(child) is None, 5)
    finally:
        process.wait(10)
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def settings(**changes: str) -> dict[str, Any]:
    return {**SETTINGS, "release": "r1", "workers": "1", "start_timeout": "0.3", **changes}


def test_a_generation_is_there_when_all_its_workers_are_ready(host: Host) -> None:
    mark(host)
    await_generation(host.paths, os.getppid(), settings())


@pytest.mark.parametrize(
    ("marker", "wanted", "cause"),
    [
        ({}, {"workers": "2"}, "1 of 2 workers became ready within 0.3 s"),
        (
            {"ready": False, "answer": "GET /ready answered 503"},
            {},
            "0 of 1 workers became ready within 0.3 s, the others say: GET /ready answered 503",
        ),
        ({"ready": False}, {}, "0 of 1 workers became ready within 0.3 s"),
        ({"release": "r0"}, {}, "workers run release r0 instead of r1"),
    ],
)
def test_a_generation_that_is_not_there_says_why(
    host: Host, marker: dict[str, Any], wanted: dict[str, str], cause: str
) -> None:
    mark(host, **marker)
    with pytest.raises(EngineError) as refusal:
        await_generation(host.paths, os.getppid(), settings(**wanted))
    assert str(refusal.value) == cause


def test_workers_of_the_generation_before_do_not_count(host: Host) -> None:
    mark(host)
    with pytest.raises(EngineError, match=r"^0 of 1 workers became ready within 0\.3 s$"):
        await_generation(host.paths, os.getppid(), settings(), frozenset({os.getpid()}))


def test_a_master_that_has_ended_is_not_waited_for(host: Host) -> None:
    with ended() as pid, pytest.raises(EngineError) as refusal:
        await_generation(host.paths, pid, settings(start_timeout="60"))
    assert str(refusal.value) == f"master {pid} ended before its workers were ready"


def test_a_pid_file_that_is_written_anew_is_read_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn removes it for a moment at a HUP. With a real one: molecule/zero_loss/tests/test_cutover.py."""
    point_active(host.paths, host.activation("r1"))
    reads = iter([os.getppid()])
    monkeypatch.setattr(bareforge, "unit_properties", lambda _: {"MainPID": str(os.getppid())})
    monkeypatch.setattr(bareforge, "read_pid", lambda _: next(reads, 0))
    monkeypatch.setattr(bareforge, "await_generation", lambda _paths, master, *_: seen.append(master))
    monkeypatch.setattr(bareforge, "workers", lambda _: [])
    monkeypatch.setattr(bareforge, "running_activation", lambda _: "")
    seen: list[int] = []
    confirm(host.paths, frozenset(), 1)
    assert seen == [os.getppid()]
