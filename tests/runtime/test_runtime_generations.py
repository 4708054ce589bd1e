"""Workers that say when they are ready, that wait for those who follow, and listeners that survive a re-exec."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bareforge_runtime.reexec import keep_listeners

from tests.runtime.conftest import APPLICATION, Gunicorn, UnixConnection, environment

# as APPLICATION, but /ready answers what the file NOT_READY beside it says, and start takes START seconds
CAREFUL = APPLICATION.replace(
    'path = scope["path"]',
    """path = scope["path"]
    if path == "/ready" and os.path.exists("NOT_READY"):
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return""",
).replace("async def app", "import time\ntime.sleep(float(os.environ.get('START', '0')))\n\nasync def app")


def until(condition: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)
    return found


def markers(directory: Path) -> list[dict[str, Any]]:
    found = []
    for file in directory.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text()))
    return found


def ready(directory: Path) -> list[int]:
    return [item["pid"] for item in markers(directory) if item["ready"]]


class Load:
    """Requests one after the other over new connections until the end of the block, with failures and longest time."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.failures, self.longest = path, 0, [], 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                with contextlib.closing(UnixConnection(self.path)) as connection:
                    connection.request("GET", "/x")
                    status = connection.getresponse().status
                if status != 200:
                    self.failures.append(str(status))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(type(error).__name__)
            self.longest = max(self.longest, time.monotonic() - started)
            self.count += 1
            time.sleep(0.005)


