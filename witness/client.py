"""One HTTP/1.1 exchange over asyncio streams, parsed by h11. Nothing is retried: what a retry hides is to be seen."""

import asyncio
import errno
import json
import select
import socket
import ssl
from dataclasses import dataclass

import h11

from witness.plan import Target

CHUNK = 65536
# of an answer to be compared with the request's id
MAXIMUM_ECHO = 1 << 20
# longest release header that is kept, in bytes
MAXIMUM_HEADER = 200
# the witness's own limits, no fault of the target: open files, local ports
OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOMEM})


class FailedError(Exception):
    """A request that failed: its kind, and the words of whoever noticed."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Request:
    """What to send. `number` is the id that the answer's JSON must carry under "id"; None: any answer will do."""

    head: h11.Request
    body: bytes = b""
    number: int | None = None


@dataclass
class Answer:
    """What came back so far; filled while it comes, so that it tells of an answer that broke off as well."""

    status: int | None = None
    release: str = ""


class Connection:
    """One connection to a target; made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._begun = self._closed = False
        self._ended = select.poll()
        self._ended.register(writer.get_extra_info("socket").fileno(), select.POLLRDHUP)

    def usable(self) -> bool:
        """Whether a request may be sent: the last exchange is complete, and the server has not closed meanwhile.

        Asks the kernel too, which may know of an end that the event loop has not come to yet.
        """
        if self._writer.is_closing() or self._reader.at_eof() or self._ended.poll(0):
            return False
        return self._http.our_state is h11.IDLE and self._http.trailing_data == (b"", False)

    def close(self) -> None:
        """Close without waiting; nothing is in flight."""
        self._writer.close()

    def abort(self) -> None:
        """Drop the connection at once, whatever is in flight."""
        self._writer.transport.abort()

    async def exchange(self, request: Request, release_header: bytes, answer: Answer) -> None:
        """Send a request and read its whole answer into `answer`; `release_header` is in lower case.

        Afterwards `usable` says whether the connection may serve again. Raises FailedError.
        """
        http = self._http
        self._begun = False
        parts = (request.head, h11.Data(request.body), h11.EndOfMessage())
        self._writer.write(b"".join(http.send(part) or b"" for part in parts))
        content = bytearray()
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                answer.status = event.status_code
                values = [value for name, value in event.headers if name == release_header]
                # two servers signed one answer: no release that anybody expects
                answer.release = " + ".join(value.decode("latin-1") for value in values)[:MAXIMUM_HEADER]
            elif isinstance(event, h11.Data):
                if request.number is not None and len(content) <= MAXIMUM_ECHO:
                    content += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        if answer.status is None or not 200 <= answer.status < 300:
            raise FailedError(f"status {answer.status}", f"answered with status {answer.status}")
        if request.number is not None:
            _check_echo(bytes(content), request.number)

    async def _next_event(self) -> h11.Event:
        """Return the next piece of the answer. Raises FailedError."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if self._closed:
                    raise FailedError("truncated", "closed before the answer was complete") from None
                raise FailedError("wrong answer", f"not HTTP: {error}") from None
            if isinstance(event, h11.Event):
                return event
            try:
                received = await self._reader.read(CHUNK)
            except ssl.SSLError as error:
                raise FailedError("tls", _words(error)) from None
            except TimeoutError as error:
                raise FailedError("timeout", _words(error)) from None
            except OSError as error:
                raise FailedError("truncated" if self._begun else "reset", _words(error)) from None
            self._closed = not received
            if self._closed and not self._begun:
                raise FailedError("reset", "closed without an answer")
            self._begun = True
            self._http.receive_data(received)


async def connect(target: Target, address: str, context: ssl.SSLContext | None, limit: float) -> Connection:
    """Open a connection to `address` (the IP address of the target; unused for a unix socket).

    `context` is None without TLS. `limit` (seconds) bounds the TLS handshake; the caller bounds the rest.
    Raises FailedError.
    """
    try:
        if target.socket:
            reader, writer = await asyncio.open_unix_connection(sock=_unix_socket(target.socket))
        elif context is None:
            reader, writer = await asyncio.open_connection(address, target.port)
        else:
            reader, writer = await asyncio.open_connection(
                address,
                target.port,
                ssl=context,
                server_hostname=target.server_name,
                ssl_handshake_timeout=limit,
                ssl_shutdown_timeout=1,
            )
    except ssl.SSLError as error:
        raise FailedError("tls", _words(error)) from None
    except TimeoutError as error:
        raise FailedError("connect timeout", _words(error)) from None
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError) as error:
        raise FailedError("reset", _words(error)) from None
    except OSError as error:
        raise FailedError("not sent" if error.errno in OWN_LIMITS else "refused", _words(error)) from None
    return Connection(reader, writer)


def _unix_socket(path: str) -> socket.socket:
    """Return a connected unix socket. asyncio would take a full backlog (EAGAIN) for a connection on its way."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _check_echo(content: bytes, number: int) -> None:
    """Raise FailedError unless the JSON object `content` carries the number as its "id"."""
    try:
        answer = json.loads(content)
    except ValueError:
        raise FailedError("wrong answer", "the answer is not JSON") from None
    got = answer.get("id") if isinstance(answer, dict) else None
    if got != number:
        raise FailedError("wrong answer", f"sent id {number}, got {str(got)[:40]}")


def _words(error: OSError) -> str:
    """Return what an error says, without its number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return str(error.strerror or error.args[0] if error.args else type(error).__name__)
