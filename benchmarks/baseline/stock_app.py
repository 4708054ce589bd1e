"""What everybody writes first: an application with the routes and the start-up time of the trial variants."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

# import and lifespan of 1 s together
time.sleep(0.5)


class Numbered(BaseModel):
    """Body of a request; `id` comes back."""

    id: int


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Take as long as opening a pool does."""
    await asyncio.sleep(0.5)
    yield


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def sign(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Say which process answered."""
    response = await call_next(request)
    response.headers["X-Release"] = f"stock; host={socket.gethostname()}; pid={os.getpid()}"
    return response


@app.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@app.post("/trial/echo")
async def echo(body: Numbered) -> Numbered:
    """Answer at once with the id of the body."""
    return body


@app.get("/trial/slow")
async def slow(seconds: float = 2) -> dict[str, str]:
    """Answer after some seconds."""
    await asyncio.sleep(seconds)
    return {"status": "ok"}


@app.post("/trial/slow")
async def slow_echo(body: Numbered, seconds: float = 2) -> Numbered:
    """Answer after some seconds with the id of the body."""
    await asyncio.sleep(seconds)
    return body


@app.get("/trial/stream")
async def stream(seconds: float = 1.5, parts: int = 15) -> StreamingResponse:
    """Send `parts` lines, spread over some seconds."""

    async def lines() -> AsyncIterator[str]:
        for number in range(1, parts + 1):
            yield f"part {number} of {parts}\n"
            await asyncio.sleep(seconds / parts)

    return StreamingResponse(lines(), media_type="text/plain")
