"""The gunicorn worker class: `worker_class = "bareforge_runtime.worker.Worker"`.

Eight things on top of `uvicorn_worker.UvicornWorker`:

1. The secrets are loaded after the fork and before the application is imported, so they are in the memory of
   workers only: the master has none and hands none on, neither to its children nor across a re-exec.
2. No connection is lost when a worker stops. uvicorn closes, as soon as it is told to stop, every connection
   on which it has not read a request yet; a proxy then sees a reset. Here the worker first stops listening,
   answers `Connection: close`, and goes on serving for a short drain period.
3. Access lines are JSON (see `bareforge_runtime.logs`).
4. The worker says when it is ready (see `bareforge_runtime.markers`).
5. Every response can name the release that gave it (see `bareforge_runtime.headers`).
6. When the database credentials change and the application does not follow them (see `bareforge_runtime.changes`), the
   worker makes room for one that has them, as after max_requests.
7. It ends, as when it is told to, when its master is gone: gunicorn's own workers do, uvicorn's goes on for ever.
8. It imports the application when it is its turn (see `bareforge_runtime.turns`).
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from bareforge_runtime import drain, headers, loading, markers, release, secrets, turns
from bareforge_runtime.changes import Outdated
from bareforge_runtime.logs import AccessLog
from bareforge_runtime.markers import Announcer
from bareforge_runtime.redact import RedactingFormatter, Redactor
from bareforge_runtime.successors import await_successors, await_turn

log = logging.getLogger("uvicorn.error")

# Seconds of gunicorn's graceful_timeout that are kept for the application's own shutdown, after the last
# request was finished or given up: at the end of graceful_timeout the master kills.
SHUTDOWN_RESERVE = 1.0

# Ticks of uvicorn's main loop, 0.1 s each, between two looks at the database credentials.
LOOK_EVERY = 5


class DrainingServer(Server):
    """A uvicorn server that keeps serving its open connections for `drain_seconds` once told to stop.

    While it stops it calls `beat` every second, for `graceful_timeout` seconds at most, so that gunicorn's
    watchdog (setting `timeout`) does not take a worker that finishes a long request for one that hangs.
    announcer: says beside the first requests whether the application is ready, and no more when it has stopped.
    outdated: whether another process should serve in its place; asked twice a second. master: without which it stops.
    """

    def __init__(
        self,
        config: Config,
        drain_seconds: float,
        graceful_timeout: float,
        beat: Callable[[], None],
        announcer: Announcer | None = None,
        outdated: Callable[[], bool] | None = None,
        master: int = 0,
    ) -> None:
        super().__init__(config)
        self._outdated = outdated
        self._master = master
        self._drain_seconds = drain_seconds
        self._graceful_timeout = graceful_timeout
        self._beat = beat
        self._announcer = announcer
        self._announcing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, which does not wait until the application is ready."""
        if self._announcer is not None:
            self._announcer.remove()
        await super().startup(sockets)
        if self._announcer is not None and not self.should_exit:
            self._announcing = asyncio.create_task(self._announcer.announce(self.lifespan.state))

    async def on_tick(self, counter: int) -> bool:
        """Whether the main loop is to end: by uvicorn's own reasons, without a master, or since it is outdated."""
        if self._master and os.getppid() != self._master:
            # nobody would ever stop it: the worker of a new master that was killed would go on beside the old ones
            log.warning("the master of this worker has ended without stopping it; shutting down")
            self.should_exit = True
        if self._outdated is not None and counter % LOOK_EVERY == 0 and self._outdated():
            log.info("the database credentials have changed; this worker makes room for one that has them")
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain, then shut down as uvicorn does."""
        beating = asyncio.create_task(self._keep_beating())
        if self._announcing is not None:
            self._announcing.cancel()
        try:
            if self._announcer is not None:
                await self._let_others_serve(self._announcer)
            for server in self.servers:
                server.close()
            for listener in sockets or []:
                listener.close()
            # In place: requests that are being served hold this very list.
            self.server_state.default_headers.append((b"connection", b"close"))
            await asyncio.sleep(self._drain_seconds)
            await super().shutdown(sockets)
        finally:
            beating.cancel()
            # Not before: to workers that stop at the same time it would look as if a new one was on its way.
            if self._announcer is not None:
                self._announcer.remove()

    async def _let_others_serve(self, announcer: Announcer) -> None:
        """Go on accepting while nobody else would: at most half of graceful_timeout, the rest is for the requests."""
        limit, master = self._graceful_timeout / 2, announcer.marker.master
        if self.should_exit:
            await await_successors(announcer.directory, master, limit)
        else:
            # max_requests is reached, nobody has told it to stop
            await await_turn(announcer.directory, master, announcer.others, limit, lambda: self.should_exit)

    async def _keep_beating(self) -> None:
        for _ in range(math.ceil(self._graceful_timeout)):
            self._beat()
            await asyncio.sleep(1)


class Worker(UvicornWorker):
    """gunicorn worker that loads the secrets, drains without loss and logs requests as JSON."""

    # Seconds to keep serving after the listeners were closed. 0.25 s lost nothing in 119,678 requests over
    # about 60 hand-overs behind nginx without upstream keep-alive. With upstream keep-alive it must be longer
    # than nginx's keepalive_timeout (2.5 s for 1 s). BAREFORGE_DRAIN_SECONDS in the environment overrides it.
    drain_seconds: ClassVar[float] = 0.25

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | {"access_log": False}

    wsgi: Any

    def load_wsgi(self) -> None:
        """Load the secrets, then the application (called by gunicorn after the fork and `raw_env`).

        A failure is logged without secret values, the cause on one line of its own, and ends the worker with
        the exit code by which gunicorn knows that it could not boot.
        """
        try:
            self._set_drain(drain.seconds(self.drain_seconds))
            self.config.headers = headers.release_header(release.current().id)
            secrets.load_into_environment()
        except (secrets.SecretsError, ValueError) as error:
            self.log.error("bareforge-runtime: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        redact = Redactor()
        secrets.tell(redact.add)
        for handler in self.log.error_log.handlers:
            handler.setFormatter(RedactingFormatter(handler.formatter, redact))
        load_application: Callable[[], None] = super().load_wsgi
        directory = os.environ.get(markers.DIRECTORY_VARIABLE, "")
        try:
            with turns.turn(Path(directory).with_name("turns"), self.notify) if directory else contextlib.nullcontext():
                load_application()
        except Exception as error:
            # gunicorn itself would also print the text of the exception, as it is, to standard error
            self.log.exception("Exception while loading the application")
            self.log.error("bareforge-runtime: %s", loading.explain(error, self.app.app_uri))
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        # the application as it is: what a worker asks itself is no line of the access log
        self._announcer = (
            Announcer(Path(directory), self.wsgi, self.ppid, release.current().id, others=self.cfg.workers - 1)
            if directory
            else None
        )
        secrets_directory = os.environ.get(secrets.DIRECTORY_VARIABLE, "")
        self._outdated = Outdated(Path(secrets_directory)) if secrets_directory else None
        if self.log.access_log_enabled:
            self.wsgi = AccessLog(self.wsgi, self.log.access_log, release.current().id)

    def _set_drain(self, seconds: float) -> None:
        self._drain = seconds
        for_requests = self.cfg.graceful_timeout - seconds - SHUTDOWN_RESERVE
        self.config.timeout_graceful_shutdown = max(math.floor(for_requests), 1)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = DrainingServer(
            self.config,
            self._drain,
            self.cfg.graceful_timeout,
            self.notify,
            self._announcer,
            self._outdated,
            master=self.ppid,
        )

        def stop() -> None:
            server.should_exit = True

        # uvicorn handles INT and TERM itself; QUIT, gunicorn's quick stop, would go unheard
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, stop)
        try:
            await server.serve(sockets=self.sockets)
        finally:
            # a main loop that failed has not shut down
            if self._announcer is not None:
                self._announcer.remove()
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
