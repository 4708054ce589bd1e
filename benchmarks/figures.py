"""What a benchmark makes of the witness's records and of Ansible's output: rows, a table, a document. Pure."""

from __future__ import annotations

import bisect
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from witness.records import Record
from witness.report import percentile

# Seconds after an event that still count as its time: what waited during it is answered then.
TAIL = 1.0
# Seconds before an event in which nothing is done on the hosts, nor are they asked anything: they tell what is steady.
REST = 3.0
# How much worse the p99 may become during an event.
RATIO = 2.0
# Requests that "0 failed" has to rest on, and the rows they are counted in.
MINIMUM_REQUESTS = 20_000
CORE = ("release", "rollback", "reload.yml (HUP)", "systemctl reload", "recycling workers", "nginx reload")
# Repetitions from which a run is a whole one, of which MINIMUM_REQUESTS is asked.
WHOLE = 20


class Window(NamedTuple):
    """An event: its name, when it began and ended, in seconds since the witness's start.

    host: the only one to which it happened, empty if it was more than one.
    """

    name: str
    begin: float
    end: float
    host: str = ""


def find(at: float, windows: Sequence[Window]) -> tuple[Window, str]:
    """Return whose time a moment is (the latest event that had begun, or the first), and what it is there.

    That is "during", "steady" in the REST before the next event, or nothing. windows: at least one, in the order of
    their begin. Seconds since the witness's start.
    """
    index = bisect.bisect_right(windows, at, key=lambda window: window.begin) - 1
    owner = windows[max(index, 0)]
    if index >= 0 and at <= owner.end + TAIL:
        return owner, "during"
    following = windows[index + 1 :]
    return owner, "steady" if following and at >= following[0].begin - REST else ""


@dataclass
class Tally:
    """What the witness saw of one kind of event, over any number of runs; latencies in milliseconds."""

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    stalls: int = 0
    longest_ms: float = 0.0
    steady: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return self.failures.total()

    def add(self, records: Iterable[Record], windows: Sequence[Window], name: str, stall_ms: float) -> None:
        """Count the records whose time is that of `name`, each once over all names; latencies are of fast requests.

        Steady is what was due in the rest before a window, during what was due in one of `name`, on its host.
        """
        for record in records:
            owner, when = find(record.at, windows)
            if record.fast and not record.failure:
                if when == "steady":
                    self.steady.append(record.ms)
                elif when == "during" and owner.name == name and owner.host in ("", record.host):
                    self.during.append(record.ms)
            if owner.name != name:
                continue
            self.requests += 1
            if record.failure:
                self.failures[record.failure] += 1
            if record.fast:
                self.stalls += record.ms > stall_ms
                self.longest_ms = max(self.longest_ms, record.ms)


@dataclass
class Row:
    """One line of the table. `holds` is None where nothing is demanded, `ours` False for what stands beside.

    Latencies are milliseconds, None where there was nothing to measure. `problems` are sentences; any of them means
    that the row does not hold.
    """

    section: str
    repetitions: int
    requests: int = 0
    failed: int = 0
    stalls: int = 0
    steady_p99_ms: float | None = None
    during_p99_ms: float | None = None
    longest_ms: float = 0.0
    holds: bool | None = None
    ours: bool = True
    note: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The p99 during the events over the steady one."""
        if not self.steady_p99_ms or self.during_p99_ms is None:
            return None
        return self.during_p99_ms / self.steady_p99_ms


def quiet(steady: float | None, during: float | None) -> bool:
    """Whether a p99 during events is as good as unmoved: at most RATIO times the steady one."""
    return steady is not None and during is not None and during <= RATIO * steady


def make_row(
    section: str,
    repetitions: int,
    tally: Tally,
    problems: Sequence[str] = (),
    *,
    allowed: int = 0,
    latency: bool = False,
    ours: bool = True,
    note: str = "",
) -> Row:
    """Return the row of a tally.

    It holds without problems, with at most `allowed` failed requests of at least one, and, where `latency` is
    demanded, with a p99 that is `quiet`. Of what is not ours nothing is demanded.
    """
    steady, during = percentile(sorted(tally.steady), 0.99), percentile(sorted(tally.during), 0.99)
    holds = not problems and tally.requests > 0 and tally.failed <= allowed
    if latency:
        holds = holds and quiet(steady, during)
    return Row(
        section,
        repetitions,
        tally.requests,
        tally.failed,
        tally.stalls,
        steady,
        during,
        tally.longest_ms,
        holds if ours else None,
        ours,
        note,
        dict(tally.failures.most_common()),
        list(problems),
    )


def in_flight(records: Iterable[Record], at: float) -> int:
    """How many requests were sent before a moment and not answered by then; seconds since the witness's start."""
    return sum(record.at <= at < record.at + record.ms / 1000 for record in records)


def workers_seen(records: Iterable[Record]) -> int:
    """How many different processes have answered."""
    return len({(record.host, record.pid) for record in records if record.pid is not None})


# ------------------------------------------------------------------------------------------- the engine's own words


