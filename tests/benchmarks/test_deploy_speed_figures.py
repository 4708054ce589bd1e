"""What benchmarks/deploy_speed.py makes of its measurements."""

import re
import tomllib

from benchmarks.fleet import ROOT
from benchmarks.speed.builds import APPLICATION, LOCK, OPTIONAL, select
from benchmarks.speed.figures import (
    CODE,
    IDLE_DEPLOY,
    IDLE_RELEASE,
    OURS,
    PLAIN,
    PYINFRA,
    RAW,
    ROLLBACK,
    WORKS,
    Demand,
    Measured,
    boots,
    demands,
    document,
    lines,
    table,
    verdict,
)
from benchmarks.speed.plot import page

STARTS = {1: 1.0, 8: 4.0}
WHEEL = 20_000


def run(tool: str, work: str, hosts: int = 1, wall: float = 1.0, **changes) -> Measured:
    figures = {"controller": 1.0, "targets": 1.0, "executions": hosts, "received": 1000 * hosts, **changes}
    return Measured(tool, work, hosts, wall, **figures)


def good() -> list[Measured]:
    """Runs of which every demand holds, each at its limit."""
    measured = [
        run(OURS, CODE, 1, 6.0, controller=1.0, executions=3, received=WHEEL + 100_000),
        run(OURS, CODE, 8, 21.0, controller=1.0 + 7 * 0.15),
        run(PYINFRA, CODE, 1, 12.0),
        run(RAW, CODE, 1, 2.0),
        run(OURS, IDLE_RELEASE, executions=2),
        run(OURS, IDLE_DEPLOY, wall=3.5),
        run(PLAIN, IDLE_DEPLOY, wall=10.0),
        run(OURS, ROLLBACK, 1, 5.0),
        run(OURS, ROLLBACK, 8, 33.0),
    ]
    return measured + [run(OURS, work, watched=True, requests=10) for work in WORKS[1:]]


def judged(measured: list[Measured]) -> list[Demand]:
    # a line needs a run that is timed
    timed = [run(OURS, work) for work in WORKS[1:] if not any(m.work == work and not m.watched for m in measured)]
    return demands(lines([*measured, *timed]), STARTS, WHEEL)


def test_all_demands_hold_at_their_limits():
    assert [demand.text for demand in judged(good()) if not demand.holds] == []


def broken(index: int, **changes) -> list[str]:
    measured = good()
    measured[index] = Measured(**{**measured[index].__dict__, **changes})
    return [demand.text for demand in judged(measured) if not demand.holds]


def test_each_demand_can_fail():
    assert broken(0, executions=4) == ["code release: SSH executions per host"]
    assert broken(0, received=WHEEL + 100_001) == ["code release: bytes sent to a host"]
    assert broken(1, controller=1.0 + 7 * 0.16) == [
        "code release: processor seconds of the controller per further host"
    ]
    assert broken(1, wall=22.0) == ["code release: wall on 8 / on 1, apart from starts"]
    assert broken(2, wall=11.9) == ["code release on 1 host: wall / pyinfra's"]
    assert broken(3, wall=1.9) == ["code release on 1 host: wall / raw ssh's"]
    assert broken(4, executions=3) == ["no-op release.yml: SSH executions per host"]
    assert broken(5, wall=3.6) == ["no-op deploy.yml on 1 host: wall / plain Ansible's"]
    assert broken(7, wall=5.1) == ["rollback on 1 host: seconds apart from starts"]
    assert broken(8, wall=33.1) == ["rollback on 8 hosts: seconds apart from starts"]
    assert broken(-1, failed=1) == ["no-op converge: failed requests"]


def test_a_demand_of_which_nothing_was_measured_does_not_hold():
    found = demands(lines([run(OURS, CODE)]), STARTS, WHEEL)
    missing = [demand.text for demand in found if demand.value is None]
    assert "code release on 1 host: wall / pyinfra's" in missing
    assert "code release: failed requests" in missing
    assert not document([], [], [], {}, {})["holds"]


def test_lines_are_medians_of_timed_runs_with_the_failures_of_all():
    watched = run(OURS, CODE, 2, 100.0, watched=True, requests=50, failed=1)
    [line] = lines([run(OURS, CODE, 2, wall) for wall in (1.0, 9.0, 2.0)] + [watched])
    assert (line.wall, line.fastest, line.slowest, line.runs) == (2.0, 1.0, 9.0, 3)
    assert (line.executions, line.received) == (1, 1000)
    assert (line.requests, line.failed) == (50, 1)


def test_starts_are_those_of_candidates_first_host_and_all_others():
    assert boots(STARTS, 1, CODE) == 2.0
    assert boots(STARTS, 8, CODE) == 9.0
    assert boots(STARTS, 8, IDLE_RELEASE) == 0.0


def test_the_output_can_be_read():
    found = lines(good())
    assert "code release        bareforge           8     1     21.0" in table(found)
    said = verdict([Demand("a thing", 2.0, 1), Demand("another", None, 1), Demand("a third", 0.5, 1)])
    assert said.splitlines() == [
        "NO   a thing: 2 (at most 1)",
        "NO   another: not measured (at most 1)",
        "yes  a third: 0.5 (at most 1)",
    ]
    drawn = page(found, "a title")
    assert drawn.count("<polyline") == len({(line.tool, line.work) for line in found})
    assert "bareforge, 8: 21.0 s" in drawn


def test_each_selection_of_optional_packages_is_another_lock():
    lock = LOCK.read_text()
    locks = [select(lock, selection) for selection in range(1 << len(OPTIONAL))]
    assert locks[0] == lock
    assert len(set(locks)) == len(locks)
    assert "alembic==" not in locks[1]
    assert "mako==" in locks[1]
    # what is shipped with every release needs none of them
    for project in (APPLICATION / "pyproject.toml", ROOT / "runtime/pyproject.toml"):
        needed = tomllib.loads(project.read_text())["project"]["dependencies"]
        assert not {re.split(r"[^a-z0-9-]", item)[0] for item in needed} & {*OPTIONAL}
