"""`wait`: the readiness gate, against a small server on a unix socket."""

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.runtime.conftest import runtime

CURE = "see the log of the unit: journalctl -u UNIT"


@contextlib.contextmanager
def serving(path: Path, ready_after: float) -> Iterator[list[str]]:
    """Answer 503 until `ready_after` seconds from now, then 200; gives the "path host" of each request."""
    asked: list[str] = []
    ready_at = time.monotonic() + ready_after

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Host']}")
            self.send_response(200 if time.monotonic() >= ready_at else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def test_waits_until_200(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with serving(path, ready_after=1) as asked:
        done = runtime("wait", "--socket", str(path), "--path", "/healthy", "--host", "app.example", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(asked) > 1
    assert set(asked) == {"/healthy app.example"}


def test_too_late_names_the_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with serving(path, ready_after=60):
        done = runtime("wait", "--socket", str(path), "--timeout", "0.5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"bareforge-runtime: GET /ready over {path} was not answered with 200 within 0.5 s, "
        f"last answer: 503 Service Unavailable; {CURE}\n",
    )


def test_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    done = runtime("wait", "--socket", str(path), "--timeout", "0.3", cwd=tmp_path)
    assert done.stderr == (
        f"bareforge-runtime: GET /ready over {path} was not answered with 200 within 0.3 s, "
        f"last answer: there is no socket; {CURE}\n"
    )


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    done = runtime("wait", "--socket", str(path), "--timeout", "0.3", cwd=tmp_path)
    assert "last answer: connection refused; " in done.stderr


def test_stops_at_once_when_the_process_is_gone(tmp_path: Path) -> None:
    """With socket activation the connection stands although there is nobody to answer."""
    path = tmp_path / "a.sock"
    with (
        socket.socket(socket.AF_UNIX) as held,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process,
    ):
        held.bind(str(path))
        held.listen()
        threading.Timer(1.5, process.kill).start()
        started = time.monotonic()
        # the process stays a zombie until it is waited for below: gone all the same
        done = runtime("wait", "--socket", str(path), "--pid", str(process.pid), cwd=tmp_path)
        took = time.monotonic() - started
    assert (done.returncode, done.stderr) == (
        1,
        f"bareforge-runtime: process {process.pid} ended before GET /ready over {path} "
        f"was answered with 200, last answer: connected, but no answer; {CURE}\n",
    )
    assert 1 < took < 5