def commit_time(history: str, started: datetime, action: str) -> float:
    """When a host had committed its last switch, in seconds since the witness's start, at most 1 s too late.

    history: the last lines of history.jsonl, which tells whole seconds. Raises ValueError where the last line about a
    switch is not a good one of this action.
    """
    lines = [json.loads(line) for line in history.splitlines() if line.strip()]
    switches = [line for line in lines if "action" in line]
    if not switches or (switches[-1]["action"], switches[-1]["result"]) != (action, "ok"):
        raise ValueError(f"the last line of the history is no {action} that went well: {history[-500:]}")
    written = datetime.strptime(switches[-1]["at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (written - started).total_seconds() + 1


def incomplete(status: dict[str, Any]) -> list[str]:
    """What keeps a host from serving one whole release, by `bareforge status`. Empty is good.

    The record is not asked: after a killed run it may be behind, which the next run settles.
    """
    wrong = []
    if status["unit"].get("ActiveState") != "active":
        wrong.append(f"the unit is {status['unit'].get('ActiveState')}")
    if not status["active"] or status["running"] != status["active"]:
        wrong.append(f"link {status['active'] or 'none'}, processes {status['running'] or 'none'}")
    releases = sorted({worker["release"] for worker in status["workers"]})
    if len(releases) != 1:
        wrong.append(f"workers of releases {', '.join(releases) or 'none'}")
    return wrong


def running_release(status: dict[str, Any]) -> str:
    """The release of a host's workers, empty where there is not exactly one."""
    releases = {str(worker["release"]) for worker in status["workers"]}
    return releases.pop() if len(releases) == 1 else ""


# ---------------------------------------------------------------------------------------------------------- Ansible


def last_failure(output: str) -> str:
    """The message of the last `fatal:` of a run with JSON results and without colours; empty if there is none."""
    decoder = json.JSONDecoder()
    message = ""
    for found in re.finditer(r"^fatal: \[[^\n]+?\]: \w+! => (?=\{)", output, re.M):
        # a result is one line, or many where the module wants to be read
        result, _ = decoder.raw_decode(output, found.end())
        message = str(result.get("msg", ""))
    return message


def changes(output: str) -> dict[str, int]:
    """How many tasks changed something, by host, from the recap of a run."""
    recap = output.rpartition("PLAY RECAP")[2]
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", recap, re.M)}


class Point(NamedTuple):
    """Where a run is killed: the task's number from 1 (or its name), the seconds after its start, its name."""

    task: int | str
    after: float
    name: str


def plan_points(
    tasks: Sequence[str], every: int, inside: Mapping[str, Sequence[float]], idle: Collection[int] = ()
) -> list[Point]:
    """Return each `every`th task boundary, and for each task whose name ends with a key of `inside` the moments in it.

    idle: numbers of the tasks that left every host as it was. The boundary after such a task is left out: every host is
    as it was at the one before it.
    """
    boundaries = [number for number in range(1, len(tasks) + 1) if number - 1 not in idle]
    points = [Point(number, 0, tasks[number - 1]) for number in boundaries[::every]]
    for number, name in enumerate(tasks, 1):
        points += [
            Point(number, delay, name) for end, delays in inside.items() if name.endswith(end) for delay in delays
        ]
    return points


# ------------------------------------------------------------------------------------------------------------ output

COLUMNS = (
    ("section", 34),
    ("repetitions", 11),
    ("requests", 8),
    ("failed", 6),
    ("stalls", 6),
    ("steady p99 ms", 13),
    ("during p99 ms", 13),
    ("ratio", 5),
    ("longest ms", 10),
    ("holds", 5),
)


def header() -> str:
    """The head of the table."""
    return _line([name for name, _ in COLUMNS])


def table_line(row: Row) -> str:
    """A row of the table, and below it, indented, its note and its problems."""
    holds = {True: "yes", False: "no", None: "-"}[row.holds]
    cells = [row.section, row.repetitions, row.requests, row.failed, row.stalls]
    cells += [_number(row.steady_p99_ms), _number(row.during_p99_ms), _number(row.ratio, 1), _number(row.longest_ms)]
    lines = [_line([str(cell) for cell in [*cells, holds]])]
    kinds = ", ".join(f"{count} {kind}" for kind, count in row.failures.items())
    lines += [f"    {text}" for text in (row.note, kinds and f"failed: {kinds}") if text]
    return "\n".join(lines + [f"    ! {problem}" for problem in row.problems])


def _line(cells: Sequence[str]) -> str:
    parts = [cell.rjust(width) for cell, (_, width) in zip(cells[1:], COLUMNS[1:], strict=True)]
    return "  ".join([cells[0].ljust(COLUMNS[0][1]), *parts])


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def totals(rows: Iterable[Row]) -> tuple[int, int]:
    """Requests and failed ones of all rows that are ours."""
    ours = [row for row in rows if row.ours]
    return sum(row.requests for row in ours), sum(row.failed for row in ours)


def too_few(rows: Iterable[Row], repetitions: int, whole: bool) -> str:
    """A sentence where a whole run rests on too few requests, else empty. whole: no section was left out."""
    count = sum(row.requests for row in rows if row.section in CORE)
    if not whole or repetitions < WHOLE or count >= MINIMUM_REQUESTS:
        return ""
    return f"{count} requests in {', '.join(CORE)} are fewer than {MINIMUM_REQUESTS}"


def all_hold(rows: Sequence[Row]) -> bool:
    """Whether there is something to judge, and every row of which something is demanded holds."""
    return bool(rows) and all(row.holds is not False for row in rows)


def document(rows: Sequence[Row], machine: dict[str, Any], started: datetime, seconds: float) -> dict[str, Any]:
    """The JSON document: what was measured where and when, every row, the totals."""
    requests, failed = totals(rows)
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "machine": machine,
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        "requests": requests,
        "failed": failed,
        "holds": all_hold(rows),
    }
