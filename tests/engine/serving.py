"""gunicorn on a host in a directory, started as the unit starts it, behind a socket that somebody else holds."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plugins.modules.bareforge import (
    active_id,
    await_generation,
    children,
    end_process,
    link_units,
    plan_files,
    point,
    process_status,
    read_pid,
    settings_of,
    stage,
    wait_for,
)
from tests.engine.host import SETTINGS, Host
from tests.runtime.conftest import SOURCES, UnixConnection
from tests.templates.render import ROOT, render

PATIENCE = 20
SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: orphans become children of this process, not of the first one

# Answers with its release; what differs between the releases of the tests is put before and into it
APPLICATION = """
import asyncio, os, time
from bareforge_runtime import release

{at_import}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {at_startup}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    status = {ready} if scope["path"] == "/ready" else 200
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    body = release.current().id.encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({{"type": "http.response.start", "status": status, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""

# What systemd does for a unit with a socket: the listener is descriptor 3, and only for the process that is named
LAUNCHER = """
import os, sys
listener = int(sys.argv[1])
if listener != 3:
    os.dup2(listener, 3)
    os.close(listener)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def write_environment(venv: Path) -> None:
    """A virtual environment with what this one has, and the runtime's sources, without copying anything."""
    base = Path(sys.base_prefix) / "bin"
    library = venv / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    library.mkdir(parents=True)
    shared = [str(SOURCES), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (library / "shared.pth").write_text("\n".join(shared) + "\n")
    (venv / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(Path(sys.executable).resolve())
    (venv / "bin/gunicorn").write_text("import sys\nfrom gunicorn.app.wsgiapp import run\nsys.exit(run())\n")


@dataclass
class Load:
    """Requests one after the other, each on a connection of its own, until told to stop."""

    socket: Path
    path: str = "/"
    releases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._ended.wait(0.005):
            try:
                with contextlib.closing(UnixConnection(self.socket)) as connection:
                    connection.request("GET", self.path)
                    answer = connection.getresponse()
                    body = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                continue
            if answer.status == 200:
                self.releases[body] += 1
            else:
                self.failures.append(f"{answer.status} {body}")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)


class Service:
    """One application that serves on a host, and the processes that ever belonged to it."""

    def __init__(self, host: Host) -> None:
        self.host, self.paths = host, host.paths
        self.socket = self.paths.root / "run/shop/app.sock"
        self.log = self.paths.root / "journal"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mine = set(children(os.getpid()))

    def release(self, name: str, at_import: str = "", at_startup: str = "pass", ready: str = "200") -> None:
        """A release that answers with its name, or behaves as it is told."""
        directory = self.host.release(name)
        (directory / "app").mkdir()
        source = APPLICATION.format(at_import=at_import, at_startup=at_startup, ready=ready)
        (directory / "app/service.py").write_text(source)
        write_environment(directory / "venv")

    def flip(self, release: str, start_timeout: float = 20, extra: str = "") -> str:
        """Make a release the active one, with the real configuration; returns the id of its activation."""
        paths = self.paths
        given = {
            "asgi_app_name": paths.name,
            "asgi_app_module": "service:app",
            "asgi_app_source": "/src",
            "asgi_app_graceful_timeout": int(SETTINGS["graceful_timeout"]),
            "asgi_app_gunicorn_extra": extra,
            "__asgi_app_active": str(paths.active),
            "__asgi_app_runtime": str(paths.runtime),
            "__asgi_app_socket": str(self.socket),
        }
        text = render(ROOT / "templates/gunicorn.conf.py.j2", "asgi_app", **given)
        settings = {**SETTINGS, "start_timeout": str(start_timeout)}
        activation = stage(paths, plan_files(paths, release, self.host.files(gunicorn=text), settings))
        point(paths.active, f"activations/{activation}")
        link_units(paths)
        return activation

    def start(self) -> int:
        """Start gunicorn as the unit does and return the master's number when all workers are ready."""
        paths = self.paths
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("a") as log:
            listener.bind(str(self.socket))
            listener.listen(2048)
            python, conf = f"{paths.current}/venv/bin/python", f"{paths.active}/gunicorn.conf.py"
            command = [python, f"{paths.current}/venv/bin/gunicorn", "-c", conf]
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", LAUNCHER, str(listener.fileno()), *command],
                pass_fds=(listener.fileno(),),
                cwd="/",
                env={
                    "PATH": os.environ["PATH"],
                    "BAREFORGE_MARKERS": str(paths.runtime / "workers"),
                    "BAREFORGE_READY_PATH": "/ready",
                    "BAREFORGE_READY_HOST": "localhost",
                    "PYTHONUNBUFFERED": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        assert wait_for(lambda: read_pid(paths.runtime / "gunicorn.pid") == process.pid, PATIENCE), self.log.read_text()
        await_generation(paths, process.pid, settings_of(paths, active_id(paths)))
        return process.pid

    def master(self) -> int:
        """The process that the pid file names."""
        return read_pid(self.paths.runtime / "gunicorn.pid")

    def generation(self, master: int) -> set[int]:
        """A master and all that it has started."""
        return {master, *children(master)}

    def processes(self) -> set[int]:
        """Every process that belongs to this application and lives, whoever its parent is."""
        found: set[int] = set()
        waiting = set(children(os.getpid())) - self._mine
        while waiting:
            pid = waiting.pop()
            found.add(pid)
            waiting |= set(children(pid))
        return found

    def end(self) -> None:
        """End everything that was started."""
        if master := self.master():
            end_process(master, PATIENCE)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: not self.processes(), PATIENCE)
        for process in self._processes:
            process.wait(PATIENCE)
        adopted = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in {int(item) for item in adopted} - self._mine:
            if process_status(pid) is None:
                os.waitpid(pid, 0)


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of what loses its own, so that nothing that was started can get out of sight."""
    library = ctypes.CDLL(None, use_errno=True)
    assert library.prctl(SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        library.prctl(SUBREAPER, 0, 0, 0, 0)
