"""Worker markers, under the real gunicorn: a worker says of itself whether it is ready."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bareforge_runtime import markers
from bareforge_runtime.waiting import alive

from tests.runtime.conftest import APPLICATION, Gunicorn, Server, write_secrets

# /ready: answers what the file "answer" in the directory of the test says, and counts how often it was asked.
ASKED = APPLICATION.replace(
    """    path = scope["path"]
""",
    """    path = scope["path"]
    if path == os.environ.get("BAREFORGE_READY_PATH", "/ready").partition("?")[0]:
        with open("asked", "a") as asked:
            asked.write(f"{path} {scope['query_string'].decode()} {dict(scope['headers'])[b'host'].decode()}\\n")
        await ready(scope, send)
        return
""",
)
ANSWERED = (
    ASKED
    + """
async def ready(scope, send):
    status = int(open("answer").read())
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
"""
)


def until(condition: Callable[[], object], seconds: float = 10) -> float:
    """Return how long it took until the condition came true."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "too late"
        time.sleep(0.02)
    return time.monotonic() - started


def said(directory: Path, server: Server) -> list[markers.Marker]:
    return markers.read(directory, server.process.pid)


def test_a_ready_worker_says_so_once(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "run/workers"
    server = gunicorn.start(
        # a service hides its files
        source="import os\nos.umask(0o077)\n" + ANSWERED,
        configuration="raw_env = ['BAREFORGE_ACTIVATION=0123456789ab']\n",
        BAREFORGE_MARKERS=str(directory),
        BAREFORGE_READY_PATH="/healthy?deep=1",
        BAREFORGE_READY_HOST="app.example",
    )
    (tmp_path / "answer").write_text("200")
    until(lambda: said(directory, server))
    master, worker = server.pids()
    file = directory / f"{master}.{worker}.json"
    assert json.loads(file.read_text()) == {
        "pid": worker,
        "master": master,
        "release": "development",
        "activation": "0123456789ab",
        "ready": True,
        "answer": "",
    }
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(directory.iterdir()) == [file]
    time.sleep(0.8)
    assert (tmp_path / "asked").read_text() == "/healthy deep=1 app.example\n"
    assert server.access_log.read_text() == "", "what it asks itself is no access"


def test_not_ready_until_it_is_and_serving_meanwhile(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory, answer = tmp_path / "workers", tmp_path / "answer"
    answer.write_text("503")
    server = gunicorn.start(source=ANSWERED, BAREFORGE_MARKERS=str(directory))
    server.wait_until_serving()
    until(lambda: said(directory, server))
    (marker,) = said(directory, server)
    assert (marker.ready, marker.answer) == (False, "GET /ready answered 503")
    written = (directory / marker.name).stat().st_mtime_ns
    asked = len((tmp_path / "asked").read_text().splitlines())
    time.sleep(1.1)
    assert (directory / marker.name).stat().st_mtime_ns == written, "rewritten only when it changes"
    assert 3 <= len((tmp_path / "asked").read_text().splitlines()) - asked <= 5, "four times a second"
    answer.write_text("500")
    until(lambda: said(directory, server)[0].answer == "GET /ready answered 500")
    answer.write_text("200")
    until(lambda: said(directory, server)[0].ready)
    assert said(directory, server)[0].answer == ""


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("raise OSError('no ' + os.environ['APP_SECRET_KEY'])", "GET /ready raised OSError"),
        ("raise SystemExit(3)", "GET /ready raised SystemExit"),
        ("raise asyncio.CancelledError", "GET /ready raised CancelledError"),
        ("pass", "GET /ready gave no answer"),
    ],
)
def test_what_is_wrong(gunicorn: Gunicorn, tmp_path: Path, body: str, answer: str) -> None:
    directory = tmp_path / "workers"
    secrets = write_secrets(tmp_path / "secrets", kv={"APP_SECRET_KEY": "correct-horse"})
    source = f"{ASKED}\nasync def ready(scope, send):\n    {body}\n"
    server = gunicorn.start(source=source, BAREFORGE_MARKERS=str(directory), BAREFORGE_SECRETS=str(secrets))
    server.wait_until_serving()
    until(lambda: said(directory, server))
    assert said(directory, server)[0].answer == answer
    time.sleep(0.5)
    assert server.get("/")[0] == 200
    assert len(said(directory, server)) == 1, "the worker lives on"


def test_no_answer_in_time(gunicorn: Gunicorn, tmp_path: Path) -> None:
    """What cannot be cancelled must end before the next question, or they would pile up."""
    directory = tmp_path / "workers"
    source = (
        ASKED
        + """
async def ready(scope, send):
    loop = asyncio.get_running_loop()
    end = loop.time() + (6.5 if len(open("asked").readlines()) == 1 else 0)
    while loop.time() < end:
        try:
            await asyncio.sleep(end - loop.time())
        except asyncio.CancelledError:
            pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
"""
    )
    server = gunicorn.start(source=source, BAREFORGE_MARKERS=str(directory))
    server.wait_until_serving()
    assert until(lambda: said(directory, server)) > 4
    assert said(directory, server)[0].answer == "GET /ready gave no answer within 5 s"
    time.sleep(0.8)
    asked = tmp_path / "asked"
    assert len(asked.read_text().splitlines()) == 1
    until(lambda: said(directory, server)[0].ready)
    assert len(asked.read_text().splitlines()) == 2


