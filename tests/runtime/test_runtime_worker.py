"""The worker class under the real gunicorn, over a unix socket."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.runtime.conftest import APPLICATION, Gunicorn, Server, write_secrets

SECRET = "correct-horse-battery-staple"
PASSWORD = "p@ss/word with space"
URL = "postgresql://app:p%40ss%2Fword%20with%20space@db:5432/app"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return write_secrets(tmp_path / "secrets", kv={"APP_SECRET_KEY": SECRET}, db={"APP_DATABASE_URL": URL})


def test_secret_is_in_worker_memory_only(gunicorn: Gunicorn, secrets: Path) -> None:
    server = gunicorn.start(BAREFORGE_SECRETS=str(secrets), APP_PLAIN="to-be-seen")
    server.wait_until_serving()
    assert server.get("/secret") == (200, SECRET.encode())
    pids = server.pids()
    assert len(pids) == 2
    for pid in pids:
        started_with = Path(f"/proc/{pid}/environ").read_text()
        assert "to-be-seen" in started_with, "the place that is searched must be the right one"
        assert SECRET not in started_with
        assert "p%40ss" not in started_with


def access_lines(server: Server, count: int) -> list[dict[str, object]]:
    """Return exactly `count` access lines; a line is written just after its answer was sent."""
    deadline = time.monotonic() + 5
    while len(lines := server.access_log.read_text().splitlines()) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(lines) == count, lines
    return [json.loads(line) for line in lines]


def test_access_log_is_one_json_object_per_request(gunicorn: Gunicorn) -> None:
    server = gunicorn.start()
    server.wait_until_serving()
    access_lines(server, 1)
    server.access_log.write_text("")
    server.get("/a%20path/%25s?token=abc", X_Request_ID="req-1.x", X_Forwarded_For="192.0.2.7")
    server.get("/other", X_Request_ID="not acceptable {}")
    lines = access_lines(server, 2)
    duration = lines[0].pop("duration_ms")
    assert isinstance(duration, float)
    assert 0 <= duration < 5000
    assert lines[0] == {
        "method": "GET",
        "path": "/a path/%s",
        "status": 200,
        "request_id": "req-1.x",
        "release": "development",
        "remote": "192.0.2.7",
    }
    assert len(str(lines[1]["request_id"])) == 32
    assert lines[1]["remote"] is None


def test_no_access_log_when_gunicorn_has_none(gunicorn: Gunicorn) -> None:
    server = gunicorn.start(configuration="accesslog = None\n")
    server.wait_until_serving()
    assert not server.access_log.exists()


def test_failing_request_is_logged_without_secrets(gunicorn: Gunicorn, secrets: Path) -> None:
    server = gunicorn.start(BAREFORGE_SECRETS=str(secrets))
    server.wait_until_serving()
    assert server.get("/boom")[0] == 500
    log = server.error_log.read_text()
    assert "RuntimeError: cannot connect to ***" in log
    assert "p%40ss" not in log
    assert access_lines(server, 2)[-1]["status"] == 500


def read_answer(connection: socket.socket, body: bytes) -> bytes:
    """Return an answer as it came, up to its body or to the end of the connection."""
    received = b""
    while not received.endswith(body) and (part := connection.recv(65536)):
        received += part
    return received


def stop_while_busy(server: Server) -> tuple[float, bytes, bytes]:
    """TERM with a slow request under way and an idle keep-alive connection that then asks again.

    Returns how long the stop took and what the two connections received.
    """
    slow: list[bytes] = []

    def ask_slowly() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(server.socket))
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while part := connection.recv(65536):
                received += part
            slow.append(received)

    with socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(10)
        idle.connect(str(server.socket))
        idle.sendall(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = read_answer(idle, b"/first")
        assert b"connection: close" not in first.lower()
        thread = threading.Thread(target=ask_slowly)
        thread.start()
        time.sleep(0.2)
        started = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.3)  # the worker's main loop looks ten times a second whether it should stop
        idle.sendall(b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n")
        second = read_answer(idle, b"/second")
    server.process.wait(10)
    thread.join(10)
    return time.monotonic() - started, slow[0], second


def test_drain_answers_idle_connections_and_finishes_requests(gunicorn: Gunicorn) -> None:
    server = gunicorn.start(BAREFORGE_DRAIN_SECONDS="0.7")
    server.wait_until_serving()
    took, slow, second = stop_while_busy(server)
    assert slow.startswith(b"HTTP/1.1 200")
    assert slow.endswith(b"/slow")
    assert b"connection: close" in slow.lower(), "a request that was under way is told as well"
    assert second.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in second.lower()
    assert took < 4
    assert server.process.returncode == 0


def test_without_drain_the_idle_connection_is_cut(gunicorn: Gunicorn) -> None:
    """The control of the test above: it is the drain period that makes the difference."""
    server = gunicorn.start(BAREFORGE_DRAIN_SECONDS="0")
    server.wait_until_serving()
    try:
        _, _, second = stop_while_busy(server)
    except ConnectionError:
        second = b""
    assert second == b""


def test_heart_beats_while_draining(gunicorn: Gunicorn) -> None:
    """A request that takes longer than gunicorn's `timeout` survives the stop of its worker.

    The worker alone is stopped, as when it has reached max_requests: the master goes on watching it.
    """
    server = gunicorn.start(source=APPLICATION.replace("sleep(1.0)", "sleep(3.5)"), configuration="timeout = 2\n")
    server.wait_until_serving()
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/slow")))
    thread.start()
    time.sleep(0.2)
    os.kill(server.pids()[1], signal.SIGTERM)
    thread.join(10)
    assert answers == [(200, b"/slow")], server.error_log.read_text()
    assert "WORKER TIMEOUT" not in server.error_log.read_text()


def test_worker_whose_master_was_killed_finishes_its_requests_and_ends(gunicorn: Gunicorn) -> None:
    server = gunicorn.start()
    server.wait_until_serving()
    _, worker = server.pids()
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/slow")))
    thread.start()
    time.sleep(0.2)
    server.process.kill()
    server.process.wait(10)
    thread.join(10)
    assert answers == [(200, b"/slow")]
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline, server.error_log.read_text()
        time.sleep(0.05)
    assert "the master of this worker has ended without stopping it" in server.error_log.read_text()


def test_quit_is_as_graceful_as_term(gunicorn: Gunicorn) -> None:
    server = gunicorn.start()
    server.wait_until_serving()
    answers: list[tuple[int, bytes]] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/slow")))
    thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    os.kill(server.process.pid, signal.SIGQUIT)
    server.process.wait(10)
    thread.join(10)
    assert answers == [(200, b"/slow")]
    assert time.monotonic() - started < 4


def last_line_of_refused_start(server: Server) -> tuple[int, str]:
    code = server.process.wait(15)
    lines = [line for line in server.error_log.read_text().splitlines() if "bareforge-runtime:" in line]
    assert lines, server.error_log.read_text()
    return code, lines[0].partition("bareforge-runtime: ")[2]


def test_missing_secrets_stop_the_start_with_one_line(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "nowhere"
    server = gunicorn.start(BAREFORGE_SECRETS=str(directory))
    assert last_line_of_refused_start(server) == (
        3,
        f"the secrets directory {directory} does not exist; is the agent running? see: journalctl -u bareforge-agent",
    )
    assert "Traceback" not in server.error_log.read_text()


def test_application_error_stops_the_start_without_secrets(gunicorn: Gunicorn, secrets: Path) -> None:
    source = "import os\nraise ValueError(f'bad APP_SECRET_KEY: ' + os.environ['APP_SECRET_KEY'])\n"
    server = gunicorn.start(source=source, BAREFORGE_SECRETS=str(secrets))
    assert last_line_of_refused_start(server) == (
        3,
        "the application refuses to start: bad APP_SECRET_KEY: ***; "
        "fix the named setting or the application and deploy again",
    )
    assert SECRET not in server.error_log.read_text()


def test_wrong_drain_seconds_stop_the_start(gunicorn: Gunicorn) -> None:
    server = gunicorn.start(BAREFORGE_DRAIN_SECONDS="soon")
    assert last_line_of_refused_start(server) == (
        3,
        "BAREFORGE_DRAIN_SECONDS is 'soon'; set it to a number of seconds, such as 0.25",
    )


def test_hang_up_reads_the_secrets_again(gunicorn: Gunicorn, secrets: Path) -> None:
    server = gunicorn.start(BAREFORGE_SECRETS=str(secrets))
    server.wait_until_serving()
    write_secrets(secrets, kv={"APP_SECRET_KEY": "a-new-value"})
    os.kill(server.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while server.get("/secret")[1] != b"a-new-value":
        assert time.monotonic() < deadline, server.error_log.read_text()
        time.sleep(0.1)
