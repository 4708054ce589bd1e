"""What goes wrong, under load: releases that fail in every way, and the death of the master."""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

from benchmarks.figures import Row, Tally, Window, in_flight, last_failure, make_row
from benchmarks.session import HOSTS, STEADY, Session, counted
from benchmarks.trial.variants import Fault
from witness.load import Result

# What the message of the deploy has to say of each fault.
CAUSES = {
    Fault.IMPORT: "trial: fault import",
    Fault.LIFESPAN: "failed at startup",
    Fault.SETTINGS: "FORGE_TRIAL is missing",
    Fault.NOT_READY: "503",
    Fault.HANG: "did not become ready within",
    Fault.CRASH: "ended",
}
ATTEMPTS = (*CAUSES, Fault.IMPORT, Fault.LIFESPAN, Fault.NOT_READY, Fault.CRASH)
# Seconds of readiness that are demanded of the candidate; the crash comes after 5.
SOAK = 7
KILLS = 3
# Seconds within which a master that was killed is replaced and everything is in order again.
RECOVERY = 60.0


def broken(session: Session) -> list[Row]:
    """Ten releases that fail, two at a time, each to a host of its own: nothing changes, and the message says why."""
    session.ensure("one", "two")
    one = session.serve("one")
    restarts = session.restarts()
    problems: list[str] = []
    good = 0
    windows: list[Window] = []
    with session.watch() as witness:
        time.sleep(STEADY)
        for first in range(0, len(ATTEMPTS), len(HOSTS)):
            pair = dict(zip(HOSTS, ATTEMPTS[first : first + len(HOSTS)], strict=True))
            session.say(f"broken releases {first + 1} and {first + 2} of {len(ATTEMPTS)}: {', '.join(pair.values())}")
            with session.window(witness, windows, "broken release"):
                found = attempts(session, pair, one)
            good += sum(not sentences for sentences in found.values())
            problems += [sentence for sentences in found.values() for sentence in sentences]
    problems += session.more_restarts(restarts)
    tally = counted(witness.result(), windows, "broken release", Tally())
    note = f"{good} of {len(ATTEMPTS)} refused with the cause, the release before untouched"
    return [make_row("broken releases", len(ATTEMPTS), tally, problems, note=note)]


def attempts(session: Session, pair: dict[str, Fault], serving: str) -> dict[str, list[str]]:
    """Deploy a fault to each host at the same time; returns what is not as it has to be then, by host."""
    return session.on_hosts(lambda host: attempt(session, host, pair[host], serving))


def attempt(session: Session, host: str, fault: Fault, serving: str) -> list[str]:
    """Deploy a release with a fault to one host; returns what is not as it has to be then."""
    name = f"fault.{fault.name.lower().replace('_', '.')}"
    variables = session.variables(name, fault, asgi_app_soak=SOAK)
    run = session.fleet.play("deploy.yml", "--limit", host, **variables)
    message = last_failure(run.stdout)
    wrong = []
    if run.returncode == 0:
        wrong.append("the deploy succeeded")
    elif CAUSES[fault] not in message:
        wrong.append(f"the message does not say {CAUSES[fault]!r}: {message or run.stdout[-500:]}")
    wrong += session.wrong(serving, [host])
    return [f"{fault} on {host}: {sentence}" for sentence in wrong]


class Kill(NamedTuple):
    """A killed master: requests in flight at that moment, failed requests, seconds until all was in order again."""

    in_flight: int
    failed: int
    seconds: float


def kill(session: Session) -> list[Row]:
    """kill -9 of the master: systemd keeps the socket, the workers finish what they have."""
    session.ensure("one")
    one = session.serve("one")
    tally, kills = Tally(), []
    problems: list[str] = []
    for number in range(1, min(KILLS, session.repetitions) + 1):
        session.say(f"kill -9 of the master, {number}")
        windows: list[Window] = []
        before = session.fleet.restarts("app1")
        with session.watch("app1") as witness:
            time.sleep(STEADY)
            with session.window(witness, windows, "kill -9"):
                at = kill_master(session, "app1", session.fleet.name)
                problems += session.wrong(one, ["app1"], patience=RECOVERY)
            time.sleep(STEADY)
        result = witness.result()
        counted(result, windows, "kill -9", tally)
        kills.append(judge(result, at, windows[0].end))
        after = session.fleet.restarts("app1")
        if after != before + 1:
            problems.append(f"app1: NRestarts went from {before} to {after}, expected one more")
    problems += [
        f"{item.failed} requests failed, {item.in_flight} were in flight"
        for item in kills
        if item.failed > item.in_flight
    ]
    allowed = sum(item.in_flight for item in kills)
    return [make_row("kill -9 of the master", len(kills), tally, problems, allowed=allowed, note=describe(kills))]


def kill_master(session: Session, host: str, unit: str) -> float:
    """Kill the main process of a unit; returns when, in seconds since the epoch by the clock that hosts share."""
    said = session.fleet.ssh(host, f"kill -9 $(systemctl show --property=MainPID --value {unit}); date +%s.%N")
    return float(said.strip())


def judge(result: Result, at: float, end: float) -> Kill:
    """at: seconds since the epoch; end: of the recovery, seconds since the witness's start."""
    killed = at - datetime.fromisoformat(result.document["started"]).timestamp()
    return Kill(in_flight(result.records, killed), result.document["failed"], end - killed)


def describe(kills: list[Kill]) -> str:
    """One note about all kills."""
    return "; ".join(
        f"{item.failed} lost of {item.in_flight} in flight, {item.seconds:.1f} s to recover" for item in kills
    )
