"""Workers that stop: nobody waits at the end of the service; in turn where max_requests or credentials have ended."""

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


def write_url(directory: Path, url: str, **kv: str) -> None:
    """As the agent does: files take the place of the old ones."""
    directory.mkdir(exist_ok=True)
    for name, content in {"db.json": {"APP_DATABASE_URL": url}, "kv.json": kv}.items():
        (directory / "new").write_text(json.dumps(content))
        (directory / "new").replace(directory / name)


def test_workers_with_database_credentials_of_before_go_one_after_the_other(gunicorn: Gunicorn, tmp_path: Path) -> None:
    directory, secrets = tmp_path / "workers", tmp_path / "secrets"
    write_url(secrets, "postgresql://one", APP_SECRET_KEY="key-1")
    server = gunicorn.start(
        source=CAREFUL.replace("APP_SECRET_KEY", "APP_DATABASE_URL"),
        START="1",
        configuration="workers = 2\n",
        BAREFORGE_MARKERS=str(directory),
        BAREFORGE_SECRETS=str(secrets),
    )
    until(lambda: len(ready(directory)) == 2)
    before = set(server.pids()) - {server.process.pid}
    with Load(server.socket) as load:
        # the same content in another file, and another key: nothing that would end
        write_url(secrets, "postgresql://one", APP_SECRET_KEY="key-2")
        time.sleep(2)
        assert before <= set(server.pids())
        write_url(secrets, "postgresql://two")
        until(lambda: not before & set(server.pids()), 25)
        until(lambda: len(ready(directory)) == 2)
    assert server.get("/secret") == (200, b"postgresql://two")
    assert (load.failures, load.longest < 1) == ([], True)
    assert "the database credentials have changed; this worker makes room" in server.error_log.read_text()


FOLLOWING = """
import os
from bareforge_runtime import changes

told = []

async def apply(settings):
    told.append(settings["APP_DATABASE_URL"])

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        async with changes.followed(apply):
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = f"{os.getpid()} {told[-1] if told else ''}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def test_workers_whose_application_follows_stay(gunicorn: Gunicorn, tmp_path: Path) -> None:
    write_url(tmp_path / "secrets", "postgresql://one")
    server = gunicorn.start(source=FOLLOWING, BAREFORGE_SECRETS=str(tmp_path / "secrets"))
    server.wait_until_serving()
    _, worker = server.pids()
    write_url(tmp_path / "secrets", "postgresql://two")
    until(lambda: server.get("/")[1] == f"{worker} postgresql://two".encode())
    time.sleep(1)
    assert server.pids()[1:] == [worker]
