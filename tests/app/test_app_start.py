import socket

import pytest
from forge_app.database import DatabaseStartError
from forge_app.main import create_app
from forge_app.migrate import migrate

from tests.app.postgresql import PASSWORD
from tests.app.service import serve


async def refusal_of(settings) -> str:
    with pytest.raises(DatabaseStartError) as refusal:
        async with serve(create_app(settings)):
            pass
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None, "a chained error of the driver may show the URL"
    assert "\n" not in str(refusal.value)
    assert PASSWORD not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("process", "database", "message"),
    [
        (
            "production",
            "staging",
            "FORGE_ENVIRONMENT is production but the database says staging; "
            "FORGE_DATABASE_URL points to the wrong server",
        ),
        (
            "development",
            "production",
            "FORGE_ENVIRONMENT is development but the database says production; "
            "FORGE_DATABASE_URL points to the wrong server",
        ),
        (
            "production",
            None,
            "FORGE_ENVIRONMENT is production but the database has no environment marker; "
            "if it is the right server, run as its owner: "
            "ALTER DATABASE {name} SET forge.environment = 'production'",
        ),
        (
            "staging",
            None,
            "FORGE_ENVIRONMENT is staging but the database has no environment marker; "
            "if it is the right server, run as its owner: "
            "ALTER DATABASE {name} SET forge.environment = 'staging'",
        ),
    ],
)
async def test_a_database_of_another_environment_is_refused(
    server, empty_database, make_settings, process, database, message
):
    if database:
        await server.execute(f"ALTER DATABASE {empty_database} SET forge.environment = '{database}'")
    settings = make_settings(empty_database, environment=process)
    assert await refusal_of(settings) == message.format(name=empty_database)
    with pytest.raises(DatabaseStartError):
        await migrate(settings)
    connection = await server.connect(empty_database)
    tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    assert tables == 0, "a migration went to the wrong server"


async def test_the_advised_statement_is_the_cure(server, make_settings):
    await server.execute('CREATE DATABASE "Forge production"')
    settings = make_settings("Forge%20production", environment="production")
    message = await refusal_of(settings)
    await server.execute(message.partition("run as its owner: ")[2])
    async with serve(create_app(settings)) as client:
        assert (await client.get("/ready")).status_code == 200


async def test_a_missing_marker_only_warns_in_development(make_settings, empty_database, capsys):
    async with serve(create_app(make_settings(empty_database))) as client:
        assert (await client.get("/ready")).status_code == 200
    advice = f"ALTER DATABASE {empty_database} SET forge.environment = 'development'"
    assert f"the database has no environment marker; to set it: {advice}" in capsys.readouterr().err


async def test_an_unusable_database_is_named_without_the_password(server, make_settings, empty_database):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        cases = {
            server.url(empty_database).replace(str(server.port), str(port)): (port, "ConnectionRefusedError"),
            server.url("nowhere"): (server.port, "InvalidCatalogNameError"),
            f"postgresql://forge:wrong@127.0.0.1:{server.port}/{empty_database}": (
                server.port,
                "InvalidPasswordError",
            ),
        }
        for url, (where, reason) in cases.items():
            message = await refusal_of(make_settings(empty_database, database_url=url))
            assert message == (f"cannot reach the database at 127.0.0.1:{where} ({reason}); check FORGE_DATABASE_URL")


async def test_the_pool_is_closed_with_the_application(server, settings, migrated_database):
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
    connection = await server.connect()
    try:
        async with serve(create_app(settings)) as client:
            await client.get("/ready")
            assert await connection.fetchval(count, migrated_database) == 1
        # a backend leaves the view a moment after its connection closed
        for _ in range(100):
            left = await connection.fetchval(count, migrated_database)
            if left == 0:
                break
        assert left == 0
    finally:
        await connection.close()
