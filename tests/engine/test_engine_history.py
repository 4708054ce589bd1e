"""The history: one line for each switch, with what the witness saw, readable after a power cut."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.modules.bareforge import append_history, describe_history, read_history, timestamp
from tests.engine.host import Host


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "at": timestamp(1_700_000_000 + number),
        "who": "alice@desk",
        "run": f"run{number}",
        "action": "deploy",
        "result": "ok",
        "cause": "",
        "release": f"r{number}",
        "activation": "0123456789ab",
        "previous": "",
        "method": "handover",
        "migration_head": "",
        "seconds": 4.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "witness", "line"),
    [
        ({}, {}, "2023-11-14T22:13:21Z deploy r1 ok (handover, 4 s, config 0123456789ab) by alice@desk"),
        (
            {"migration_head": "0002", "seconds": 4.25, "who": ""},
            {},
            "2023-11-14T22:13:21Z deploy r1 ok (handover, 4.25 s, config 0123456789ab, schema 0002) by unknown",
        ),
        (
            {},
            {"requests": 1200, "failed": 0, "seconds": 9.5},
            "2023-11-14T22:13:21Z deploy r1 ok (handover, 4 s, config 0123456789ab) by alice@desk"
            "; witness: 1200 requests, 0 failed",
        ),
        (
            {"action": "rollback", "result": "failed", "cause": "it did not start", "method": "restart"},
            {"requests": 10, "failed": 1},
            "2023-11-14T22:13:21Z rollback r1 failed (restart, 4 s, config 0123456789ab) by alice@desk"
            "; witness: 10 requests, 1 failed; it did not start",
        ),
    ],
)
def test_a_line_of_the_history_reads_as_a_sentence(
    host: Host, changes: dict[str, Any], witness: dict[str, Any], line: str
) -> None:
    append_history(host.paths, entry(1, **changes))
    if witness:
        append_history(host.paths, {"run": "run1", "witness": witness})
    assert describe_history(read_history(host.paths)) == [line]


def test_no_history_is_no_failure(host: Host) -> None:
    assert read_history(host.paths) == []
    assert describe_history([]) == []


def test_the_last_lines_are_read_oldest_first_and_a_witness_is_none_of_them(host: Host) -> None:
    for number in range(1, 6):
        append_history(host.paths, entry(number))
        append_history(host.paths, {"run": f"run{number}", "witness": {"requests": number, "failed": 0}})
    found = read_history(host.paths, 2)
    assert [(item["release"], item["witness"]["requests"]) for item in found] == [("r4", 4), ("r5", 5)]


def test_the_witness_of_another_run_is_not_shown(host: Host) -> None:
    append_history(host.paths, entry(1))
    append_history(host.paths, {"run": "other", "witness": {"requests": 1, "failed": 1}})
    assert read_history(host.paths) == [{**entry(1), "witness": {}}]


@pytest.mark.parametrize("torn", ['{"action": "dep', "{", '{"at": "2026', "\0\0\0\0"])
def test_half_of_a_last_line_costs_neither_what_is_before_nor_what_comes_after(host: Host, torn: str) -> None:
    append_history(host.paths, entry(1))
    with (host.paths.state / "history.jsonl").open("a") as handle:
        handle.write(torn)
    assert [item["release"] for item in read_history(host.paths)] == ["r1"]
    append_history(host.paths, entry(2))
    append_history(host.paths, entry(3))
    assert [item["release"] for item in read_history(host.paths)] == ["r1", "r2", "r3"]
