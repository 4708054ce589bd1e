"""The reference application with routes to watch it by, and with the fault of one variant.

`benchmarks.trial.variants.make` copies this module to `forge_app.trial` and fills in the two constants.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import JSONResponse, StreamingResponse
from forge_app import main
from forge_app.database import DatabaseDependency
from forge_app.release import RELEASE_ID
from forge_app.settings import Settings, SettingsError
from pydantic import BaseModel
from sqlalchemy import text
from starlette.types import ASGIApp, Receive, Scope, Send

# value of variants.Fault, empty for none
FAULT = ""
START_SECONDS = 0.0

# from the end of the lifespan's startup
CRASH_SECONDS = {"crash": 5.0, "crash late": 30.0}

Seconds = Annotated[float, Query(ge=0, le=10)]

if FAULT == "import":
    raise ImportError("trial: fault import")


class Numbered(BaseModel):
    """Body of a request; `id` comes back."""

    id: int


class Answer(BaseModel):
    """Who answered; `id` is that of the request, None where it has none."""

    id: int | None = None
    release: str
    pid: int


router = APIRouter(prefix="/trial", tags=["trial"])


@router.get("/slow")
async def slow(seconds: Seconds = 2) -> Answer:
    """Answer after some seconds."""
    await asyncio.sleep(seconds)
    return _answer()


@router.post("/slow")
async def slow_echo(body: Numbered, seconds: Seconds = 2) -> Answer:
    """Answer after some seconds with the id of the body."""
    await asyncio.sleep(seconds)
    return _answer(body.id)


@router.post("/echo")
async def echo(body: Numbered) -> Answer:
    """Answer at once with the id of the body."""
    return _answer(body.id)


@router.get("/stream")
async def stream(seconds: Seconds = 1.5, parts: Annotated[int, Query(ge=1, le=1000)] = 15) -> StreamingResponse:
    """Send `parts` lines, spread over some seconds, then the line `end`."""

    async def lines() -> AsyncIterator[str]:
        for number in range(1, parts + 1):
            yield f"part {number} of {parts}\n"
            await asyncio.sleep(seconds / parts)
        yield "end\n"

    return StreamingResponse(lines(), media_type="text/plain")


@router.get("/database")
async def database(database: DatabaseDependency, seconds: Seconds = 2) -> Answer:
    """Ask the database twice in one session, some seconds apart."""
    async with database.session() as session:
        await session.execute(text("SELECT 1"))
        await asyncio.sleep(seconds)
        await session.execute(text("SELECT 1"))
    return _answer()


def _answer(number: int | None = None) -> Answer:
    return Answer(id=number, release=RELEASE_ID, pid=os.getpid())


class NotReadyMiddleware:
    """Answers 503 where it is asked whether the application is ready."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] == "/ready":
            await JSONResponse({"status": "unavailable"}, status_code=503)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the reference application with the routes under /trial and the fault.

    Raises SettingsError. At start its lifespan raises RuntimeError or DatabaseStartError.
    """
    if FAULT == "settings":
        raise SettingsError("FORGE_TRIAL is missing; set it in the environment or declare it as a secret")
    app = main.create_app(settings)
    app.include_router(router)
    if FAULT == "not ready":
        app.add_middleware(NotReadyMiddleware)
    reference = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if FAULT == "hang":
            await asyncio.Event().wait()
        await asyncio.sleep(START_SECONDS)
        if FAULT == "lifespan":
            raise RuntimeError("trial: fault lifespan")
        async with reference(app):
            if FAULT in CRASH_SECONDS:
                # a thread: the process ends even if its event loop is busy or already stopping
                crash = threading.Timer(CRASH_SECONDS[FAULT], os._exit, [1])
                crash.daemon = True
                crash.start()
            yield

    app.router.lifespan_context = lifespan
    return app
