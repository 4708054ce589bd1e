"""The connection pool and the proof that it leads to the right server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

from bareforge_runtime.replaceable import Replaceable
from fastapi import Depends, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from forge_app.settings import Settings

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 10.0
"""Seconds in which a starting process must have reached the database; a deploy waits for this answer."""

POOL_TIMEOUT: Final = 5.0
"""Seconds a request waits for a free connection; then it fails while its client still listens."""


class DatabaseStartError(Exception):
    """The database cannot be used. The message is one line and holds no credentials."""


class Database:
    """The pool behind a name that stays: users take sessions and never hold the engine.

    So the engine is replaced under them when the credentials change, each session finishing on the one it began with.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = Replaceable(create_engine(settings), lambda engine: engine.dispose())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yield a session in a transaction: committed at the end, rolled back on an exception."""
        async with (
            self._engine.use() as engine,
            AsyncSession(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    async def prove(self) -> None:
        """Connect and compare the environment marker. Raises DatabaseStartError."""
        async with self._engine.use() as engine:
            await prove(engine, self._settings)

    async def move(self, settings: Settings) -> None:
        """Use the database of these settings once it is proven. Raises DatabaseStartError, nothing changed."""
        if settings.database_url == self._settings.database_url:
            return
        engine = create_engine(settings)
        try:
            await prove(engine, settings)
        except BaseException:
            await engine.dispose()
            raise
        self._settings = settings
        self._engine.replace(engine)

    async def ping(self, timeout: float) -> None:
        """Run SELECT 1 within `timeout` seconds. Raises TimeoutError or the driver's error."""
        query = asyncio.create_task(self._select_one())
        done, _ = await asyncio.wait({query}, timeout=timeout)
        if not done:
            # not awaited: closing a connection to a server that hangs takes longer than the deadline
            query.cancel()
            raise TimeoutError
        query.result()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.close()

    async def _select_one(self) -> None:
        async with self._engine.use() as engine, engine.connect() as connection:
            await connection.execute(text("SELECT 1"))


def create_engine(settings: Settings) -> AsyncEngine:
    """Return an engine that has not connected yet."""
    return create_async_engine(
        str(settings.database_url),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_max_overflow,
        pool_timeout=POOL_TIMEOUT,
        # a restarted server leaves dead connections in the pool: notice before a request does
        pool_pre_ping=True,
        # parameters are the users' data and belong in no log
        hide_parameters=True,
        connect_args={"timeout": START_TIMEOUT},
    )


async def prove(engine: AsyncEngine, settings: Settings) -> None:
    """Connect within START_TIMEOUT seconds and compare the environment marker. Raises DatabaseStartError."""
    cause = None
    try:
        async with asyncio.timeout(START_TIMEOUT), engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            marker, name = await _environment_marker(connection)
    except Exception as error:
        cause = root_cause(error)
    if cause:
        # raised outside `except`: the driver's error, whose context may hold the URL, is not chained
        raise DatabaseStartError(
            f"cannot reach the database at {settings.database_address} ({type(cause).__name__}); "
            "check FORGE_DATABASE_URL"
        )
    check_environment(settings.environment, marker, name)


async def _environment_marker(connection: AsyncConnection) -> tuple[str, str]:
    row = await connection.execute(
        text("SELECT coalesce(current_setting('forge.environment', true), ''), quote_ident(current_database())")
    )
    marker, name = row.one()
    return marker, name


def check_environment(environment: str, marker: str, database: str) -> None:
    """Compare the process's environment with the database's marker ("" if it has none).

    `database` is the quoted name for the advice. Raises DatabaseStartError on a difference, and on a missing
    marker outside development.
    """
    if marker == environment:
        return
    if marker:
        raise DatabaseStartError(
            f"FORGE_ENVIRONMENT is {environment} but the database says {marker}; "
            "FORGE_DATABASE_URL points to the wrong server"
        )
    advice = f"ALTER DATABASE {database} SET forge.environment = '{environment}'"
    if environment != "development":
        raise DatabaseStartError(
            f"FORGE_ENVIRONMENT is {environment} but the database has no environment marker; "
            f"if it is the right server, run as its owner: {advice}"
        )
    log.warning("the database has no environment marker; to set it: %s", advice)


def root_cause(error: BaseException) -> BaseException:
    """Return the error at the bottom of the chain, the one that says why and not only that."""
    while error.__cause__:
        error = error.__cause__
    return error


async def get_database(request: Request) -> Database:
    """Dependency: the database of this application."""
    database: Database = request.app.state.database
    return database


# Routes open the session themselves. A session from a dependency would commit after the response is out:
# the client would hear 201 for a row that the commit may still refuse.
DatabaseDependency = Annotated[Database, Depends(get_database)]
