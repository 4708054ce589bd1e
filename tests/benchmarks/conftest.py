"""Variants of the reference application, as processes of their own on databases of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.trial.variants import make
from tests.app.postgresql import Server, running_server
from tests.app.service import SECRET_KEY

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "app"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database of the server."""

    server: Server
    name: str

    def query(self, statement: str) -> Any:
        """Return the first value of the first row."""

        async def ask() -> Any:
            connection = await self.server.connect(self.name)
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return asyncio.run(ask())


def environment(source: Path, database: Database) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{source / 'src'}:{ROOT / 'runtime/src'}",
        "FORGE_ENVIRONMENT": "development",
        "FORGE_SECRET_KEY": SECRET_KEY,
        "FORGE_DATABASE_URL": database.server.url(database.name),
    }


def start(source: Path, database: Database, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` with a variant's code; its output goes to pipes unless `options` say otherwise."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment(source, database), cwd="/", text=True, **options
    )


def run(source: Path, database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(source, database, *arguments)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@dataclass(frozen=True)
class Serving:
    """A process that serves a variant; its standard error is in `log`."""

    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    def wait_until_ready(self) -> None:
        self.wait_until("/ready")

    def wait_until(self, path: str) -> None:
        """Wait until it answers a GET of `path` with 200."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get(path).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{path} was never answered with 200:\n{self.log.read_text()}")


@contextlib.contextmanager
def serve(source: Path, database: Database, log: Path, *command: str) -> Iterator[Serving]:
    """Run a server's command, in which {port} is a free port, until the end of the block; not ready at its start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [argument.format(port=port) for argument in command]
    with log.open("w") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=15) as client:
        process = start(source, database, "-m", *arguments, stdout=output, stderr=output)
        try:
            yield Serving(process, client, log)
        finally:
            process.terminate()
            try:
                process.wait(15)
            finally:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def new_database(server: Server) -> Callable[[], Database]:
    """Makes databases that the reference application has migrated."""
    base = Database(server, "trial")
    asyncio.run(server.execute(f"CREATE DATABASE {base.name}"))
    migrated = run(REFERENCE, base, "-m", "forge_app.migrate")
    assert migrated.returncode == 0, migrated.stderr

    def make_database() -> Database:
        name = f"trial_{next(_numbers)}"

        async def prepare() -> None:
            await server.execute(f"CREATE DATABASE {name} TEMPLATE {base.name}")
            await server.execute(f"ALTER DATABASE {name} SET forge.environment = 'development'")

        asyncio.run(prepare())
        return Database(server, name)

    return make_database


@pytest.fixture(scope="session")
def database(new_database: Callable[[], Database]) -> Database:
    """The database of all tests that do not migrate it."""
    return new_database()


@pytest.fixture
def database_of_its_own(new_database: Callable[[], Database]) -> Database:
    return new_database()


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a variant that starts without delay, unless told otherwise, and is named by a number."""
    into = tmp_path_factory.mktemp("variants")

    def make_variant(**changes: Any) -> Path:
        return make(REFERENCE, into, **{"name": f"v{next(_numbers)}", "start_seconds": 0, **changes})

    return make_variant
