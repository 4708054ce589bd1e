"""The readiness gate: wait until the application answers 200 over its unix socket."""

import contextlib
import http.client
import os
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path

# Seconds between two attempts, and between two looks at whether the process is still there.
INTERVAL = 0.1


class NotReadyError(Exception):
    """The application did not become ready. The text is one line, `cause; cure`."""


@dataclass(frozen=True)
class Gate:
    """What is waited for: a 200 on `GET path` with Host `host` over the unix socket `socket`.

    timeout: seconds in all. pid: stop at once when this process is gone.
    """

    socket: Path
    path: str = "/ready"
    host: str = "localhost"
    timeout: float = 60
    pid: int | None = None


def wait(gate: Gate) -> None:
    """Return when the application is ready; raises NotReadyError."""
    deadline = time.monotonic() + gate.timeout
    answer = "none"
    while True:
        try:
            answer = _ask(gate, deadline)
        except FileNotFoundError:
            answer = "there is no socket"
        except (OSError, http.client.HTTPException) as error:
            answer = (getattr(error, "strerror", None) or type(error).__name__).lower()
        if answer.startswith("200 "):
            return
        _give_up_if_hopeless(gate, deadline, answer)
        time.sleep(INTERVAL)


def _ask(gate: Gate, deadline: float) -> str:
    """Return status and reason of one answer, waiting for it as long as there is hope."""
    with contextlib.closing(UnixConnection(gate.socket, gate.host)) as connection:
        connection.request("GET", gate.path)
        # With socket activation the connection is accepted long before there is anybody to answer it.
        while not select.select([connection.sock], [], [], INTERVAL)[0]:
            _give_up_if_hopeless(gate, deadline, "connected, but no answer")
        response = connection.getresponse()
        return f"{response.status} {response.reason}"


def _give_up_if_hopeless(gate: Gate, deadline: float, answer: str) -> None:
    asked = f"GET {gate.path} over {gate.socket}"
    cure = "see the log of the unit: journalctl -u UNIT"
    if gate.pid is not None and not alive(gate.pid):
        raise NotReadyError(
            f"process {gate.pid} ended before {asked} was answered with 200, last answer: {answer}; {cure}"
        )
    if time.monotonic() >= deadline:
        raise NotReadyError(
            f"{asked} was not answered with 200 within {gate.timeout:g} s, last answer: {answer}; {cure}"
        )


def alive(pid: int) -> bool:
    """Whether this process is there and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # One that has ended but was not collected by its parent yet is gone all the same.
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the unix socket at `path`; `timeout` in seconds for each step."""

    def __init__(self, path: Path, host: str, timeout: float = 5) -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
