"""A throw-away PostgreSQL server: Debian's binaries, a temporary directory, loopback, no privileges."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import asyncpg

USER = "forge"
PASSWORD = "p@ss/word:100%?#&"  # every character that a URL must quote


def find_binaries() -> Path:
    """Return the directory of the newest server binaries."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError(
            "these tests need a PostgreSQL server in /usr/lib/postgresql; run: apt-get install postgresql"
        )
    return found[-1].parent


class Server:
    """One server with data of its own."""

    def __init__(self) -> None:
        self.binaries = find_binaries()
        self.directory = Path(tempfile.mkdtemp(prefix="forge-postgresql-"))
        self.prefix = ["setpriv", "--pdeathsig", "QUIT"]  # never outlives the tests
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            account = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self.prefix += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self._initialise()

    def _initialise(self) -> None:
        password_file = self.directory / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)  # read by the unprivileged user, in a directory of mode 0700
        result = subprocess.run(
            [
                *self.prefix,
                str(self.binaries / "initdb"),
                f"--pgdata={self.directory / 'data'}",
                f"--username={USER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=60,
        )
        assert result.returncode == 0, result.stderr

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = {
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "shared_buffers": "16MB",
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
        }
        command = [*self.prefix, str(self.binaries / "postgres"), "-D", str(self.directory / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            ready = subprocess.run(
                [str(self.binaries / "pg_isready"), "-q", "-h", str(self.directory), "-p", str(self.port)]
            )
            if ready.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError((self.directory / "log").read_text())

    def stop(self) -> None:
        """Stop at once, as a crash does."""
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def processes(self) -> list[int]:
        """Return the pids of the server and its backends."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    @contextlib.contextmanager
    def frozen(self):
        """Hang: connections stay open and nothing answers."""
        processes = self.processes()
        self._signal(processes, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(processes, signal.SIGCONT)

    def _signal(self, processes, kind):
        for pid in processes:
            # a background worker of the server may end at any moment
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kind)

    def url(self, database: str, scheme: str = "postgresql") -> str:
        return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres"):
        return asyncpg.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database=database)

    async def execute(self, statement: str, database: str = "postgres") -> None:
        connection = await self.connect(database)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.remove()
