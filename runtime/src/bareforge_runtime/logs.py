"""Access log: one JSON object per request.

uvicorn formats its access lines itself, so gunicorn's `access_log_format` has no effect with a uvicorn
worker, and neither the duration nor the request id can be had that way. This wrapper around the application
writes the lines instead, to gunicorn's access log (setting `accesslog`, "-" is standard output).
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# What nginx's $request_id and the usual tracing identifiers look like. Anything else is not taken over, since
# a client may have sent it.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class AccessLog:
    """ASGI wrapper that writes one line per HTTP request, when its response is complete or was given up.

    Fields: method, path (without query string, which may carry personal data), status (the number sent, or
    null if no response was begun), duration_ms, request_id (the X-Request-ID of the request, or a new one),
    release, remote (address of the client as far as proxy headers are trusted, or null).
    The request id is also in `scope["state"]["request_id"]`, for the application's own log lines.
    """

    def __init__(self, application: Application, logger: logging.Logger, release_id: str) -> None:
        self._application = application
        self._logger = logger
        self._release_id = release_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope; other kinds than HTTP pass through."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status: int | None = None

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, watch)
        except BaseException:
            # uvicorn answers 500 for the application if it has not begun a response
            status = status or 500
            raise
        finally:
            client = scope.get("client")
            line = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round((time.perf_counter() - started) * 1000, 1),
                "request_id": request_id,
                "release": self._release_id,
                "remote": client[0] if client else None,
            }
            # as an argument: a path may contain what logging takes for a placeholder
            self._logger.info("%s", json.dumps(line))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
