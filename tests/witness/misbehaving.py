"""A small HTTP server on loopback that misbehaves: `server.faults.append("reset")` spoils the next request."""

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 10


class Server:
    """Serves until the end of its `with` block on a port of 127.0.0.1, or on a unix socket.

    Paths: /echo answers with the body's id, /slow after 0.3 s, /stream in 3 pieces over 0.3 s, others at once.
    """

    def __init__(self, context: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self.faults: deque[str] = deque()
        self.release = "r1; host=app1; pid=41"
        self.idle_seconds: float | None = None  # closes connections that were idle for so long
        self.requests = 0
        self.connections = 0
        self.heads: list[str] = []
        self.port = 0
        self._context = context
        self._path = path
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        if self._path:
            return f"unix:{self._path}"
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)

        def protocol() -> Exchange:
            return Exchange(self)

        if self._path:
            self._loop.run_until_complete(self._loop.create_unix_server(protocol, str(self._path)))
        else:
            listening = self._loop.run_until_complete(
                self._loop.create_server(protocol, "127.0.0.1", 0, ssl=self._context, backlog=2048)
            )
            self.port = listening.sockets[0].getsockname()[1]
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class Exchange(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None
        self.idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"\x16"):  # TLS, of which this server knows nothing
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return self.transport.close()
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if end and len(body) >= length:
            self.buffer = b""
            if self.idle:
                self.idle.cancel()
            self.server.requests += 1
            self.server.heads.append(head.decode())
            self.task = asyncio.ensure_future(self.answer(head.decode(), body))
        return None

    async def answer(self, head: str, body: bytes) -> None:
        path = head.split(" ", 2)[1]
        fault = self.server.faults.popleft() if self.server.faults else ""
        if path == "/slow":
            await asyncio.sleep(0.3)
        if fault == "hang":
            return None
        if fault == "stall":
            time.sleep(1)  # nobody is served meanwhile
        elif fault == "reset":
            return self.reset()
        elif fault == "close":
            return self.transport.close()
        elif fault == "not http":
            self.transport.write(b"good day to you\r\n\r\n")
            return self.transport.close()
        status = fault if fault.isdigit() else "200"
        content = b'{"status": "ok"}'
        if path == "/echo":
            content = json.dumps({"id": 7 if fault == "wrong echo" else json.loads(body)["id"]}).encode()
        close = "connection: close" in head.lower()
        start = f"HTTP/1.1 {status} Whatever\r\nX-Release: {self.server.release}\r\n"
        start += "Connection: close\r\n" if close else ""
        if path == "/stream" or fault == "short chunked":
            await self.stream(start, broken=fault == "short chunked")
        else:
            self.transport.write(f"{start}Content-Length: {len(content)}\r\n\r\n".encode())
            self.transport.write(content[:5] if fault.startswith("short") else content)
        if fault == "short reset":
            await asyncio.sleep(0.1)  # let the client read what there is: a reset drops it
            return self.reset()
        if close or fault.startswith("short"):
            return self.transport.close()
        if self.server.idle_seconds is not None:
            self.idle = asyncio.get_running_loop().call_later(self.server.idle_seconds, self.transport.close)
        return None

    async def stream(self, start: str, *, broken: bool) -> None:
        self.transport.write(f"{start}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            self.transport.write(b"5\r\nhello\r\n")
            await asyncio.sleep(0.1)
        if not broken:
            self.transport.write(b"0\r\n\r\n")

    def reset(self) -> None:
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
