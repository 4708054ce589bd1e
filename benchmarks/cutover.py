"""What is done every day, under load: release, rollback, reload, recycling of workers, reload of nginx, playbooks."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import REST, TAIL, Row, Tally, Window, commit_time, make_row, workers_seen
from benchmarks.session import FAILURES, HOSTS, PAUSE, STEADY, Session, counted
from witness.check import check
from witness.load import Result
from witness.plot import page

# Whole playbooks take most of a minute each.
PLAYBOOK_REPETITIONS = 3
# Requests after which a worker is replaced in the section on that, its requests per second and host, its seconds.
RECYCLE_AFTER, RECYCLE_RATE, RECYCLE_SECONDS = 300, 80, 60
WORKERS = 2 * len(HOSTS)


class Event(NamedTuple):
    """What is done: its name in the table, how, and the release that its hosts are to serve afterwards."""

    name: str
    work: Callable[[], object]
    release: str
    hosts: tuple[str, ...] = HOSTS


def repeat(
    session: Session, repetitions: int, events: Sequence[Event], **changes: Any
) -> tuple[Result, list[Window], list[str]]:
    """Carry events out in turn, `repetitions` times each, with the witness on both hosts.

    changes: of the witness's plan. Returns what the witness saw, the times of the events, and what was wrong. The first
    thing that is wrong ends it.
    """
    windows: list[Window] = []
    problems: list[str] = []
    restarts = session.restarts()
    with session.watch(**changes) as witness:
        time.sleep(STEADY)
        for number in range(1, repetitions + 1):
            for name, work, release, hosts in events:
                session.say(f"{name} {number} of {repetitions}, {' and '.join(hosts)}")
                try:
                    time.sleep(REST)
                    with session.window(witness, windows, name, hosts):
                        work()
                    time.sleep(TAIL)
                    problems += session.wrong(release, hosts)
                except FAILURES as error:
                    problems.append(f"{name} {number}: {str(error).strip()}")
                if problems:
                    break
            if problems:
                break
    problems += session.more_restarts(restarts)
    return witness.result(), windows, problems


def release(session: Session, plot: Path | None = None) -> list[Row]:
    """The engine's hand-over to another release and back to the one before, on one host after the other."""
    result, rows = _there_and_back(session, "release", "rollback", session.repetitions, latency=True)
    if plot:
        plot.write_text(page(result.document, result.records, f"Release and rollback: {result.line}"))
    return rows


