"""A gunicorn whose sockets were opened by somebody else, as systemd does, and its hand-overs by USR2."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bareforge_runtime import markers
from bareforge_runtime.waiting import alive

from tests.runtime.conftest import APPLICATION, UnixConnection, environment

# What systemd does between fork and exec: the sockets from descriptor 3 on, and their number for this very process.
ACTIVATE = """
import os, sys
number, *command = sys.argv[1:]
descriptors = list(map(int, number.split(",")))
aside = [os.dup(descriptor) for descriptor in descriptors]
for descriptor in descriptors:
    os.set_inheritable(descriptor, False)
for target, descriptor in enumerate(aside, 3):
    os.dup2(descriptor, target)
    os.set_inheritable(target, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(aside)))
os.execv(command[0], command)
"""


class Masters:
    """Successive masters over the same sockets; the current one is the one that the pid file names."""

    def __init__(self, directory: Path, configuration: str, sockets: int) -> None:
        self.directory = directory
        self.paths = [directory / f"app{number}.sock" for number in range(max(sockets, 1))]
        self.log = directory / "error.log"
        self.pidfile = directory / "gunicorn.pid"
        self.started: list[int] = []
        # seconds that each old master took to end
        self.took: list[float] = []
        (directory / "service.py").write_text(APPLICATION)
        config = directory / "gunicorn.conf.py"
        config.write_text(
            f"bind = 'unix:{self.paths[0]}'\nworker_class = 'bareforge_runtime.worker.Worker'\n"
            f"chdir = {str(directory)!r}\npidfile = '{self.pidfile}'\ncontrol_socket_disable = True\n"
            f"workers = 1\ngraceful_timeout = 6\n{configuration}"
        )
        # by path: started with -m, gunicorn cannot re-execute itself
        script = Path(sys.executable).parent / "gunicorn"
        command = [sys.executable, str(script), "--config", str(config), "service:app"]
        held = [socket.socket(socket.AF_UNIX) for _ in range(sockets)]
        for path, listener in zip(self.paths, held, strict=False):
            listener.bind(str(path))
            listener.listen()
        descriptors = [listener.fileno() for listener in held]
        if held:
            command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, descriptors)), *command]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(BAREFORGE_MARKERS=str(directory / "workers")),
                cwd=directory,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
            )
        for listener in held:
            listener.close()
        self.started.append(self.process.pid)

    def wait(self, condition: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"too late:\n{self.log.read_text()}"
            self.process.poll()
            time.sleep(0.05)

    def wait_until_ready(self, master: int) -> None:
        self.wait(lambda: any(marker.ready for marker in markers.read(self.directory / "workers", master)))

    def current(self) -> int:
        """The master that the pid file names, 0 if there is none."""
        with contextlib.suppress(OSError, ValueError):
            return int(self.pidfile.read_text())
        return 0

    def get(self, number: int = 0) -> int:
        with contextlib.closing(UnixConnection(self.paths[number])) as connection:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            return response.status

    def hand_over(self) -> int:
        """USR2, ready, TERM for the old one; returns the new master once it is promoted."""
        old = self.current()
        second = self.pidfile.with_name("gunicorn.pid.2")
        os.kill(old, signal.SIGUSR2)
        self.wait(lambda: second.exists() and second.read_text())
        new = int(second.read_text())
        self.started.append(new)
        self.wait_until_ready(new)
        asked = time.monotonic()
        os.kill(old, signal.SIGTERM)
        self.wait(lambda: not alive(old))
        self.took.append(time.monotonic() - asked)
        self.wait(lambda: self.current() == new)
        return new

    def descriptors(self) -> int:
        """How many files the current master has open."""
        return len(list(Path(f"/proc/{self.current()}/fd").iterdir()))

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(alive, self.started):
                os.kill(pid, number)
            deadline = time.monotonic() + 8
            while any(map(alive, self.started)) and time.monotonic() < deadline:
                self.process.poll()
                time.sleep(0.05)


@contextlib.contextmanager
def masters(directory: Path, configuration: str, sockets: int) -> Iterator[Masters]:
    """Start a master with this many sockets of somebody else's; 0: it binds one itself."""
    started = Masters(directory, configuration, sockets)
    try:
        started.wait_until_ready(started.process.pid)
        yield started
    finally:
        started.end()


class Asking:
    """Asks without a pause, a new connection each time, until it is stopped; what went wrong is in `failures`."""

    def __init__(self, served: Masters) -> None:
        self._served = served
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.asked = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(15)

    def _ask(self) -> None:
        while not self._stop.wait(0.005):
            try:
                status = self._served.get()
            except Exception as error:
                self.failures.append(repr(error))
            else:
                if status != 200:
                    self.failures.append(str(status))
            self.asked += 1
