"""The connections to one target, and what they need: its address, the authorities to trust."""

import asyncio
import contextlib
import socket
import ssl
from collections import deque

from witness.client import Connection, FailedError, connect
from witness.plan import PlanError, Target

# keep-alive connections per target that take turns; more are opened while these are busy, and closed again
POOL = 8
RESOLVE_SECONDS = 5


class Pool:
    """The idle keep-alive connections of one target, the longest idle first. `opened` counts the busy ones too."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.address = ""
        self.context: ssl.SSLContext | None = None
        self.opened = 0
        self._idle: deque[Connection] = deque()

    def take(self) -> Connection | None:
        """Return a connection to send on right now; None: open one. One that the server closed is no failure."""
        while self._idle and self.opened >= POOL:
            connection = self._idle.popleft()
            if connection.usable():
                return connection
            self.drop(connection)
        return None

    async def open(self, limit: float, *, counted: bool) -> Connection:
        """Return a new connection; `counted`: it is to be given or dropped later. Raises FailedError."""
        self.opened += counted
        try:
            return await connect(self.target, self.address, self.context, limit)
        except BaseException:
            self.opened -= counted
            raise

    def give(self, connection: Connection) -> None:
        """Take a connection back after its exchange; one more than is kept, or one that ended, is closed."""
        if connection.usable() and len(self._idle) < POOL:
            self._idle.append(connection)
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection that was counted."""
        self.opened -= 1
        connection.close()

    def abort(self) -> None:
        """Drop all idle connections at once."""
        while self._idle:
            self._idle.popleft().abort()


def trust(authority: str) -> ssl.SSLContext:
    """Return what TLS trusts: the authorities in the file, or the system's. Raises PlanError."""
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except (OSError, ssl.SSLError):
        raise PlanError(f"--ca {authority} is not readable as a file of certificates; name a PEM file") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


async def address_of(target: Target) -> str:
    """Return the one IP address that requests of a target go to. Raises PlanError.

    Of several, the first that accepts a connection now: going on to the next at each request would hide refusals.
    """
    if target.socket:
        return ""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PlanError(f"the name {target.host} has no address; correct --url or the name service") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses if len(addresses) > 1 else []:
        with contextlib.suppress(FailedError, TimeoutError):
            async with asyncio.timeout(RESOLVE_SECONDS / len(addresses)):
                (await connect(target, address, None, RESOLVE_SECONDS)).abort()
                return address
    return addresses[0]
