"""Records, document, line: pure parts."""

from datetime import UTC, datetime

import pytest

from witness import Event, Record, Records
from witness.records import Release, parse_release
from witness.report import Document, line, percentile, progress, stall_limit, summarise


def record(
    at: float, ms: float, stream: str = "get fast", failure: str | None = None, status: int | None = 200
) -> Record:
    return Record(at, ms, stream, "https://a", "new", status, failure, "r1" if status == 200 else None, None, None)


def collected(*items: Record) -> Records:
    records = Records()
    for item in items:
        records.add(item)
    return records


def summary(records: Records, *events: Event) -> Document:
    return summarise(
        records,
        events,
        ["get fast", "get slow"],
        [],
        started=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        seconds=10,
        steady=5,
        stall_factor=2,
        late=0.0015,
    )


def test_records_are_what_was_added() -> None:
    items = [
        Record(0.1, 2.5, "get fast", "https://a", "new", 200, None, "r1", "app1", 7),
        Record(0.2, 3.5, "post slow", "https://b", "keep-alive", None, "reset", None, None, None),
        Record(0.3, 4.5, "get fast", "https://a", "new", 502, "status 502", None, None, None),
    ]
    records = collected(*items)
    assert list(records) == items
    assert (len(records), records.failed, records[1]) == (3, 2, items[1])


def test_document_and_line() -> None:
    records = collected(
        *(record(second / 10, 10 + second) for second in range(10)),
        record(6, 812.4),
        record(7, 2, failure="reset", status=None),
        record(7, 3, failure="status 502", status=502),
        record(8, 3, failure="status 502", status=502),
        record(9, 1500, "get slow"),
    )
    document = summary(records, Event(5.5, "commit app1"))
    assert document == {
        "started": "2025-01-02T03:04:05.000+00:00",
        "seconds": 10,
        "requests": 15,
        "failed": 3,
        "failures": {"status 502": 2, "reset": 1},
        "statuses": {"200": 12, "502": 2},
        "streams": [
            {"name": "get fast", "requests": 14, "failed": 3, "p50_ms": 15.0, "p99_ms": 812.4, "max_ms": 812.4},
            {"name": "get slow", "requests": 1, "failed": 0, "p50_ms": 1500.0, "p99_ms": 1500.0, "max_ms": 1500.0},
        ],
        "stalls": 1,
        "stall_ms": 250.0,
        "longest_ms": 812.4,
        "late_ms": 1.5,
        "events": [{"at": 5.5, "name": "commit app1"}],
        "releases": {"r1": 12},
        "check": {"violations": []},
    }
    assert line(document) == (
        "15 requests, 3 failed (2 status 502, 1 reset), 1 stalls, longest 812 ms; releases r1 x 12"
    )


def test_nothing_was_sent() -> None:
    document = summary(Records())
    assert line(document) == "0 requests, 0 failed, 0 stalls, longest 0 ms"
    assert document["streams"][0]["p99_ms"] is None


def test_a_stall_is_measured_by_what_is_usual_before_the_first_event() -> None:
    records = collected(*(record(second, 200 if second < 3 else 900) for second in range(10)))
    assert stall_limit(records, 3, 2) == 400
    assert stall_limit(records, 3, 4) == 800
    assert stall_limit(records, 5, 2) == 1800
    assert stall_limit(records, 0, 2) == 250
    assert summary(records, Event(3, "begins"))["stalls"] == 7
    assert summary(records, Event(4, "begins"))["stalls"] == 0
    assert summary(collected(record(1, 400), record(2, 600, failure="timeout")))["stalls"] == 0


def test_a_request_that_failed_late_stalled_as_well() -> None:
    document = summary(collected(record(1, 5), record(6, 30000, failure="timeout", status=None)))
    assert (document["stalls"], document["longest_ms"]) == (1, 30000)


def test_progress() -> None:
    records = collected(*(record(second, 500) for second in range(10)))
    assert progress(records, 0, 12.3) == "12 s: 10 requests, 0 failed, p99 500 ms"
    records.add(record(11, 8))
    records.add(record(11, 8000, "get slow"))
    records.add(record(11, 1, failure="refused", status=None))
    assert progress(records, 10, 15) == "15 s: 13 requests, 1 failed, p99 8 ms"
    assert progress(records, 13, 20) == "20 s: 13 requests, 1 failed, p99 unknown"


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1, 100), (0, 1), (0.991, 100)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile(list(range(1, 101)), share) == expected


@pytest.mark.parametrize(
    ("header", "release"),
    [
        ("r1; host=app1; pid=42", Release("r1", "app1", 42)),
        ("r1", Release("r1")),
        ("r1;pid=x;host", Release("r1")),
        ("", Release()),
        ("; host=app1", Release(None, "app1")),
        ("r1 + r2; host=a; pid=²", Release("r1 + r2", "a")),
    ],
)
def test_release_header(header: str, release: Release) -> None:
    assert parse_release(header) == release
