"""The application. Importing this module does nothing; a server calls `forge_app.main:create_app()`."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bareforge_runtime import changes
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline

from forge_app import __version__
from forge_app.api import items, probes
from forge_app.database import Database
from forge_app.errors import ErrorMiddleware, refuse_invalid_request
from forge_app.logs import configure_logging
from forge_app.request_id import RequestIdMiddleware
from forge_app.settings import Settings

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application from `settings`, by default those of the environment.

    Raises SettingsError. At start its lifespan raises DatabaseStartError.
    """
    if settings is None:
        settings = Settings.load()
    configure_logging(settings.log_level)
    # the page's scripts come from the application itself: no third party sees who reads it, no network is needed
    make = FastAPIOffline if settings.docs else FastAPI
    app = make(
        title="forge",
        version=__version__,
        debug=settings.debug,
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.add_exception_handler(RequestValidationError, refuse_invalid_request)
    if not settings.debug:
        app.add_middleware(ErrorMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.include_router(probes.router)
    app.include_router(items.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open and prove the pool before the first request, in the process it serves; close it after the last.

    In between it moves to new credentials as often as there are some.
    """
    database = Database(app.state.settings)

    async def move(_: object) -> None:
        await database.move(Settings.load())

    try:
        await database.prove()
        app.state.database = database
        async with changes.followed(move):
            log.info("started")
            yield
    finally:
        await database.close()
