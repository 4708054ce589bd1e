"""A service that imports what services import, and says which build it is."""

import pydantic_settings  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401
from fastapi import FastAPI
from pydantic import BaseModel

# one number for each build: what `build` of benchmarks/speed/builds.py writes
BUILD = 0

app = FastAPI()


class Numbered(BaseModel):
    """Body of a request; `id` comes back."""

    id: int


@app.get("/health")
@app.get("/ready")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@app.get("/version")
async def version() -> dict[str, int]:
    """Say which build answers: fixed when the module was imported."""
    return {"build": BUILD}


@app.post("/echo")
async def echo(body: Numbered) -> Numbered:
    """Answer with the id of the body."""
    return body