def test_an_answer_that_can_be_cancelled_is(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "workers"
    source = (
        ASKED
        + """
async def ready(scope, send):
    if len(open("asked").readlines()) == 1:
        await asyncio.sleep(60)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
"""
    )
    server = gunicorn.start(source=source, BAREFORGE_MARKERS=str(directory))
    server.wait_until_serving()
    until(lambda: said(directory, server))
    assert said(directory, server)[0].answer == "GET /ready gave no answer within 5 s"
    assert until(lambda: said(directory, server)[0].ready) < 3


def test_removed_when_the_worker_ends(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "workers"
    (tmp_path / "answer").write_text("200")
    server = gunicorn.start(source=ANSWERED, BAREFORGE_MARKERS=str(directory))
    until(lambda: said(directory, server))
    (first,) = said(directory, server)
    os.kill(first.pid, signal.SIGTERM)
    until(lambda: [marker.pid for marker in said(directory, server)] not in ([first.pid], []))
    os.kill(server.process.pid, signal.SIGQUIT)
    server.process.wait(10)
    assert list(directory.iterdir()) == []


def test_what_an_earlier_process_left_does_not_count(gunicorn: Gunicorn, tmp_path: Path) -> None:
    """The number of a worker that was killed may come again."""
    directory = tmp_path / "workers"
    directory.mkdir()
    (tmp_path / "answer").write_text("200")
    source = ANSWERED.replace("        while True:", "        await asyncio.sleep(1.5)\n        while True:", 1)
    configuration = f"""
import os
def post_fork(server, worker):
    open(f"{directory}/{{server.pid}}.{{os.getpid()}}.json", "w").write("left behind")
"""
    server = gunicorn.start(source=source, configuration=configuration, BAREFORGE_MARKERS=str(directory))
    until(lambda: "Waiting for application startup" in server.error_log.read_text())
    assert list(directory.iterdir()) == []
    until(lambda: said(directory, server))


def test_a_directory_that_cannot_be_written_is_one_warning(gunicorn: Gunicorn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "answer").write_text("503")
    server = gunicorn.start(source=ANSWERED, BAREFORGE_MARKERS=str(tmp_path / "file/workers"))
    server.wait_until_serving()
    time.sleep(1)
    lines = [line for line in server.error_log.read_text().splitlines() if "bareforge-runtime:" in line]
    assert len(lines) == 1, lines
    assert re.search(
        rf"\[WARNING\] bareforge-runtime: cannot write {tmp_path}/file/workers/\d+\.\d+\.json: "
        "not a directory; BAREFORGE_MARKERS must name a directory that this user can write$",
        lines[0],
    )
    assert server.get("/")[0] == 200


def longest_wait(server: Server, seconds: float) -> float:
    """Ask ten times a second; return the longest time that an answer took."""
    longest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        assert server.get("/")[0] == 200
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.1)
    return longest


@pytest.mark.parametrize("with_markers", [True, False])
def test_hang_up_waits_for_the_new_workers(gunicorn: Gunicorn, tmp_path: Path, with_markers: bool) -> None:
    """Without markers nobody knows when the new ones can serve: the control of the test."""
    (tmp_path / "answer").write_text("200")
    source = ANSWERED.replace("        while True:", "        await asyncio.sleep(1.5)\n        while True:", 1)
    settings = {"BAREFORGE_MARKERS": str(tmp_path / "workers")} if with_markers else {}
    server = gunicorn.start(source=source, configuration="", **settings)
    server.wait_until_serving()
    os.kill(server.process.pid, signal.SIGHUP)
    assert (longest_wait(server, 4) < 1) == with_markers


def test_a_worker_that_stops_does_not_wait_for_another_that_stops(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "workers"
    (tmp_path / "answer").write_text("200")
    server = gunicorn.start(
        source=ANSWERED,
        configuration="workers = 2\n",
        BAREFORGE_MARKERS=str(directory),
        BAREFORGE_DRAIN_SECONDS="2.5",
    )
    until(lambda: len(said(directory, server)) == 2)
    older, younger = sorted(server.pids()[1:])
    os.kill(younger, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(older, signal.SIGTERM)
    assert until(lambda: not alive(older)) < 4, "2.5 s of its own, not those of the other one before"


def test_text_and_back() -> None:
    marker = markers.Marker(7, 3, "r1", "abc", ready=False, answer="GET /ready answered 503")
    assert markers.parse(marker.text()) == marker
    assert marker.name == "3.7.json"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 7}'])
def test_no_marker(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a marker|Expecting"):
        markers.parse(text)


def test_read_takes_what_is_there(tmp_path: Path) -> None:
    good, other = markers.Marker(7, 3, "r1", "abc"), markers.Marker(8, 4, "r1", "abc")
    for marker in (good, other):
        (tmp_path / marker.name).write_text(marker.text())
    (tmp_path / "3.9.json").write_text("{")
    assert markers.read(tmp_path, 3) == [good]
    assert markers.read(tmp_path / "absent", 3) == []
