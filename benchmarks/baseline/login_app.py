"""The stock application, each worker of which logs in to Vault when it starts, as examples with hvac have it."""

import json
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from base import app  # type: ignore[import-not-found]
from fastapi import FastAPI


def login() -> None:
    """Log in; what it raises ends the start."""
    given = json.loads(Path("/srv/stock/vault.json").read_text())
    body = json.dumps({"role_id": given["role_id"], "secret_id": given["secret_id"]}).encode()
    url = f"{given['address']}/v1/auth/approle/login"
    request = urllib.request.Request(url, data=body, method="POST")  # noqa: S310 (written by the benchmark)
    context = ssl.create_default_context(cafile="/etc/ssl/lab/ca.pem")
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
        json.load(answer)["auth"]["client_token"]


inner = app.router.lifespan_context


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """Log in first."""
    login()
    async with inner(application):
        yield


app.router.lifespan_context = lifespan
