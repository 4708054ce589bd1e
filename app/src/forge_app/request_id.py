"""Request ids: taken from the proxy or made here, returned to the client and written in every log line."""

import re
import uuid
from contextvars import ContextVar
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-ID"

# what a proxy may send: nothing that could break a log line, a header or a terminal
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """Return the id of the request being served, None outside of one."""
    return _current.get()


class RequestIdMiddleware:
    """Gives every HTTP request an id: an incoming X-Request-ID of up to 64 harmless characters, or a new one.

    Pure ASGI: Starlette's BaseHTTPMiddleware runs the application in another task, whose context variables
    the server's access log would not see.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        # bareforge_runtime's access log has chosen the id already and leaves it in the state
        incoming = scope.get("state", {}).get("request_id") or Headers(scope=scope).get(HEADER, "")
        request_id = incoming if _ACCEPTED.fullmatch(incoming) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        token = _current.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            _current.reset(token)
