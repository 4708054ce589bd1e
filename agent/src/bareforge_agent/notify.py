"""systemd's notification protocol (sd_notify), without a library."""

import contextlib
import os
import socket

# Seconds to wait for a receiver that has fallen behind.
DELIVERY_TIMEOUT = 5


def notify(**fields: str) -> None:
    """Tell systemd, for example `notify(READY="1", STATUS="ok")`; does nothing outside of a unit.

    A message that cannot be delivered is dropped: the service is worth more than what is said about it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(DELIVERY_TIMEOUT)
        connection.sendto(message.encode(), address)
