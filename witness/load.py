"""The load: an open-loop schedule on an event loop in a thread of its own. A slow answer delays no other request."""

import asyncio
import contextlib
import heapq
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Self

import h11

from witness.check import check, turns
from witness.client import Answer, Connection, FailedError, Request
from witness.plan import MAXIMUM_IN_FLIGHT, Plan, PlanError, Stream, Target
from witness.pool import Pool, address_of, trust
from witness.records import Event, Record, Records, parse_release
from witness.report import Document, line, progress, summarise

MAXIMUM_EVENTS = 1000
# The event loop wakes up to 1 ms late (epoll counts in whole milliseconds): aim early, and count from whichever of
# "due" and "sent" came first, so that this is no part of a latency.
EARLY = 0.001
START_SECONDS = 30

release_of = lru_cache(maxsize=4096)(parse_release)


@dataclass(frozen=True)
class Result:
    """What the witness saw: `document` is the JSON document, `line` its summary, `details` the first words by kind."""

    document: Document
    records: Records
    line: str
    details: dict[str, str]


@dataclass(order=True)
class _Lane:
    """One stream on one target: when its next request is due (event loop's clock), and every how many seconds."""

    due: float
    order: int
    stream: Stream = field(compare=False)
    pool: Pool = field(compare=False)
    period: float = field(compare=False)
    sent: int = field(compare=False, default=0)


