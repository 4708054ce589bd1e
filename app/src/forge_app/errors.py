"""What a client learns about a failure: what to do and the request id, never the inside of the service."""

import logging

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forge_app.request_id import current_request_id

log = logging.getLogger(__name__)


class ErrorMiddleware:
    """Turns an unhandled exception into one log line and a bare 500.

    It stands inside RequestIdMiddleware; Starlette's own handler of exceptions stands outside of every
    middleware, where the request id is gone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            log.exception("unhandled error in %s %s", scope["method"], scope["path"])
            if started:
                # half a response is out: only closing the connection tells the client
                raise
            body = {"detail": "internal error", "request_id": current_request_id()}
            await JSONResponse(body, status_code=500)(scope, receive, send)


async def refuse_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Answer 422 with where and what is wrong.

    FastAPI's own answer repeats the input, which may be a secret, or text that JSON cannot carry.
    """
    assert isinstance(error, RequestValidationError)  # the one class it is registered for
    detail = [{"loc": item["loc"], "msg": item["msg"], "type": item["type"]} for item in error.errors()]
    return JSONResponse({"detail": detail, "request_id": current_request_id()}, status_code=422)