def test_a_worker_says_that_it_is_ready(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "workers"
    configuration = "workers = 2\nraw_env = ['BAREFORGE_ACTIVATION=abc']\n"
    server = gunicorn.start(configuration=configuration, BAREFORGE_MARKERS=str(directory))
    until(lambda: len(ready(directory)) == 2)
    master, *workers = server.pids()
    expected = [
        {"pid": pid, "master": master, "release": "development", "activation": "abc", "ready": True, "answer": ""}
        for pid in sorted(workers)
    ]
    assert sorted(markers(directory), key=lambda item: item["pid"]) == expected
    # what it asks itself is nobody's request
    server.get("/seen")
    until(lambda: server.access_log.read_text())
    assert "/ready" not in server.access_log.read_text()
    server.process.terminate()
    server.process.wait(10)
    assert markers(directory) == []


def test_a_worker_that_is_not_ready_says_why_and_then_that_it_is(gunicorn: Gunicorn, tmp_path: Path) -> None:
    (tmp_path / "NOT_READY").touch()
    directory = tmp_path / "workers"
    server = gunicorn.start(source=CAREFUL, BAREFORGE_MARKERS=str(directory))
    server.wait_until_serving()
    found = until(lambda: markers(directory))
    assert (found[0]["ready"], found[0]["answer"]) == (False, "GET /ready answered 503")
    (tmp_path / "NOT_READY").unlink()
    until(lambda: ready(directory))


def test_a_directory_that_cannot_be_written_stops_nobody(gunicorn: Gunicorn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = gunicorn.start(BAREFORGE_MARKERS=str(tmp_path / "file" / "workers"))
    server.wait_until_serving()
    until(lambda: "bareforge-runtime: cannot write " in server.error_log.read_text())
    assert server.get("/x")[0] == 200


def test_every_answer_names_its_release(gunicorn: Gunicorn) -> None:
    server = gunicorn.start(BAREFORGE_RELEASE_HEADER="X-Release", configuration="accesslog = None\n")
    server.wait_until_serving()
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", "/x")
        header = connection.getresponse().getheader("X-Release")
    assert header == f"development; host={socket.gethostname()}; pid={server.pids()[1]}"


def test_a_wrong_header_name_stops_the_start(gunicorn: Gunicorn) -> None:
    server = gunicorn.start(BAREFORGE_RELEASE_HEADER="X Release")
    assert server.process.wait(15) == 3
    assert (
        "bareforge-runtime: BAREFORGE_RELEASE_HEADER is 'X Release'; set it to the name of a header, such as X-Release"
        in server.error_log.read_text()
    )


def hang_up(gunicorn: Gunicorn, directory: Path, **settings: str) -> Load:
    """HUP under requests, with an application that takes 2 s to import."""
    server = gunicorn.start(source=CAREFUL, START="2", configuration="workers = 2\n", **settings)
    server.wait_until_serving()
    before = server.pids()
    if settings:
        until(lambda: len(ready(directory)) == 2)
    with Load(server.socket) as load:
        time.sleep(0.3)
        os.kill(server.process.pid, signal.SIGHUP)
        until(lambda: not set(before[1:]) & set(server.pids()), 20)
    assert load.failures == []
    return load


def test_old_workers_serve_until_the_new_ones_are_ready(gunicorn: Gunicorn, tmp_path: Path) -> None:
    assert hang_up(gunicorn, tmp_path / "workers", BAREFORGE_MARKERS=str(tmp_path / "workers")).longest < 1


def test_without_markers_everybody_waits_for_the_new_ones(gunicorn: Gunicorn, tmp_path: Path) -> None:
    """The control of the test above: it is the waiting for successors that makes the difference."""
    assert hang_up(gunicorn, tmp_path / "workers").longest > 1


def test_a_stop_waits_for_nobody(gunicorn: Gunicorn, tmp_path: Path) -> None:
    server = gunicorn.start(configuration="workers = 2\n", BAREFORGE_MARKERS=str(tmp_path / "workers"))
    until(lambda: len(ready(tmp_path / "workers")) == 2)
    started = time.monotonic()
    server.process.terminate()
    server.process.wait(10)
    assert time.monotonic() - started < 2.5


def test_workers_that_reach_max_requests_together_go_one_after_the_other(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory = tmp_path / "workers"
    server = gunicorn.start(
        source=CAREFUL,
        START="1",
        configuration="workers = 2\nmax_requests = 150\nmax_requests_jitter = 0\n",
        BAREFORGE_MARKERS=str(directory),
    )
    until(lambda: len(ready(directory)) == 2)
    before = set(server.pids())
    with Load(server.socket) as load:
        until(lambda: not (before - {server.process.pid}) & set(server.pids()), 25)
    assert load.failures == []
    assert load.longest < 1


REEXEC = "from bareforge_runtime.reexec import keep_listeners as pre_exec\n"


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts gunicorn as systemd does with a socket it holds: descriptor 3, LISTEN_FDS, LISTEN_PID."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "app.sock"))
    listener.listen(2048)
    pidfile = tmp_path / "gunicorn.pid"

    def start(configuration: str) -> subprocess.Popen[bytes]:
        (tmp_path / "service.py").write_text(APPLICATION)
        (tmp_path / "gunicorn.conf.py").write_text(
            f"{configuration}worker_class = 'bareforge_runtime.worker.Worker'\nworkers = 2\nchdir = {str(tmp_path)!r}\n"
            f"pidfile = {str(pidfile)!r}\ncontrol_socket_disable = True\ngraceful_timeout = 6\n"
        )
        gunicorn = [sys.executable, str(Path(sys.prefix) / "bin/gunicorn")]
        command = [*gunicorn, "-c", str(tmp_path / "gunicorn.conf.py"), "service:app"]
        script = (
            f"import os; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2({listener.fileno()}, 3); "
            f"os.execv({sys.executable!r}, {command!r})"
        )
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", script],
                env=environment(LISTEN_FDS="1", BAREFORGE_MARKERS=str(tmp_path / "workers")),
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                cwd=tmp_path,
                start_new_session=True,
            )

    first: list[subprocess.Popen[bytes]] = []

    def begin(configuration: str) -> subprocess.Popen[bytes]:
        first.append(start(configuration))
        return first[-1]

    yield begin
    listener.close()
    for process in first:
        # masters that follow are of the same session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def test_a_held_socket_survives_five_hand_overs(activated: Any, tmp_path: Path) -> None:
    first = activated(REEXEC)
    pidfile, workers = tmp_path / "gunicorn.pid", tmp_path / "workers"
    until(lambda: len(ready(workers)) == 2)
    master, files = first.pid, []
    with Load(tmp_path / "app.sock") as load:
        for _ in range(5):
            os.kill(master, signal.SIGUSR2)
            second = int(
                until(lambda: (tmp_path / "gunicorn.pid.2").exists() and (tmp_path / "gunicorn.pid.2").read_text())
            )
            until(
                lambda second=second: sum(item["ready"] for item in markers(workers) if item["master"] == second) == 2
            )
            os.kill(master, signal.SIGTERM)
            until(lambda second=second: pidfile.exists() and pidfile.read_text().strip() == str(second))
            master = second
            files.append(open_files(master))
    assert load.failures == []
    assert load.count > 100
    assert len(set(files[1:])) == 1, files


def test_without_the_hook_the_next_master_dies(activated: Any, tmp_path: Path) -> None:
    first = activated("")
    until(lambda: len(ready(tmp_path / "workers")) == 2)
    os.kill(first.pid, signal.SIGUSR2)
    until(lambda: "Bad file descriptor" in (tmp_path / "log").read_text())


def test_an_ordinary_socket_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        keep_listeners(SimpleNamespace(systemd=False, LISTENERS=[listener]))
        assert not os.get_inheritable(listener.fileno())
        listener.getsockname()
