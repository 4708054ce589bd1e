import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from forge_app import migrate as migrate_module
from forge_app.database import create_engine
from forge_app.migrate import LOCK_KEY, MigrationError, head, migrate
from forge_app.models import Base

from tests.app.service import SECRET_KEY

ROOT = Path(__file__).parents[2]


def command(server, database: str | None, *arguments: str) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/app/src:{ROOT}/runtime/src"}
    if database:
        environment |= {
            "FORGE_ENVIRONMENT": "development",
            "FORGE_SECRET_KEY": SECRET_KEY,
            "FORGE_DATABASE_URL": server.url(database),
        }
    return subprocess.Popen(
        [sys.executable, "-m", "forge_app.migrate", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


async def test_up_from_empty_then_nothing_to_do(make_settings, empty_database):
    settings = make_settings(empty_database)
    assert await migrate(settings) == "database migrated from base to 0001"
    assert await migrate(settings) == "database is at revision 0001, nothing to do"


async def test_the_migrated_tables_are_the_models(settings):
    engine = create_engine(settings)
    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"compare_server_default": True}), Base.metadata
            )
        )
    await engine.dispose()
    assert differences == []


async def test_two_commands_at_once_migrate_once(server, empty_database):
    await server.execute(f"ALTER DATABASE {empty_database} SET forge.environment = 'development'")
    connection = await server.connect(empty_database)
    await connection.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
    processes = [command(server, empty_database) for _ in range(2)]
    try:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        for _ in range(200):
            if await connection.fetchval(waiting) == 2:
                break
            await asyncio.sleep(0.05)
        assert await connection.fetchval(waiting) == 2, "both must wait for the lock"
        assert await connection.fetchval("SELECT to_regclass('items')") is None
        await connection.execute(f"SELECT pg_advisory_unlock({LOCK_KEY})")
        results = [process.communicate(timeout=30) for process in processes]
    finally:
        await connection.close()
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert {(out, err) for out, err in results} == {
        ("database migrated from base to 0001\n", ""),
        ("database is at revision 0001, nothing to do\n", ""),
    }


async def test_a_migration_that_never_ends_is_not_waited_for_for_ever(
    server, make_settings, empty_database, monkeypatch
):
    monkeypatch.setattr(migrate_module, "LOCK_TIMEOUT", 1)
    connection = await server.connect(empty_database)
    await connection.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
    with pytest.raises(MigrationError, match=r"^another migration has been running for 1 s; try again"):
        await migrate(make_settings(empty_database))
    await connection.close()


async def test_a_failed_migration_changes_nothing_and_says_why(server, make_settings, empty_database):
    await server.execute("CREATE TABLE items (a int)", empty_database)
    with pytest.raises(MigrationError) as failure:
        await migrate(make_settings(empty_database))
    assert str(failure.value) == (
        'migration from base to 0001 failed (DuplicateTableError: relation "items" already exists); '
        "the database is at revision base; mend the migration, run again"
    )
    connection = await server.connect(empty_database)
    assert await connection.fetchval("SELECT to_regclass('alembic_version')") is None
    await connection.close()


async def test_a_database_ahead_of_the_release_is_left_alone(server, make_settings, empty_database):
    settings = make_settings(empty_database)
    await migrate(settings)
    await server.execute("UPDATE alembic_version SET version_num = '9999'", empty_database)
    with pytest.raises(MigrationError) as refusal:
        await migrate(settings)
    assert str(refusal.value) == (
        "database is at revision 9999, which this release (revision 0001) does not know; "
        "deploy a release that contains it"
    )


def test_head_needs_neither_settings_nor_a_database(server):
    process = command(server, None, "--head")
    assert process.communicate(timeout=30) == (f"{head()}\n", "")
    assert process.returncode == 0


def test_the_command_fails_with_one_line(server):
    process = command(server, "nowhere")
    assert process.communicate(timeout=30) == (
        "",
        f"forge_app.migrate: cannot reach the database at 127.0.0.1:{server.port} (InvalidCatalogNameError); "
        "check FORGE_DATABASE_URL\n",
    )
    assert process.returncode == 1
