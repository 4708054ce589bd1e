"""One request to an ASGI application in its own process: no socket, no server."""

import asyncio
from typing import Any

from bareforge_runtime.logs import Application, Message


async def get(application: Application, target: str, host: str, state: dict[str, Any]) -> tuple[int, bytes]:
    """Return status and body of GET target (path and query); status 0 if the application began no response.

    state: of the lifespan, which every request gets a copy of. Raises what the application raises.
    """
    status, body = 0, b""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", host.encode())],
        "client": None,
        "server": None,
        "state": state.copy(),
    }
    never = asyncio.Event()
    received = False

    async def receive() -> Message:
        nonlocal received
        if received:
            await never.wait()
        received = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")

    await application(scope, receive, send)
    return status, body
