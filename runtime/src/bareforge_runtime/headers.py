"""A response header that says which release answered, on which host, in which process."""

import os
import re
import socket

from bareforge_runtime.logs import Application, Message, Receive, Scope, Send

VARIABLE = "BAREFORGE_RELEASE_HEADER"


def header_name() -> str:
    """The header's name from the environment, empty for none. Raises ValueError for what is not a name."""
    name = os.environ.get(VARIABLE, "")
    if name and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
        raise ValueError(f"{VARIABLE} is {name!r}; set it to the name of a header, such as X-Release")
    return name


class ReleaseHeader:
    """ASGI wrapper that adds `NAME: RELEASE; host=HOST; pid=PID` to every HTTP response."""

    def __init__(self, application: Application, name: str, release_id: str) -> None:
        self._application = application
        value = f"{release_id}; host={socket.gethostname()}; pid={os.getpid()}"
        self._header = (name.lower().encode(), value.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope; other kinds than HTTP pass through."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._header]}
            await send(message)

        await self._application(scope, receive, send_with_header)
