"""The service under test: its settings and a client of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from forge_app.settings import Settings

from tests.app.postgresql import Server

SECRET_KEY = "0123456789abcdef0123456789abcdef"


def settings_for(server: Server, database: str, **values: object) -> Settings:
    """Settings for development on a database of the server, changed by `values`."""
    defaults = {"environment": "development", "database_url": server.url(database), "secret_key": SECRET_KEY}
    return Settings(**(defaults | values))  # type: ignore[arg-type]


@asynccontextmanager
async def serve(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application's lifespan around a client of it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://forge") as client,
    ):
        yield client
