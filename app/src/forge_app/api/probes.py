"""What machines ask: is it alive, can it serve, which code is it."""

import logging
import os
import platform
import socket

from bareforge_runtime.agent_status import secrets_status
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from forge_app import __version__
from forge_app.database import DatabaseDependency, root_cause
from forge_app.release import RELEASE_ID
from forge_app.schemas import Health, Ready, Version
from forge_app.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter(tags=["probes"])


@router.get("/health")
async def health() -> Health:
    """Say that the process answers. Depends on nothing: a dead database is no reason to restart it."""
    return Health(status="ok")


@router.get("/ready", response_model=Ready)
async def ready(request: Request, database: DatabaseDependency) -> Ready | JSONResponse:
    """Say whether requests can be served: SELECT 1 within FORGE_DATABASE_TIMEOUT seconds.

    Secrets that are not kept current are told, and are no reason to stop: they are valid for some time yet.
    """
    settings: Settings = request.app.state.settings
    try:
        await database.ping(settings.database_timeout)
    except Exception as error:
        # the reason is for the operators' log, not for whoever may ask
        log.warning("not ready: database at %s: %s", settings.database_address, type(root_cause(error)).__name__)
        return JSONResponse({"status": "unavailable"}, status_code=503)
    return Ready(status="ready", release=RELEASE_ID, secrets=secrets_status())


@router.get("/version")
async def version(request: Request) -> Version:
    """Say which release answers, and from where."""
    settings: Settings = request.app.state.settings
    return Version(
        release=RELEASE_ID,
        version=__version__,
        environment=settings.environment,
        host=socket.gethostname(),
        pid=os.getpid(),
        python=platform.python_version(),
    )
