"""`python -m witness`: last line, files, exit codes, messages, ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.witness.misbehaving import Server
from witness.__main__ import main

ROOT = Path(__file__).parents[2]
QUICK = ("--rate", "40", "--steady", "0.3")
CLEAN = r"\d+ requests, 0 failed, 0 stalls, longest \d+ ms; releases r1 x \d+"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "witness", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    out, error = process.communicate(timeout=30)
    return process.returncode, out, error


def run(*arguments: str) -> tuple[int, str, str]:
    return finish(start(*arguments))


def wait_for_requests(server: Server, count: int) -> None:
    for _ in range(500):
        if server.requests >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{server.requests} requests after 10 s")


@pytest.fixture(scope="module", autouse=True)
def long_run() -> Iterator[subprocess.Popen[str]]:
    """Start a run of 5.4 s that goes on beside the other tests."""
    with Server() as own:
        process = start("--url", own.url, "--seconds", "5.4", "--rate", "10")
        yield process
        process.kill()
        process.wait()


def test_nothing_failed(server: Server, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "records.jsonl", "plot.html")]
    arguments = ["--json", str(files[0]), "--records", str(files[1]), "--plot", str(files[2])]
    code, out, error = run("--url", server.url, "--seconds", "0.5", "--rate", "40", *arguments)
    assert (code, error) == (0, "")
    assert re.fullmatch(r"20 requests, 0 failed, 0 stalls, longest \d+ ms; releases r1 x 20\n", out)
    document = json.loads(files[0].read_text())
    assert (document["requests"], document["statuses"], document["events"]) == (20, {"200": 20}, [])
    records = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert len(records) == 20
    assert records[0] | {"at": 0, "ms": 0, "connection": "new"} == {
        "at": 0, "ms": 0, "stream": "get fast", "target": server.url, "connection": "new",
        "status": 200, "failure": None, "release": "r1", "host": "app1", "pid": 41,
    }  # fmt: skip
    assert out.strip() in files[2].read_text()


def test_some_failed(server: Server) -> None:
    server.faults.extend(["", "503", "reset", "503"])
    code, out, error = run("--url", server.url, "--seconds", "0.5", "--rate", "40", "--post", "/echo", "--echo")
    assert code == 1
    expected = r"20 requests, 3 failed \(2 status 503, 1 reset\), 0 stalls, longest \d+ ms; releases r1 x 19\n"
    assert re.fullmatch(expected, out)
    lines = error.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"witness: first status 503: .* to {server.url}: answered with status 503", lines[0])
    assert re.fullmatch(r"witness: first reset: .* Connection reset by peer", lines[1])


def test_a_witness_that_was_held_up_says_so(server: Server, tmp_path: Path) -> None:
    """What was due meanwhile is sent all the same, and counted from when it was due."""
    told = tmp_path / "records.jsonl"
    process = start("--url", server.url, "--seconds", "2", "--rate", "40", "--records", str(told))
    wait_for_requests(server, 10)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.8)
    process.send_signal(signal.SIGCONT)
    code, out, error = finish(process)
    assert code == 0
    assert out.startswith("80 requests, 0 failed, ")
    assert re.fullmatch(r"witness: sent up to \d+ ms late, this machine was busy; stalls may be its own\n", error)
    late = [record["ms"] for record in map(json.loads, told.read_text().splitlines()) if record["ms"] > 250]
    assert 15 <= len(late) <= 30
    assert max(late) > 700


def test_a_violation_is_a_failure(server: Server) -> None:
    right = start("--url", server.url, "--seconds", "0.2", "--rate", "10", "--expect", "r0,r1")
    code, out, error = run("--url", server.url, "--seconds", "0.2", "--rate", "10", "--expect", "r0,r2")
    assert (code, out[:20]) == (1, "2 requests, 0 failed")
    assert error.count("witness: violation: get fast at 0.") == 2
    assert "answered by r1, expected r0 or r2" in error
    assert finish(right)[0] == 0


SCRIPTS = {"exit 0": 0, "exit 7": 7, "kill -9 $$": 137}


def test_a_command_and_its_exit_code(server: Server, tmp_path: Path) -> None:
    processes = [
        start(
            "--url", server.url, *QUICK, "--json", str(tmp_path / f"{code}.json"),
            "--", "sh", "-c", f"echo from the command; sleep 0.3; {script}",
        )
        for script, code in SCRIPTS.items()
    ]  # fmt: skip
    for code, process in zip(SCRIPTS.values(), processes, strict=True):
        got, out, error = finish(process)
        assert (got, error) == (code, "")
        assert re.fullmatch(rf"from the command\n{CLEAN}\n", out)
        document = json.loads((tmp_path / f"{code}.json").read_text())
        begins, ends = document["events"]
        assert (begins["name"], ends["name"]) == ("sh begins", "sh ends")
        assert 0.3 <= begins["at"] < 1
        assert 0.25 < ends["at"] - begins["at"] < 1.5
        assert 1.9 < document["seconds"] - ends["at"] < 3


def test_what_counts_beside_the_exit_code_of_a_command(server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with Server() as failing:
        failing.faults.append("503")
        outweighed = start("--url", failing.url, *QUICK, "--", "sh", "-c", "exit 7")
        code, out, error = run("--url", server.url, *QUICK, "--", str(broken))
        assert finish(outweighed)[0] == 1
    assert (code, error) == (126, "witness: broken cannot be started: Exec format error; correct it\n")
    assert re.fullmatch(rf"{CLEAN}\n", out)


def test_a_command_that_outlives_the_load_is_not_cut_off(server: Server) -> None:
    code, out, error = run("--url", server.url, *QUICK, "--seconds", "0.6", "--", "sh", "-c", "sleep 1; exit 5")
    assert (code, error) == (5, "witness: no more requests are sent, sh goes on\n")
    assert out.startswith("24 requests, 0 failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_report(server: Server, number: signal.Signals) -> None:
    process = start("--url", server.url, *QUICK)
    wait_for_requests(server, 5)
    process.send_signal(number)
    code, out, error = finish(process)
    assert (code, error) == (0, "")
    assert re.fullmatch(rf"{CLEAN}\n", out)


def test_sigterm_is_passed_on_to_the_command(server: Server) -> None:
    process = start("--url", server.url, *QUICK, "--", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
    wait_for_requests(server, 20)
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code == 9
    assert re.fullmatch(rf"{CLEAN}\n", out)


def test_a_signal_before_the_command(server: Server) -> None:
    process = start("--url", server.url, "--steady", "60", "--", "sleep", "0")
    wait_for_requests(server, 5)
    process.send_signal(signal.SIGTERM)
    code, _, error = finish(process)
    assert (code, error) == (143, "witness: ended before sleep was started\n")


def test_stop_file_and_events_file(server: Server, tmp_path: Path) -> None:
    stop, events, told = tmp_path / "stop", tmp_path / "events", tmp_path / "told.json"
    events.write_text("from an earlier run\n")
    files = ["--stop", str(stop), "--events", str(events), "--json", str(told)]
    process = start("--url", server.url, *QUICK, *files)
    wait_for_requests(server, 5)
    with events.open("a") as file:
        file.write("commit app1\n\nhalf a ")
    time.sleep(0.3)
    with events.open("a") as file:
        file.write("line\nnever ended")
    time.sleep(0.3)
    events.write_text("anew\n")
    time.sleep(0.3)
    stop.touch()
    code, _, error = finish(process)
    assert (code, error) == (0, "")
    seen = json.loads(told.read_text())["events"]
    assert [event["name"] for event in seen] == ["commit app1", "half a line", "anew"]
    assert seen[1]["at"] - seen[0]["at"] > 0.2


def test_the_events_file_may_come_later(server: Server, tmp_path: Path) -> None:
    events, told = tmp_path / "events", tmp_path / "told.json"
    process = start("--url", server.url, "--seconds", "1", "--events", str(events), "--json", str(told))
    wait_for_requests(server, 5)
    events.write_text("commit app1\n")
    assert finish(process)[0] == 0
    assert [event["name"] for event in json.loads(told.read_text())["events"]] == ["commit app1"]


USAGE = {
    (): "there is no target; name one with --url https://HOST:PORT",
    ("--url", "app1"): "--url app1 is no target; write https://HOST:PORT, http://HOST:PORT or unix:/PATH",
    ("--url", "http://127.0.0.1:1", "--rate", "x"): "argument --rate: invalid float value: 'x'; "
    "see scripts/witness --help",
    ("--urls", "http://127.0.0.1:1"): "unrecognized arguments: --urls http://127.0.0.1:1; see scripts/witness --help",
    ("--url", "http://127.0.0.1:1", "--expect", "r1"): "--expect needs two releases; write OLD,NEW",
    ("--url", "http://127.0.0.1:1", "--"): "no command follows --; name one, or leave -- out",
    ("--url", "http://127.0.0.1:1", "--", "no-such-command", "x"): "the command no-such-command is not found; "
    "correct its name or path",
    ("--url", "http://127.0.0.1:1", "--stop", "/"): "--stop / exists already; remove it and run again",
    ("--url", "http://127.0.0.1:1", "--json", "/none/a"): "/none/a cannot be written; "
    "name a file in a directory that exists and is yours",
    ("--url", "https://127.0.0.1:1", "--ca", "/none"): "--ca /none is not readable as a file of certificates; "
    "name a PEM file",
}


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"witness: {USAGE[arguments]}\n")


def test_wrong_arguments_of_the_program() -> None:
    assert run("--url") == (2, "", "witness: argument --url: expected one argument; see scripts/witness --help\n")


def test_help_names_every_option() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert out.startswith("usage: scripts/witness --url URL [option ...] [-- COMMAND [ARGUMENT ...]]\n")


def test_the_script_runs_it_from_anywhere(server: Server, tmp_path: Path) -> None:
    """The script as it is, in a tree whose setup has nothing to do."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/witness", tmp_path / "scripts")
    for name, content in {"scripts/setup": "", ".venv/bin/python": f'exec {sys.executable} "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "witness").symlink_to(ROOT / "witness")
    (tmp_path / "elsewhere").mkdir()
    script = [str(tmp_path / "scripts/witness")]
    arguments = ["--url", server.url, "--seconds", "0.2", "--rate", "10", "--json", "told.json"]
    done = subprocess.run(script + arguments, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{CLEAN}\n", done.stdout)
    assert (tmp_path / "elsewhere/told.json").exists()
    bare = subprocess.run(script, capture_output=True, text=True, timeout=30)
    assert (bare.returncode, bare.stdout[:13]) == (2, "witness --url")


def test_lines_on_the_way(long_run: subprocess.Popen[str]) -> None:
    code, _, error = finish(long_run)
    assert code == 0
    assert re.fullmatch(r"5 s: 5\d requests, 0 failed, p99 \d+ ms\n", error)
