"""The candidate check: would this release serve? In one process, without opening a listening socket.

It does what a gunicorn worker does on its way to the first request: the gunicorn configuration file, the
secrets, the import of the application, ASGI lifespan startup; then one GET of the ready path, through ASGI.
"""

import asyncio
import contextlib
import io
import os
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication

from bareforge_runtime import drain, loading, secrets
from bareforge_runtime.asking import get
from bareforge_runtime.ending import end
from bareforge_runtime.logs import Application, Message
from bareforge_runtime.redact import Redactor
from bareforge_runtime.stacks import where_it_waits

# How much of the body of a refusing answer is shown, in characters.
BODY_SHOWN = 2000


class CheckError(Exception):
    """The candidate was refused. The text is one line, `cause; cure`."""


@dataclass(frozen=True)
class Candidate:
    """What is to be checked.

    app: "module:attribute" or "module:factory()". chdir: directory the application is imported from; it
    wins over `chdir` of the gunicorn configuration. ready_path and host: of the request that must be answered
    with 200. timeout: seconds for everything together.
    """

    app: str
    chdir: Path | None = None
    gunicorn_config: Path | None = None
    imports_only: bool = False
    ready_path: str = "/ready"
    host: str = "localhost"
    timeout: float = 30


def check(candidate: Candidate, redact: Redactor) -> str:
    """Check the candidate and return one line that says what was found good.

    Adds the secrets to `redact` as soon as they are known, and prints the traceback of a failure to standard
    error, which the caller has made to pass through `redact`. Raises CheckError or secrets.SecretsError.
    When the time is over the process ends here and now: an application that hangs may not be interruptible.
    """

    def too_late() -> None:
        end(
            f"the application did not become ready within {candidate.timeout:g} s; "
            "the traceback above shows where it waits",
            redact,
            details=where_it_waits(),
        )

    watchdog = threading.Timer(candidate.timeout, too_late)
    watchdog.daemon = True
    watchdog.start()
    try:
        return _check(candidate, redact)
    finally:
        watchdog.cancel()


def _check(candidate: Candidate, redact: Redactor) -> str:
    if candidate.chdir is not None:
        try:
            os.chdir(candidate.chdir)
        except OSError as error:
            raise CheckError(
                f"cannot change to {candidate.chdir}: {(error.strerror or '').lower()}; check --chdir"
            ) from None
        sys.path.insert(0, str(Path.cwd()))
    # Before the secrets, as in production: the master, which reads it, has none.
    os.environ.update(gunicorn_environment(candidate))
    try:
        drain.seconds(0)
    except ValueError as error:
        raise CheckError(str(error)) from None
    redact.add(secrets.load_into_environment().values())
    application = _load(candidate.app)
    if candidate.imports_only:
        return f"{candidate.app} imports"
    asyncio.run(_start_and_ask(application, candidate, redact))
    return f"{candidate.app} is ready"


class _GunicornApplication(WSGIApplication):
    """gunicorn's own reading of configuration file, GUNICORN_CMD_ARGS and arguments, which raises."""

    def do_load_config(self: Any) -> None:
        self.load_default_config()
        self.load_config()
        self.cfg.validate()


def gunicorn_environment(candidate: Candidate) -> dict[str, str]:
    """Load the gunicorn configuration as gunicorn does and return its `raw_env`; without a file there is none.

    The working directory must be that of the candidate already. Raises CheckError.
    """
    file = candidate.gunicorn_config
    if file is None:
        return {}
    arguments = [
        "--config",
        str(file),
        *(["--chdir", str(Path.cwd())] if candidate.chdir else []),
        candidate.app,
    ]
    original, sys.argv = sys.argv, ["gunicorn", *arguments]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            application: Any = _GunicornApplication
            config = application(prog="gunicorn").cfg
            _ = config.worker_class  # imports it
            environment: dict[str, str] = config.env
            return environment
    except (Exception, SystemExit) as error:
        # gunicorn prints what is wrong with the file and exits, or raises
        lines = said.getvalue().strip().splitlines()
        sys.stderr.write(said.getvalue())
        cause = lines[-1] if isinstance(error, SystemExit) and lines else loading.one_line(error)
        raise CheckError(
            f"gunicorn refuses its configuration {file}: {cause}; correct that setting and deploy again"
        ) from None
    finally:
        sys.argv = original


def _load(reference: str) -> Application:
    try:
        application: Application = loading.load(reference)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise CheckError(loading.explain(error, reference)) from None
    return application


async def _start_and_ask(application: Application, candidate: Candidate, redact: Redactor) -> None:
    state: dict[str, Any] = {}
    lifespan = _Lifespan(application, state)
    await lifespan.startup()
    try:
        status, body = await get(application, candidate.ready_path, candidate.host, state)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise CheckError(
            f"the application is not ready: GET {candidate.ready_path} raised {type(error).__name__}: "
            f"{loading.one_line(error)}; fix what the traceback names and deploy again"
        ) from None
    finally:
        await lifespan.shutdown()
    if status != 200:
        shown = redact(body.decode("utf-8", "replace"))[:BODY_SHOWN]
        sys.stderr.write(f"GET {candidate.ready_path} answered {status}:\n{shown}\n")
        raise CheckError(
            f"the application is not ready: GET {candidate.ready_path} answered {status}; "
            "its answer above names what is missing"
        )


class _Lifespan:
    """ASGI lifespan as in uvicorn's "auto" mode: an application that does not know it is served anyway."""

    def __init__(self, application: Application, state: dict[str, Any]) -> None:
        self._application = application
        self._state = state
        self._receive: asyncio.Queue[Message] = asyncio.Queue()
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def startup(self) -> None:
        """Start the application; raises CheckError when it reports that it cannot."""
        self._task = asyncio.create_task(self._run())
        answer = await self._exchange("startup")
        if answer is None:
            self._task = None
        elif answer["type"] == "lifespan.startup.failed":
            # Frameworks send the traceback as message and then raise: the exception itself says it better.
            await asyncio.wait({self._task}, timeout=1)
            message = str(answer.get("message") or "")
            if self._error is not None:
                traceback.print_exception(self._error)
                cause = loading.one_line(self._error)
            else:
                sys.stderr.write(f"{message}\n")
                cause = (message.strip().splitlines() or ["no reason given"])[-1]
            raise CheckError(
                f"the application failed at startup: {cause}; fix the named setting or the application and deploy again"
            )

    async def shutdown(self) -> None:
        """Stop the application. A failure is shown and otherwise ignored, as the server does."""
        if self._task is None:
            return
        answer = await self._exchange("shutdown")
        if answer is None or answer["type"] == "lifespan.shutdown.failed":
            reason = answer.get("message") if answer else "it ended without an answer"
            sys.stderr.write(f"warning: the application failed at shutdown:\n{reason}\n")

    async def _exchange(self, event: str) -> Message | None:
        await self._receive.put({"type": f"lifespan.{event}"})
        return await self._sent.get()

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            await self._application(scope, self._receive.get, self._sent.put)
        except BaseException as error:
            self._error = error
        finally:
            self._sent.put_nowait(None)
