"""Workers that stop: nobody waits at the end of the service, everybody in turn where max_requests is reached."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.runtime.conftest import APPLICATION, Gunicorn, UnixConnection

# as APPLICATION, but its start takes START seconds
CAREFUL = APPLICATION.replace(
    "async def app", "import time\ntime.sleep(float(os.environ.get('START', '0')))\n\nasync def app"
)


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
