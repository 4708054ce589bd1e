"""Bring the database to the revision of this release: `python -m forge_app.migrate`.

`--head` prints that revision, from the package alone, without settings or a database.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from forge_app.database import DatabaseStartError, create_engine, prove, root_cause
from forge_app.settings import Settings, SettingsError

LOCK_KEY: Final = int.from_bytes(b"forge", "big")
"""Key of the advisory lock that keeps two migrations apart; locks are per database."""

LOCK_TIMEOUT: Final = 60
"""Seconds to wait for another migration to end."""

TABLE_LOCK_TIMEOUT: Final = 5
"""Seconds a statement may wait for a table; meanwhile every later query on it waits behind the statement."""

T = TypeVar("T")


class MigrationError(Exception):
    """The database was not migrated. The message is one line and holds no credentials."""


def head() -> str:
    """Return the revision that this release expects."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None  # the package ships at least one
    return revision


async def migrate(settings: Settings) -> str:
    """Upgrade to head under the lock; return one line that says what was done.

    Raises DatabaseStartError (unreachable, or of another environment) and MigrationError.
    """
    return await _with_database(settings, _upgrade)


def blocks(older_head: str) -> str:
    """Return "" if code that expects `older_head` can run on the present database, else the revision that blocks it.

    That is the oldest one that the database has, that such code does not know, and that says `breaks_older = True`.
    Where this release does not know both revisions it cannot judge: then it is the database's own revision (`base`
    if it has none). Takes the settings of the environment. Raises SettingsError and DatabaseStartError.
    """
    present = asyncio.run(_with_database(Settings.load(), _revision))
    if present == older_head:
        return ""
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    if older_head not in known or present not in {*known, None}:
        return present or "base"
    expected = {script.revision for script in scripts.iterate_revisions(older_head, "base")}
    breaking = [
        script.revision
        for script in scripts.iterate_revisions(present or "base", "base")
        if script.revision not in expected and getattr(script.module, "breaks_older", False)
    ]
    # they come newest first
    return breaking[-1] if breaking else ""


async def _with_database(settings: Settings, ask: Callable[[Connection], T]) -> T:
    """Prove the database, then call `ask` with a connection to it. Raises DatabaseStartError and what `ask` raises."""
    engine = create_engine(settings)
    try:
        await prove(engine, settings)
        async with engine.connect() as connection:
            return await connection.run_sync(ask)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> str:
    # a lock of the session, not of the transaction: a migration may need to commit half-way, as CREATE INDEX
    # CONCURRENTLY does. The server lets go of it when the connection closes, however this process ends.
    _execute(connection, f"SET lock_timeout = '{LOCK_TIMEOUT}s'")
    try:
        _execute(connection, f"SELECT pg_advisory_lock({LOCK_KEY})")
    except DBAPIError:
        raise MigrationError(
            f"another migration has been running for {LOCK_TIMEOUT} s; try again when it has ended"
        ) from None
    _execute(connection, f"SET lock_timeout = '{TABLE_LOCK_TIMEOUT}s'")

    config = _config()
    scripts = ScriptDirectory.from_config(config)
    before, after = _revision(connection), head()
    if before == after:
        return f"database is at revision {after}, nothing to do"
    if before is not None and before not in {script.revision for script in scripts.walk_revisions()}:
        raise MigrationError(
            f"database is at revision {before}, which this release (revision {after}) does not know; "
            "deploy a release that contains it"
        )
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        cause = root_cause(error)
        connection.rollback()
        raise MigrationError(
            f"migration from {before or 'base'} to {after} failed "
            f"({type(cause).__name__}: {_first_line(cause)}); "
            f"the database is at revision {_revision(connection) or 'base'}; mend the migration, run again"
        ) from None
    return f"database migrated from {before or 'base'} to {after}"


def _config() -> Config:
    config = Config()
    # % starts an interpolation in Alembic's configuration
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(text(statement))
    connection.commit()


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.commit()
    return revision


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code. Failure prints one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m forge_app.migrate", description="migrate the database to head")
    parser.add_argument("--head", action="store_true", help="print the revision of this release and stop")
    if parser.parse_args(arguments).head:
        print(head())
        return 0
    try:
        print(asyncio.run(migrate(Settings.load())))
    except (SettingsError, DatabaseStartError, MigrationError) as error:
        print(f"forge_app.migrate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
