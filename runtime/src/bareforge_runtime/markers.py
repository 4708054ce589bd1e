"""Worker markers: each worker asks itself whether it is ready and says the answer in a file of its own.

gunicorn's own signs do not serve for this: systemd's READY comes before any worker exists, and an application may
have started and yet not be ready. The file is MASTER.WORKER.json in the directory that BAREFORGE_MARKERS names; a
marker counts only while its worker lives and has that master for a parent.
"""

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bareforge_runtime.asking import get
from bareforge_runtime.logs import Application

DIRECTORY_VARIABLE = "BAREFORGE_MARKERS"
ACTIVATION_VARIABLE = "BAREFORGE_ACTIVATION"
PATH_VARIABLE = "BAREFORGE_READY_PATH"
HOST_VARIABLE = "BAREFORGE_READY_HOST"

# Seconds between two questions, and for one answer.
INTERVAL = 0.25
PATIENCE = 5.0

_log = logging.getLogger("gunicorn.error")


@dataclass(frozen=True)
class Marker:
    """What a worker says of itself. answer: why it is not ready, "GET /ready answered 503"; empty if it is."""

    pid: int
    master: int
    release: str
    activation: str
    ready: bool = False
    answer: str = ""

    @property
    def name(self) -> str:
        """The file's name, MASTER.WORKER.json."""
        return f"{self.master}.{self.pid}.json"

    def text(self) -> str:
        """Return the file's content, one JSON object."""
        return json.dumps(asdict(self))


def parse(text: str) -> Marker:
    """Return the marker with this content. Raises ValueError if it is none."""
    document = json.loads(text)
    try:
        return Marker(**{field.name: document[field.name] for field in fields(Marker)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a marker: {error}") from None


def read(directory: Path, master: int) -> list[Marker]:
    """Return what the workers of this master say; a directory that is not there yet holds none."""
    found = []
    for file in sorted(directory.glob(f"{master}.*.json")):
        # removed or written by another hand in between
        with contextlib.suppress(OSError, ValueError):
            found.append(parse(file.read_text(encoding="utf-8")))
    return found


class Announcer:
    """Keeps the marker of this worker.

    application: what is asked, without an access log around it. others: how many workers the master has beside it.
    """

    def __init__(self, directory: Path, application: Application, master: int, release: str, others: int = 0) -> None:
        self.directory = directory
        self.others = others
        self.marker = Marker(os.getpid(), master, release, os.environ.get(ACTIVATION_VARIABLE, ""))
        self._application = application
        self._path = os.environ.get(PATH_VARIABLE) or "/ready"
        self._host = os.environ.get(HOST_VARIABLE) or "localhost"

    async def announce(self, state: dict[str, Any]) -> None:
        """Ask until the application is ready and keep the marker true meanwhile.

        state: of the lifespan. Where the marker cannot be written one warning is logged and nothing more is asked:
        the worker serves all the same.
        """
        said: Marker | None = None
        while said is None or not said.ready:
            question = asyncio.create_task(self._ask(state))
            try:
                await asyncio.wait({question}, timeout=PATIENCE)
                answer = self._outcome(question)
                marker = replace(self.marker, ready=not answer, answer=answer)
                if marker != said:
                    self._write(marker)
                    said = marker
                question.cancel()
                # One question at a time, also to an application that does not let itself be cancelled.
                await asyncio.wait({question})
            except OSError as error:
                _log.warning(
                    "bareforge-runtime: cannot write %s: %s; %s must name a directory that this user can write",
                    self.directory / self.marker.name,
                    (error.strerror or type(error).__name__).lower(),
                    DIRECTORY_VARIABLE,
                )
                return
            finally:
                question.cancel()
            if not said.ready:
                await asyncio.sleep(INTERVAL)

    def remove(self) -> None:
        """Remove the marker, this worker's or what an earlier process with the same number left."""
        with contextlib.suppress(OSError):
            (self.directory / self.marker.name).unlink(missing_ok=True)

    async def _ask(self, state: dict[str, Any]) -> str:
        """Return what is wrong with the answer, empty if nothing is."""
        try:
            status, _ = await get(self._application, self._path, self._host, state)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # SystemExit would end the worker. Without its text, which may quote a secret.
            return f"GET {self._path} raised {type(error).__name__}"
        if status == 0:
            return f"GET {self._path} gave no answer"
        return "" if status == 200 else f"GET {self._path} answered {status}"

    def _outcome(self, question: asyncio.Task[str]) -> str:
        if not question.done():
            return f"GET {self._path} gave no answer within {PATIENCE:g} s"
        # only the application itself can have cancelled it
        return f"GET {self._path} raised CancelledError" if question.cancelled() else question.result()

    def _write(self, marker: Marker) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / marker.name
        partial = file.with_suffix(".partial")
        partial.write_text(marker.text(), encoding="utf-8")
        # the umask of a service hides files from whoever else has to read this one
        partial.chmod(0o644)
        partial.replace(file)
