"""What deploy_speed makes of its measurements: medians, a table, what is demanded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

OURS, PLAIN, PYINFRA, RAW = "bareforge", "plain ansible", "pyinfra", "raw ssh"
TOOLS = (OURS, PLAIN, PYINFRA, RAW)
COLD, CODE, IDLE_RELEASE, ROLLBACK, DEPENDENCIES, IDLE_DEPLOY = (
    "cold deploy",
    "code release",
    "no-op release",
    "rollback",
    "dependency change",
    "no-op converge",
)
WORKS = (COLD, CODE, IDLE_RELEASE, ROLLBACK, DEPENDENCIES, IDLE_DEPLOY)
# Bytes beside the application's wheel that a code-only release may send to a host.
BYTES_BESIDE = 100_000


@dataclass(frozen=True)
class Measured:
    """One run. Seconds of wall, and of processor time of the controller and of all hosts together.

    executions (commands over SSH) and received (bytes, as the host's network device counts them) are of all hosts
    together. requests and failed are the witness's, where one watched; its load is in the other figures then, so they
    are left out of medians.
    """

    tool: str
    work: str
    hosts: int
    wall: float
    controller: float
    targets: float
    executions: int
    received: int
    watched: bool = False
    requests: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Line:
    """The medians of one tool's runs of one work on so many hosts; executions and received for each host."""

    tool: str
    work: str
    hosts: int
    runs: int
    wall: float
    fastest: float
    slowest: float
    controller: float
    targets: float
    executions: float
    received: float
    requests: int
    failed: int


@dataclass(frozen=True)
class Demand:
    """What has to hold: at most `limit`. value is None where nothing was measured that it could be told from."""

    text: str
    value: float | None
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value is not None and self.value <= self.limit


def lines(measured: Sequence[Measured]) -> list[Line]:
    """One for each tool, work and number of hosts, in the order of WORKS, hosts, TOOLS."""
    keys = {(run.tool, run.work, run.hosts) for run in measured}
    order = sorted(keys, key=lambda key: (WORKS.index(key[1]), key[2], TOOLS.index(key[0])))
    return [line for key in order if (line := _line([run for run in measured if _key(run) == key]))]


def _key(run: Measured) -> tuple[str, str, int]:
    return run.tool, run.work, run.hosts


def _line(runs: Sequence[Measured]) -> Line | None:
    timed = [run for run in runs if not run.watched]
    if not timed:
        return None
    first, hosts = runs[0], runs[0].hosts
    walls = [run.wall for run in timed]
    return Line(
        first.tool,
        first.work,
        hosts,
        len(timed),
        median(walls),
        min(walls),
        max(walls),
        median(run.controller for run in timed),
        median(run.targets for run in timed),
        median(run.executions for run in timed) / hosts,
        median(run.received for run in timed) / hosts,
        sum(run.requests for run in runs),
        sum(run.failed for run in runs),
    )


def boots(seconds: Mapping[int, float], hosts: int, work: str) -> float:
    """Seconds in which a run only waits for the application to start.

    seconds: of a start on so many hosts at once. Every candidate at once, then the first host's new workers, then
    those of all others.
    """
    if work not in (CODE, ROLLBACK, DEPENDENCIES):
        return 0.0
    others = 0.0 if hosts == 1 else seconds[hosts]
    return seconds[hosts] + seconds[min(seconds)] + others


def demands(found: Sequence[Line], starts: Mapping[int, float], wheel_bytes: int) -> list[Demand]:
    """What the benchmark demands of what it has measured. starts: seconds as for boots()."""
    by = {(line.tool, line.work, line.hosts): line for line in found}
    sizes = sorted({line.hosts for line in found})
    if not sizes:
        return []
    one, many = sizes[0], sizes[-1]

    def of(tool: str, work: str, hosts: int, figure: str) -> float | None:
        line = by.get((tool, work, hosts))
        return None if line is None else float(getattr(line, figure))

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or not below else above / below

    def without_boots(work: str, hosts: int) -> float | None:
        wall = of(OURS, work, hosts, "wall")
        return None if wall is None or hosts not in starts else max(0.0, wall - boots(starts, hosts, work))

    wall = of(OURS, CODE, one, "wall")
    at = f"on {one} host{'s' if one > 1 else ''}"
    result = [
        Demand("no-op release.yml: SSH executions per host", of(OURS, IDLE_RELEASE, one, "executions"), 2),
        Demand("code release: SSH executions per host", of(OURS, CODE, one, "executions"), 3),
        Demand("code release: bytes sent to a host", of(OURS, CODE, one, "received"), wheel_bytes + BYTES_BESIDE),
        Demand(f"code release {at}: wall / pyinfra's", ratio(wall, of(PYINFRA, CODE, one, "wall")), 0.5),
        Demand(f"code release {at}: wall / raw ssh's", ratio(wall, of(RAW, CODE, one, "wall")), 3),
        Demand(
            f"no-op deploy.yml {at}: wall / plain Ansible's",
            ratio(of(OURS, IDLE_DEPLOY, one, "wall"), of(PLAIN, IDLE_DEPLOY, one, "wall")),
            0.35,
        ),
        Demand(f"rollback {at}: seconds apart from starts", without_boots(ROLLBACK, one), 3 * one),
    ]
    if many > one:
        more, less = of(OURS, CODE, many, "controller"), of(OURS, CODE, one, "controller")
        each = None if more is None or less is None else (more - less) / (many - one)
        spread = ratio(without_boots(CODE, many), without_boots(CODE, one))
        result += [
            Demand("code release: processor seconds of the controller per further host", each, 0.15),
            Demand(f"code release: wall on {many} / on {one}, apart from starts", spread, 3),
            Demand(f"rollback on {many} hosts: seconds apart from starts", without_boots(ROLLBACK, many), 3 * many),
        ]
    for work in WORKS[1:]:
        watched = [line for line in found if line.tool == OURS and line.work == work]
        seen = sum(line.requests for line in watched)
        result.append(Demand(f"{work}: failed requests", sum(line.failed for line in watched) if seen else None, 0))
    return result


# ------------------------------------------------------------------------------------------------------------ output

COLUMNS = (
    ("work", 18),
    ("tool", 14),
    ("hosts", 5),
    ("runs", 4),
    ("wall s", 7),
    ("from - to", 13),
    ("controller s", 12),
    ("targets s", 9),
    ("SSH/host", 8),
    ("kB/host", 8),
    ("failed", 12),
)


def table(found: Iterable[Line]) -> str:
    """The table of all lines, with its head."""
    rows = [[name for name, _ in COLUMNS]]
    for line in found:
        failed = f"{line.failed} of {line.requests}" if line.requests else "-"
        rows.append(
            [
                line.work,
                line.tool,
                str(line.hosts),
                str(line.runs),
                f"{line.wall:.1f}",
                f"{line.fastest:.1f} - {line.slowest:.1f}",
                f"{line.controller:.2f}",
                f"{line.targets:.1f}",
                f"{line.executions:.1f}",
                f"{line.received / 1000:.0f}",
                failed,
            ]
        )
    return "\n".join(_row(row) for row in rows)


def _row(cells: Sequence[str]) -> str:
    left = [cell.ljust(width) for cell, (_, width) in zip(cells[:2], COLUMNS[:2], strict=True)]
    right = [cell.rjust(width) for cell, (_, width) in zip(cells[2:], COLUMNS[2:], strict=True)]
    return "  ".join([*left, *right])


def verdict(found: Iterable[Demand]) -> str:
    """One line for each demand: yes or no, what it is, what may be."""
    said = []
    for demand in found:
        value = "not measured" if demand.value is None else f"{demand.value:.3g}"
        said.append(f"{'yes' if demand.holds else 'NO ':3}  {demand.text}: {value} (at most {demand.limit:.6g})")
    return "\n".join(said)


def document(
    measured: Sequence[Measured],
    found: Sequence[Line],
    demanded: Sequence[Demand],
    starts: Mapping[int, float],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON document: every run, the medians, the demands, the machine."""
    return {
        "machine": dict(machine),
        "starts": {str(hosts): seconds for hosts, seconds in starts.items()},
        "runs": [asdict(run) for run in measured],
        "lines": [asdict(line) for line in found],
        "demands": [{**asdict(demand), "holds": demand.holds} for demand in demanded],
        "holds": bool(demanded) and all(demand.holds for demand in demanded),
    }
