"""What the records say: the JSON document, the line, the line on the way. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypedDict

from witness.records import Event, Record, Records

# a stall is at least this long, in milliseconds: twice the p99 of a quick answer is no interruption
MINIMUM_STALL_MS = 250.0


class StreamDocument(TypedDict):
    """One stream; percentiles (milliseconds) are those of its good answers, None without any."""

    name: str
    requests: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class EventDocument(TypedDict):
    """An event, `at` seconds since the start."""

    at: float
    name: str


class CheckDocument(TypedDict):
    """What the history checker found."""

    violations: list[str]


class Document(TypedDict):
    """The JSON document. `longest_ms` is the longest of the fast requests, `stall_ms` what counts as a stall from,
    `late_ms` how late the witness itself was at most: what its own machine may have added.
    """

    started: str
    seconds: float
    requests: int
    failed: int
    failures: dict[str, int]
    statuses: dict[str, int]
    streams: list[StreamDocument]
    stalls: int
    stall_ms: float
    longest_ms: float
    late_ms: float
    events: list[EventDocument]
    releases: dict[str, int]
    check: CheckDocument


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest of the sorted values that `share` (0 to 1) of them do not exceed; None of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else None


def summarise(
    records: Records,
    events: Sequence[Event],
    streams: Sequence[str],
    violations: list[str],
    *,
    started: datetime,
    seconds: float,
    steady: float,
    stall_factor: float,
    late: float,
) -> Document:
    """Return the document. `seconds` and `steady` (the time before a deploy that tells what is usual) are seconds."""
    failures: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    releases: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    good: dict[str, list[float]] = {name: [] for name in streams}
    for record in records:
        sent[record.stream] += 1
        if record.failure:
            failures[record.failure] += 1
            failed[record.stream] += 1
        else:
            good[record.stream].append(record.ms)
        if record.status:
            statuses[str(record.status)] += 1
        if record.release:
            releases[record.release] += 1
    limit = stall_limit(records, min([steady, *(event.at for event in events)]), stall_factor)
    slowest = [record.ms for record in records if record.fast]
    return {
        "started": started.isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
        "requests": len(records),
        "failed": records.failed,
        "failures": dict(failures.most_common()),
        "statuses": dict(sorted(statuses.items())),
        "streams": [_stream(name, sent[name], failed[name], sorted(good[name])) for name in streams],
        "stalls": sum(ms > limit for ms in slowest),
        "stall_ms": round(limit, 1),
        "longest_ms": round(max(slowest, default=0.0), 1),
        "late_ms": round(late * 1000, 1),
        "events": [{"at": round(event.at, 3), "name": event.name} for event in events],
        "releases": dict(releases),
        "check": {"violations": violations},
    }


def stall_limit(records: Iterable[Record], before: float, factor: float) -> float:
    """Return the milliseconds above which a fast request stalled: `factor` times the p99 of those due `before`
    (seconds since the start), at least MINIMUM_STALL_MS.
    """
    steady = sorted(record.ms for record in records if record.fast and not record.failure and record.at < before)
    return max(MINIMUM_STALL_MS, factor * (percentile(steady, 0.99) or 0.0))


def line(document: Document) -> str:
    """Return the summary: `N requests, F failed (12 status 502), S stalls, longest 812 ms; releases ID x N`."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in document["failures"].items())
    releases = ", ".join(f"{release} x {count}" for release, count in document["releases"].items())
    return (
        f"{document['requests']} requests, {document['failed']} failed{f' ({kinds})' if kinds else ''}, "
        f"{document['stalls']} stalls, longest {document['longest_ms']:.0f} ms"
        f"{f'; releases {releases}' if releases else ''}"
    )


def progress(records: Records, since: int, seconds: float) -> str:
    """Return a line on the way; its p99 is that of the fast records from number `since` on."""
    latest = sorted(record.ms for record in (records[index] for index in range(since, len(records))) if record.fast)
    worst = percentile(latest, 0.99)
    return f"{seconds:.0f} s: {len(records)} requests, {records.failed} failed, p99 " + (
        "unknown" if worst is None else f"{worst:.0f} ms"
    )


def _stream(name: str, requests: int, failed: int, good: list[float]) -> StreamDocument:
    def rounded(share: float) -> float | None:
        value = percentile(good, share)
        return None if value is None else round(value, 1)

    return {
        "name": name,
        "requests": requests,
        "failed": failed,
        "p50_ms": rounded(0.5),
        "p99_ms": rounded(0.99),
        "max_ms": rounded(1),
    }
