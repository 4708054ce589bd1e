"""What the zero-loss benchmark makes of records and output."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import parse
from benchmarks.figures import (
    COLUMNS,
    CORE,
    MINIMUM_REQUESTS,
    Point,
    Row,
    Tally,
    Window,
    all_hold,
    changes,
    commit_time,
    document,
    find,
    header,
    in_flight,
    incomplete,
    last_failure,
    make_row,
    plan_points,
    quiet,
    running_release,
    table_line,
    too_few,
    totals,
    workers_seen,
)
from benchmarks.zero_loss import BENCHMARK, sections
from witness.records import Record

RELEASE = Window("release", 10, 14)
ROLLBACK = Window("rollback", 20, 24)
WINDOWS = [RELEASE, ROLLBACK]


def record(at: float, ms: float = 5, stream: str = "get fast", failure: str | None = None, pid: int = 1) -> Record:
    return Record(at, ms, stream, "https://app1", "new", 200, failure, "r1", "app1", pid)


# ------------------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, (RELEASE, "")),
        (6.99, (RELEASE, "")),
        (7, (RELEASE, "steady")),
        (9.99, (RELEASE, "steady")),
        (10, (RELEASE, "during")),
        (15, (RELEASE, "during")),
        (15.01, (RELEASE, "")),
        (16.99, (RELEASE, "")),
        (17, (RELEASE, "steady")),
        (20, (ROLLBACK, "during")),
        (1000, (ROLLBACK, "")),
    ],
)
def test_a_moment_belongs_to_the_event_before_it_until_the_rest_before_the_next(
    at: float, expected: tuple[Window, str]
) -> None:
    assert find(at, WINDOWS) == expected


def tally_of(records: list[Record], name: str, stall_ms: float = 250) -> Tally:
    tally = Tally()
    tally.add(records, WINDOWS, name, stall_ms)
    return tally


def test_each_request_is_counted_once_over_all_events() -> None:
    records = [record(at / 2) for at in range(80)]
    tallies = [tally_of(records, name) for name in ("release", "rollback")]
    assert [tally.requests for tally in tallies] == [40, 40]


def test_latencies_during_are_the_events_own_and_steady_ones_of_the_rest_before_each() -> None:
    records = [record(8, 1), record(12, 2), record(16, 9), record(17, 3), record(21, 4), record(30, 5)]
    release, rollback = tally_of(records, "release"), tally_of(records, "rollback")
    assert (release.steady, release.during) == ([1, 3], [2])
    assert (rollback.steady, rollback.during) == ([1, 3], [4])


def test_latencies_during_are_those_of_the_host_to_which_it_happens() -> None:
    tally = Tally()
    tally.add([record(12, 5)], [Window("release", 10, 14, "app2")], "release", 250)
    assert (tally.requests, tally.during) == (1, [])
    tally.add([record(12, 5)], [Window("release", 10, 14, "app1")], "release", 250)
    assert (tally.requests, tally.during) == (2, [5])


def test_slow_streams_and_failed_requests_have_no_part_in_latencies_but_count() -> None:
    records = [record(12, 2000, "get slow"), record(12, 30_000, failure="timeout"), record(12, 5)]
    tally = tally_of(records, "release")
    assert (tally.requests, tally.failed, dict(tally.failures)) == (3, 1, {"timeout": 1})
    assert (tally.during, tally.stalls, tally.longest_ms) == ([5], 1, 30_000)


def test_a_tally_adds_up_over_runs() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add([record(12, 300), record(1, failure="reset")], WINDOWS, "release", 250)
    assert (tally.requests, tally.failed, tally.stalls, tally.during) == (4, 2, 2, [300, 300])


# --------------------------------------------------------------------------------------------------------- judgement


@pytest.mark.parametrize(
    ("steady", "during", "expected"),
    [
        (3, 6, True),
        (3, 6.1, False),
        (30, 60, True),
        (None, 5, False),
        (5, None, False),
    ],
)
def test_a_p99_is_quiet_up_to_twice_the_steady_one(steady: float | None, during: float | None, expected: bool) -> None:
    assert quiet(steady, during) is expected


def row_of(records: list[Record], *problems: str, **changes: Any) -> Row:
    return make_row("release", 1, tally_of(records, "release"), problems, **changes)


def test_a_row_holds_only_without_failures_problems_and_with_requests() -> None:
    good, bad = [record(1), record(12)], [record(1), record(12, failure="reset")]
    assert row_of(good).holds is True
    assert row_of(bad).holds is False
    assert row_of(good, "app1: the unit is failed").holds is False
    assert row_of([]).holds is False
    assert row_of(bad, allowed=1).holds is True
    assert row_of([*bad, record(13, failure="reset")], allowed=1).holds is False


def test_a_row_that_demands_latency_fails_on_a_stall_alone() -> None:
    slow = [record(8, 30)] * 100 + [record(12, 400)] * 100
    assert row_of(slow).holds is True
    assert row_of(slow, latency=True).holds is False
    assert row_of([record(8, 30)] * 100 + [record(12, 60)] * 100, latency=True).holds is True


def test_of_what_stands_beside_nothing_is_demanded_and_it_is_in_no_total() -> None:
    ours = row_of([record(1), record(12)])
    stock = row_of([record(12, failure="status 502")], ours=False)
    assert stock.holds is None
    assert totals([ours, stock]) == (2, 0)
    assert all_hold([ours, stock])
    assert not all_hold([ours, row_of([])])
    assert not all_hold([])


def test_a_whole_run_has_to_rest_on_enough_requests() -> None:
    few = [Row(section, 20, requests=MINIMUM_REQUESTS // len(CORE)) for section in CORE]
    assert str(few[0].requests * len(CORE)) in too_few(few, 20, whole=True)
    assert not too_few([*few, Row("release", 20, requests=100)], 20, whole=True)
    assert too_few([*few, Row("broken releases", 10, requests=10**6)], 20, whole=True)
    assert not too_few(few, 20, whole=False)
    assert not too_few(few, 3, whole=True)


def test_in_flight_is_what_was_sent_before_and_answered_after() -> None:
    answered, waiting, sent_then, later = record(1, 500), record(1.25, 500), record(1.5, 100), record(1.6, 10)
    assert in_flight([answered, waiting, sent_then, later], 1.5) == 2
    assert in_flight([answered, later], 1.5) == 0


def test_workers_are_counted_by_host_and_process() -> None:
    other = record(1, pid=1)._replace(host="app2")
    assert (
        workers_seen([record(1, pid=1), record(2, pid=1), record(1, pid=2), other, record(1)._replace(pid=None)]) == 3
    )


# ------------------------------------------------------------------------------------------------------------- engine

STARTED = datetime(2026, 11, 25, 16, 0, 0, 250_000, UTC)
LINE = {"action": "deploy", "result": "ok", "at": "2026-11-25T16:00:10Z"}


def history(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_the_commit_is_taken_from_the_last_switch_never_too_early() -> None:
    text = history({**LINE, "at": "2026-11-25T15:00:00Z"}, LINE, {"run": "x", "witness": {}})
    # written within the second that begins 9.75 s after the start
    assert commit_time(text, STARTED, "deploy") == pytest.approx(10.75)


@pytest.mark.parametrize(
    "text", ["", history({**LINE, "result": "failed"}), history({**LINE, "action": "recover"}), history({"run": "x"})]
)
def test_another_last_line_is_no_commit(text: str) -> None:
    with pytest.raises(ValueError, match="no deploy that went well"):
        commit_time(text, STARTED, "deploy")


def status(**changes: Any) -> dict[str, Any]:
    return {
        "serving": "aaa",
        "active": "bbb",
        "running": "bbb",
        "workers": [{"release": "r2"}, {"release": "r2"}],
        "unit": {"ActiveState": "active"},
        **changes,
    }


def test_a_host_is_whole_although_its_record_is_behind() -> None:
    assert incomplete(status()) == []
    assert running_release(status()) == "r2"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"running": "aaa"}, "link bbb, processes aaa"),
        ({"active": "", "running": ""}, "link none, processes none"),
        ({"workers": [{"release": "r1"}, {"release": "r2"}]}, "workers of releases r1, r2"),
        ({"workers": []}, "workers of releases none"),
        ({"unit": {"ActiveState": "failed"}}, "the unit is failed"),
    ],
)
def test_a_host_that_is_not_whole_says_why(changes: dict[str, Any], expected: str) -> None:
    assert incomplete(status(**changes)) == [expected]


def test_a_mixture_is_no_release() -> None:
    assert running_release(status(workers=[{"release": "r1"}, {"release": "r2"}])) == ""


# ------------------------------------------------------------------------------------------------------------ Ansible

OUTPUT = """
TASK [asserting] ***
[ERROR]: Task failed: Action failed: first
fatal: [app1]: FAILED! => {
    "assertion": false,
    "msg": "first [x] {y}"
}
fatal: [app2 -> app1(127.0.0.1)]: UNREACHABLE! => {"changed": false, "msg": "away"}