def unkept(session: Session) -> list[Row]:
    """Release and rollback where nginx opens a connection to the application for each request."""
    session.serve("one")
    site = ("--skip-tags", "secrets")
    try:
        session.say("nginx without upstream keep-alive")
        session.fleet.good("deploy.yml", *site, **session.variables("one", nginx_site_upstream_keepalive=0))
        return _there_and_back(
            session,
            "release, no keep-alive",
            "rollback, no keep-alive",
            max(1, session.repetitions // 4),
            latency=False,
        )[1]
    finally:
        session.fleet.good("deploy.yml", *site, **session.variables("one"))


def _there_and_back(
    session: Session, there: str, back: str, repetitions: int, *, latency: bool
) -> tuple[Result, list[Row]]:
    """Hand over from variant one to two and back; there, back: names of the rows. latency: whether it is demanded.

    One host after the other, as by `serial`: they share the cores here, and both at once would show what that costs.
    """
    session.ensure("one", "two")
    one, two = session.serve("one"), session.releases["two"]
    name = session.fleet.name

    def by_engine(host: str, *words: str) -> Callable[[], object]:
        return lambda: session.fleet.ssh(host, shlex.join(["bareforge", *words]))

    events = [
        Event(there, by_engine(host, "activate", name, session.activation("two", host)), two, (host,)) for host in HOSTS
    ]
    events += [Event(back, by_engine(host, "rollback", name), one, (host,)) for host in HOSTS]
    result, windows, problems = repeat(session, repetitions, events)
    seen = set(result.document["releases"])
    if not problems and seen != {one, two}:
        problems.append(f"answers came from {', '.join(sorted(seen))} instead of {one} and {two}")
    return result, [
        make_row(
            kind,
            sum(window.name == kind for window in windows),
            counted(result, windows, kind, Tally()),
            problems,
            latency=latency,
        )
        for kind in (there, back)
    ]


def reload(session: Session) -> list[Row]:
    """The playbook (HUP: the same master, new workers), and `systemctl reload` (hand-over to a new master)."""
    one = session.serve("one")
    by_playbook = min(PLAYBOOK_REPETITIONS, session.repetitions)
    variables = session.variables("one")
    rows = []
    for kind, work, repetitions in (
        ("reload.yml (HUP)", lambda: session.fleet.good("reload.yml", **variables), by_playbook),
        ("systemctl reload", lambda: session.ssh_all(f"systemctl reload {session.fleet.name}"), session.repetitions),
    ):
        rows.append(_one_kind(session, kind, work, repetitions, one))
    return rows


def nginx(session: Session) -> list[Row]:
    """A reload of nginx in front of the application, on both hosts at the same time."""
    one = session.serve("one")
    return [
        _one_kind(session, "nginx reload", lambda: session.ssh_all("systemctl reload nginx"), session.repetitions, one)
    ]


def _one_kind(session: Session, kind: str, work: Callable[[], object], repetitions: int, release: str) -> Row:
    result, windows, problems = repeat(session, repetitions, [Event(kind, work, release)])
    return make_row(kind, len(windows), counted(result, windows, kind, Tally()), problems)


def recycle(session: Session) -> list[Row]:
    """Workers that are replaced all the time by max_requests; its repetitions are the workers that were."""
    session.ensure("one")
    try:
        one = session.deploy("one", asgi_app_max_requests=RECYCLE_AFTER)
        restarts = session.restarts()
        with session.watch(rate=RECYCLE_RATE) as witness:
            session.say(f"recycling workers for {RECYCLE_SECONDS} s")
            time.sleep(RECYCLE_SECONDS)
        result = witness.result()
        # workers come and go: what they say of themselves is asked for until it is about the same moment
        problems = [*session.wrong(one, patience=15), *session.more_restarts(restarts)]
    finally:
        session.serve("one")
    replaced = workers_seen(result.records) - WORKERS
    if replaced < 1:
        problems.append("no worker was replaced")
    window = [Window("recycling", 0, result.document["seconds"])]
    return [make_row("recycling workers", replaced, counted(result, window, "recycling", Tally()), problems)]


def playbooks(session: Session) -> list[Row]:
    """deploy.yml and rollback.yml as they are run, with the checker on the history of every request."""
    session.ensure("one", "two")
    releases = (session.serve("one"), session.releases["two"])
    repetitions = min(PLAYBOOK_REPETITIONS, session.repetitions)
    variables = session.variables("two")
    kinds: dict[str, Callable[[], object]] = {
        "deploy.yml": lambda: session.fleet.good("deploy.yml", **variables),
        "rollback.yml": lambda: session.fleet.good("rollback.yml"),
    }
    tallies = {kind: Tally() for kind in kinds}
    problems: dict[str, list[str]] = {kind: [] for kind in kinds}
    for number in range(1, repetitions + 1):
        for kind, work in kinds.items():
            if any(problems.values()):
                break
            session.say(f"{kind} {number} of {repetitions}")
            old, new = releases if kind == "deploy.yml" else releases[::-1]
            problems[kind] += _one_playbook(session, kind, work, old, new, tallies[kind])
    if any(problems.values()):
        session.ssh_all(f"bareforge unlock {session.fleet.name}")
    # installation and controller share the cores with two hosts here: what that costs is shown, not demanded
    return [make_row(kind, repetitions, tallies[kind], problems[kind]) for kind in kinds]


def _one_playbook(
    session: Session, kind: str, work: Callable[[], object], old: str, new: str, tally: Tally
) -> list[str]:
    """Run a playbook under the witness; adds to the tally and returns what was wrong."""
    windows: list[Window] = []
    problems: list[str] = []
    restarts = session.restarts()
    with session.watch() as witness:
        time.sleep(STEADY)
        try:
            with session.window(witness, windows, kind):
                work()
        except FAILURES as error:
            problems.append(str(error).strip())
        time.sleep(PAUSE)
    result = witness.result()
    counted(result, windows, kind, tally)
    if problems:
        return problems
    problems += [*session.wrong(new), *session.more_restarts(restarts)]
    return problems + history_problems(session, result, kind.removesuffix(".yml"), old, new)


def history_problems(session: Session, result: Result, action: str, old: str, new: str) -> list[str]:
    """What the checker finds: each answer from old or new, and none from old on a host that has committed new."""
    started = datetime.fromisoformat(result.document["started"])
    tails = session.ssh_all(f"tail -n 5 /var/lib/{session.fleet.name}/history.jsonl")
    try:
        commits = {host: commit_time(tail, started, action) for host, tail in tails.items()}
    except ValueError as error:
        return [str(error)]
    return check(result.records, old, new, commits)