class Witness:
    """Carries a plan out between `with` and the end of its block, or until `plan.seconds` have passed.

    Raises PlanError from `with` when a target's name cannot be resolved or the file of an authority not be read.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._streams = plan.streams()
        self._pools = [Pool(target) for target in plan.targets()]
        self._release_header = plan.release_header.lower().encode()
        self._records = Records()
        self._events: list[Event] = []
        self._details: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: list[_Lane] = []
        self._timer: asyncio.TimerHandle | None = None
        # unique over runs as well, and of one length: microseconds since 1970
        self._number = time.time_ns() // 1000
        self._start = self._end = self._latest = 0.0
        self._reported = 0
        self._wall = datetime.now(UTC)
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._carry_out, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise PlanError(f"the load did not begin within {START_SECONDS} s; check that names can be resolved")
        if self._error:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether requests are still sent or awaited."""
        return self._thread.is_alive()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def mark(self, name: str) -> None:
        """Note an event now. Callable from any thread while the witness runs."""
        if len(self._events) < MAXIMUM_EVENTS:
            self._events.append(Event(self.seconds, name))

    def stop(self) -> None:
        """Send nothing more; answers on their way are awaited. Callable from any thread, more than once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
                self._loop.call_soon_threadsafe(self._stopped.set)

    def progress(self) -> str:
        """Return one line about the run so far; its p99 is that of what was answered since the last call."""
        since, self._reported = self._reported, len(self._records)
        return progress(self._records, since, self.seconds)

    def result(self) -> Result:
        """Return what was seen; raises RuntimeError before the end, or the error that stopped the load."""
        if not self._started.is_set() or self.running:
            raise RuntimeError("the witness has not ended; leave its with block first")
        if self._error:
            raise self._error
        events = sorted(self._events)
        violations: list[str] = []
        if self._plan.expect:
            violations = check(self._records, *self._plan.expect, *turns(events))
        document = summarise(
            self._records,
            events,
            [stream.name for stream in self._streams],
            violations,
            started=self._wall,
            seconds=self._end - self._start,
            steady=self._plan.steady,
            stall_factor=self._plan.stall_factor,
            late=self._latest,
        )
        return Result(document, self._records, line(document), dict(self._details))

    def _carry_out(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # it belongs to the thread that asks for the result
            self._error = error
        finally:
            self._started.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        context = trust(self._plan.ca) if any(pool.target.server_name for pool in self._pools) else None
        for pool in self._pools:
            pool.context = context if pool.target.server_name else None
            pool.address = await address_of(pool.target)
        self._wall = datetime.now(UTC)
        self._start = self._loop.time()
        self._make_lanes()
        end = self._loop.call_at(self._start + self._plan.seconds, self._stopped.set)
        self._started.set()
        self._fire()
        await self._stopped.wait()
        self._end = self._loop.time()
        end.cancel()
        if self._timer:
            self._timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # each has its own time limit
        for pool in self._pools:
            pool.abort()
        await asyncio.sleep(0)  # the loop drops what was aborted

    def _make_lanes(self) -> None:
        """Spread the first requests of the lanes over their periods, so that targets and streams take turns.

        Half a step in, so that `seconds` hold exactly rate times seconds requests.
        """
        pairs = [(stream, pool) for stream in self._streams for pool in self._pools]
        for order, (stream, pool) in enumerate(pairs):
            period = 1 / stream.rate
            lane = _Lane(self._start + period * (order + 0.5) / len(pairs), order, stream, pool, period)
            heapq.heappush(self._lanes, lane)

    def _fire(self) -> None:
        """Send what is due, come back when the next is."""
        assert self._loop is not None
        if self._stopped.is_set():
            return
        now = self._loop.time()
        horizon = min(now + EARLY, self._start + self._plan.seconds)
        while self._lanes[0].due <= horizon:
            lane = self._lanes[0]
            due = lane.due
            lane.due += lane.period
            heapq.heapreplace(self._lanes, lane)
            self._latest = max(self._latest, now - due)
            self._send(lane, min(due, now))
            lane.sent += 1
        self._timer = self._loop.call_at(self._lanes[0].due - EARLY, self._fire)

    def _send(self, lane: _Lane, due: float) -> None:
        assert self._loop is not None
        mode = self._plan.connections
        fresh = mode == "new" or (mode == "both" and lane.sent % 2 == 0)
        if len(self._tasks) >= MAXIMUM_IN_FLIGHT:
            error = FailedError("not sent", f"{MAXIMUM_IN_FLIGHT} requests were in flight")
            self._record(lane, due, fresh, Answer(), error)
            return
        task = self._loop.create_task(self._one(lane, due, fresh))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._error = task.exception()
            self._stopped.set()

    async def _one(self, lane: _Lane, due: float, fresh: bool) -> None:
        """Carry out one request and record it."""
        pool, answer = lane.pool, Answer()
        error: FailedError | None = None
        connection: Connection | None = None
        request = self._request(lane, fresh)
        try:
            async with asyncio.timeout(self._plan.timeout):
                connection = None if fresh else pool.take()
                if connection is None:
                    connection = await pool.open(self._plan.timeout, counted=not fresh)
                await connection.exchange(request, self._release_header, answer)
        except FailedError as failed:
            error = failed
        except TimeoutError:
            kind = "timeout" if connection else "connect timeout"
            error = FailedError(kind, f"no answer within {self._plan.timeout:g} s")
        self._record(lane, due, fresh, answer, error)
        if connection is None:
            return
        if fresh:
            connection.close()
        else:
            pool.give(connection)

    def _request(self, lane: _Lane, fresh: bool) -> Request:
        target, stream = lane.pool.target, lane.stream
        if stream.method == "GET":
            return Request(_head(target, stream, None, fresh))
        self._number += 1
        body = self._plan.body_with(self._number)
        return Request(_head(target, stream, len(body), fresh), body, self._number if self._plan.echo else None)

    def _record(self, lane: _Lane, due: float, fresh: bool, answer: Answer, error: FailedError | None) -> None:
        assert self._loop is not None
        at = due - self._start
        url = lane.pool.target.url
        self._records.add(
            Record(
                at,
                (self._loop.time() - due) * 1000,
                lane.stream.name,
                url,
                "new" if fresh else "keep-alive",
                answer.status,
                error.kind if error else None,
                *release_of(answer.release),
            )
        )
        if error:
            self._details.setdefault(error.kind, f"{lane.stream.name} at {at:.1f} s to {url}: {error.detail}")


@lru_cache(maxsize=1024)
def _head(target: Target, stream: Stream, length: int | None, fresh: bool) -> h11.Request:
    """Return the head of a request; `length` of the body in bytes, None without one."""
    headers = [("Host", target.header), ("User-Agent", "bareforge-witness"), ("Accept", "*/*")]
    if length is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(length))]
    if fresh:
        headers.append(("Connection", "close"))
    return h11.Request(method=stream.method, target=target.path + stream.path, headers=headers)
