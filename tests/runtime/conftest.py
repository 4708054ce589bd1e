"""Shared by the runtime's tests: run a command, serve a small application with the real gunicorn."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "runtime" / "src"

# What the tests look at: /secret tells the secret, /slow takes a second, /boom raises, others echo the path.
APPLICATION = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": event + ".complete"})
            if event == "lifespan.shutdown":
                return
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(1.0)
    if path == "/boom":
        raise RuntimeError("cannot connect to " + os.environ["APP_DATABASE_URL"])
    body = os.environ.get("APP_SECRET_KEY", "").encode() if path == "/secret" else path.encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""


def environment(**settings: str) -> dict[str, str]:
    """Return a small environment for a child process, without anything from this machine's own."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1", **settings}


def runtime(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bareforge_runtime` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "bareforge_runtime", *arguments],
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def write_secrets(directory: Path, **files: object) -> Path:
    """Write `kv=...` and `db=...` as the agent does; returns the directory."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    return directory


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._unix_path))


@dataclass
class Server:
    """A running gunicorn."""

    process: subprocess.Popen[str]
    socket: Path
    access_log: Path
    error_log: Path
    gone: list[int] = field(default_factory=list)

    def connection(self) -> UnixConnection:
        return UnixConnection(self.socket)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path, headers={name.replace("_", "-"): v for name, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()

    def pids(self) -> list[int]:
        """The master and its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/")[0] == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"gunicorn does not serve:\n{self.error_log.read_text()}")


class Gunicorn:
    """Starts gunicorn with the runtime's worker class in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *, source: str = APPLICATION, configuration: str = "", **settings: str) -> Server:
        (self.directory / "service.py").write_text(source)
        server_socket = self.directory / "app.sock"
        access_log, error_log = self.directory / "access.log", self.directory / "error.log"
        config = self.directory / "gunicorn.conf.py"
        config.write_text(
            f"bind = 'unix:{server_socket}'\n"
            "worker_class = 'bareforge_runtime.worker.Worker'\n"
            f"chdir = {str(self.directory)!r}\naccesslog = {str(access_log)!r}\n"
            "workers = 1\nkeepalive = 30\ngraceful_timeout = 6\ntimeout = 10\ncontrol_socket_disable = True\n"
            f"forwarded_allow_ips = '*'\n{configuration}"
        )
        with error_log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(config), "service:app"],
                env=environment(**settings),
                cwd=self.directory,
                stdout=output,
                stderr=output,
                text=True,
            )
        self.started.append(process)
        return Server(process, server_socket, access_log, error_log)


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Gunicorn]:
    starter = Gunicorn(tmp_path)
    yield starter
    for process in starter.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