TASK [Say why] ***
fatal: [app1]: FAILED! => {"changed": false, "msg": "the cause; the cure\\nsecond line"}

PLAY RECAP *********************************************************************
app1                       : ok=12   changed=3    unreachable=0    failed=1    skipped=0    rescued=1    ignored=0
app2                       : ok=0    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
"""


def test_the_last_failure_is_found_in_one_line_or_many() -> None:
    assert last_failure(OUTPUT) == "the cause; the cure\nsecond line"
    assert last_failure(OUTPUT.partition("TASK [Say why]")[0]) == "away"
    assert last_failure(OUTPUT.partition("fatal: [app2")[0]) == "first [x] {y}"
    assert last_failure("ok: [app1]") == ""


def test_the_recap_says_what_changed() -> None:
    assert changes(OUTPUT) == {"app1": 3, "app2": 0}
    assert changes("ERROR! the playbook could not be found") == {}


def test_points_are_every_nth_boundary_and_the_inside_of_the_switch() -> None:
    tasks = ["a : lock", "a : stage", "a : Switch", "a : publish", "a : Switch", "a : unlock"]
    assert plan_points(tasks, 1, {}) == [Point(n, 0, name) for n, name in enumerate(tasks, 1)]
    assert [(point.task, point.after) for point in plan_points(tasks, 4, {"Switch": (0.5, 3)})] == [
        (1, 0), (5, 0), (3, 0.5), (3, 3), (5, 0.5), (5, 3),
    ]  # fmt: skip
    # a host is after 2, which has changed none, as it was before it
    assert [point.task for point in plan_points(tasks, 1, {}, {2, 5})] == [1, 2, 4, 5]
    assert [point.task for point in plan_points(tasks, 2, {}, {2})] == [1, 4, 6]


# ------------------------------------------------------------------------------------------------------------- output


def test_cells_stand_below_their_heads() -> None:
    full = Row("release", 20, 12345, 1, 2, 4.4, 8.8, 812.3, False, note="a note", failures={"reset": 1}, problems=["p"])
    first, *below = table_line(full).splitlines()
    assert len(first) == len(header()) == sum(width for _, width in COLUMNS) + 2 * (len(COLUMNS) - 1)
    assert first.split() == ["release", "20", "12345", "1", "2", "4", "9", "2.0", "812", "no"]
    assert below == ["    a note", "    failed: 1 reset", "    ! p"]


def test_what_was_not_measured_is_a_dash() -> None:
    assert table_line(Row("stock", 1)).split() == ["stock", "1", "0", "0", "0", "-", "-", "-", "0", "-"]


def test_the_document_can_be_written_and_says_whether_all_holds() -> None:
    rows = [row_of([record(8, 2), record(12, 4)]), Row("stock", 1, requests=5, failed=5, ours=False)]
    read = json.loads(json.dumps(document(rows, {"cores": 2}, STARTED, 12.3)))
    assert (read["requests"], read["failed"], read["holds"], read["seconds"]) == (2, 0, True, 12)
    assert read["rows"][0]["ratio"] == 2
    assert read["rows"][1]["ratio"] is None
    assert read["machine"] == {"cores": 2}


# ------------------------------------------------------------------------------------------------------- command line


def test_sections_are_run_in_their_order_whatever_the_order_they_are_named_in() -> None:
    assert parse(BENCHMARK, []).only == tuple(sections(None))
    assert parse(BENCHMARK, ["--only", "sweep, release"]).only == ("release", "sweep")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "releases"], "--only names releases; there are release, unkept, reload"),
        (["--repetitions", "0"], "--repetitions is 0; it must be from 1 to 60"),
        (["--repetitions", "61"], "--repetitions is 61"),
        (["--every", "0"], "--every is 0; it must be at least 1"),
        (["--plot", "plot.html", "--only", "kill"], "--plot shows the section release"),
        (["--json", "/nonexistent/x.json"], "/nonexistent/x.json is in no directory"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(BENCHMARK, arguments)
    assert said in capsys.readouterr().err


def test_files_may_be_named_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(BENCHMARK, ["--json", "figures.json", "--plot", "plot.html"]).json == Path("figures.json")
