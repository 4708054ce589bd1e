"""New credentials of the database while requests are served: users of a real server come, and are really removed."""

import asyncio
import itertools
import json
from pathlib import Path

import httpx
import pytest
from bareforge_runtime import secrets
from forge_app.database import Database, DatabaseStartError
from forge_app.main import create_app
from forge_app.settings import PREFIX, Settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.app.postgresql import Server
from tests.app.service import SECRET_KEY, serve, settings_for

_numbers = itertools.count(1)
PASSWORD = "leased"


class Leases:
    """What Vault's database engine does, by the statements of playbooks/vars/vault.yml."""

    def __init__(self, server: Server, database: str) -> None:
        self.server = server
        self.database = database

    async def create(self) -> str:
        name = f"leased_{next(_numbers)}"
        await self.server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE app_owner")
        await self.server.execute(f"ALTER ROLE {name} SET role = 'app_owner'")
        return name

    async def revoke(self, name: str) -> None:
        await self.server.execute(f"ALTER ROLE {name} NOLOGIN")
        await self.server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
        await self.server.execute(f"DROP ROLE {name}")

    async def sessions(self, name: str) -> int:
        connection = await self.server.connect()
        try:
            return int(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", name))
        finally:
            await connection.close()

    def url(self, name: str) -> str:
        return f"postgresql://{name}:{PASSWORD}@127.0.0.1:{self.server.port}/{self.database}"

    def settings(self, name: str) -> Settings:
        return settings_for(self.server, self.database, database_url=self.url(name))

    async def drained(self, name: str) -> None:
        """Until a user has no session: only then may it go."""
        async with asyncio.timeout(20):
            while await self.sessions(name):
                await asyncio.sleep(0.05)


@pytest.fixture
async def leases(server: Server, migrated_database: str) -> Leases:
    await server.execute("DO $$ BEGIN CREATE ROLE app_owner NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    await server.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app_owner", migrated_database)
    await server.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app_owner", migrated_database)
    return Leases(server, migrated_database)


async def keep_asking(client: httpx.AsyncClient, answers: list[int], done: asyncio.Event) -> None:
    for number in itertools.count():
        if done.is_set():
            return
        if number % 2:
            answer = await client.get("/items", params={"limit": 5})
        else:
            answer = await client.post("/items", json={"name": "one of many"})
        answers.append(answer.status_code)


async def two_transactions(database: Database, answers: list[int], done: asyncio.Event) -> None:
    """A user that asks, commits, and asks again later: in between it holds no connection, and needs its pool."""
    while not done.is_set():
        async with database._engine.use() as engine, AsyncSession(engine) as session:
            await session.execute(text("SELECT pg_sleep(0.2)"))
            await session.commit()
            await asyncio.sleep(0.2)
            await session.execute(text("SELECT 1"))
        answers.append(200)


async def test_no_request_fails_while_users_come_and_go(leases: Leases) -> None:
    current = await leases.create()
    app = create_app(leases.settings(current))
    answers: list[int] = []
    done = asyncio.Event()
    async with serve(app) as client, asyncio.TaskGroup() as load:
        database: Database = app.state.database
        for _ in range(4):
            load.create_task(keep_asking(client, answers, done))
        load.create_task(two_transactions(database, answers, done))
        try:
            for _ in range(8):
                await asyncio.sleep(0.2)
                new = await leases.create()
                await database.move(leases.settings(new))
                await leases.drained(current)
                await leases.revoke(current)
                current = new
        finally:
            done.set()
    assert set(answers) <= {200, 201}
    assert len(answers) > 100


async def test_credentials_that_do_not_work_change_nothing(leases: Leases) -> None:
    current = await leases.create()
    app = create_app(leases.settings(current))
    async with serve(app) as client:
        wrong = leases.settings("nobody_by_that_name")
        with pytest.raises(DatabaseStartError) as refusal:
            await app.state.database.move(wrong)
        assert str(refusal.value) == (
            f"cannot reach the database at 127.0.0.1:{leases.server.port} (InvalidPasswordError); "
            "check FORGE_DATABASE_URL"
        )
        assert (await client.get("/items")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert await leases.sessions(current) > 0
    await leases.revoke(current)


async def test_the_same_credentials_again_are_no_reason_to_connect_anew(leases: Leases) -> None:
    current = await leases.create()
    app = create_app(leases.settings(current))
    async with serve(app):
        engine = app.state.database._engine.current
        await app.state.database.move(leases.settings(current))
        assert app.state.database._engine.current is engine
    await leases.revoke(current)


async def test_the_application_moves_by_itself_when_the_agent_has_written(
    leases: Leases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await leases.create(), await leases.create()
    monkeypatch.setattr(secrets, "_loaded", {})
    for name, value in {"ENVIRONMENT": "development", "SECRET_KEY": SECRET_KEY}.items():
        monkeypatch.setenv(PREFIX + name, value)
    monkeypatch.setenv("BAREFORGE_SECRETS", str(tmp_path))
    # so that it is taken out of the environment again
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", leases.url(first))

    def write(user: str) -> None:
        (tmp_path / "new").write_text(json.dumps({f"{PREFIX}DATABASE_URL": leases.url(user)}))
        (tmp_path / "new").replace(tmp_path / "db.json")

    write(first)
    secrets.load_into_environment()
    async with serve(create_app()) as client:
        assert (await client.get("/items")).status_code == 200
        write(second)
        await leases.drained(first)
        await leases.revoke(first)
        for _ in range(20):
            assert (await client.get("/items")).status_code == 200
        assert await leases.sessions(second) > 0
    await leases.revoke(second)
