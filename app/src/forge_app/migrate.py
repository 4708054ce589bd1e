"""Bring the database to the revision of this release: `python -m forge_app.migrate`.

`--head` prints that revision, from the package alone, without settings or a database.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final

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
    engine = create_engine(settings)
    try:
        await prove(engine, settings)
        async with engine.connect() as connection:
            return await connection.run_sync(_upgrade)
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
