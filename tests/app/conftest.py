import asyncio
import functools
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from forge_app.main import create_app
from forge_app.migrate import migrate
from forge_app.settings import Settings

from tests.app.postgresql import Server, running_server
from tests.app.service import serve, settings_for

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No FORGE_* variable of the developer's shell, and the log handlers as they were."""
    for name in list(os.environ):
        if name.upper().startswith("FORGE_"):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
async def empty_database(server: Server) -> str:
    """Name of a new database without tables or marker."""
    name = f"forge_{next(_numbers)}"
    await server.execute(f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def make_settings(server: Server) -> Callable[..., Settings]:
    return functools.partial(settings_for, server)


@pytest.fixture(scope="session")
def migrated_database(server: Server) -> str:
    """Name of the migrated database that all tests share; its marker is `development`."""
    name = "forge_shared"

    async def prepare() -> None:
        await server.execute(f"CREATE DATABASE {name}")
        await server.execute(f"ALTER DATABASE {name} SET forge.environment = 'development'")
        await migrate(settings_for(server, name))

    asyncio.run(prepare())
    return name


@pytest.fixture
async def settings(server: Server, migrated_database: str) -> Settings:
    """Settings of the shared database, without items; a test that changes its tables needs another one."""
    await server.execute("TRUNCATE items", migrated_database)
    return settings_for(server, migrated_database)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(create_app(settings)) as client:
        yield client
