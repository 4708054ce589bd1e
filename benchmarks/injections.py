"""What happens to a host while it serves: a worker that hangs, full disks of logs, a database that restarts, a master
that dies in the midst of a hand-over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.faults import RECOVERY, judge
from benchmarks.figures import Row, Tally, Window, make_row
from benchmarks.session import PAUSE, STEADY, Session, counted
from witness.load import Result

HOST = "app1"
# Seconds after which gunicorn takes a worker without a heart-beat for one that hangs; the default is a minute.
HUNG_AFTER = 8
# Seconds for which a disk stays full.
FULL = 8.0

# A disk of its own for the logs, without a free byte; its program opens them anew.
FILL = (
    "mount -t tmpfs -o size=64k,mode=$(stat -c 0%a {directory}) full {directory} && {reopen} && "
    "dd if=/dev/zero of={directory}/filler bs=4k 2>/dev/null; test $(df --output=avail {directory} | tail -n 1) = 0"
)
EMPTY = "umount --lazy {directory}; {reopen}"
# Stops a worker and tells how many connections it has accepted: from then on it answers none of them. As its own user:
# root of a lab host may not look into processes.
STOP = (
    "kill -STOP {pid}; runuser -u {name} -- ls -l /proc/{pid}/fd | "
    "sed -n 's/.*socket:\\[\\(.*\\)\\]/\\1/p' | sort > /run/hung; "
    'awk \'$6 == "03" && $8 == "/run/{name}/app.sock" {{ print $7 }}\' /proc/net/unix | sort | '
    "comm -12 - /run/hung | wc -l; rm /run/hung"
)
# Waits for the new master of a hand-over, then kills it, or the one that serves; tells when.
KILL_IN_HAND_OVER = (
    "for _ in $(seq 100); do test -s {directory}/gunicorn.pid.2 && break; sleep 0.1; done; "
    "kill -9 $(cat {directory}/{file}) && date +%s.%N"
)
READY = "/srv/{name}/current/venv/bin/python -m bareforge_runtime wait --socket /run/{name}/app.sock --timeout 30"


class Log(NamedTuple):
    """A program that writes logs: what it is called, where it writes, how it opens its files anew."""

    name: str
    directory: str
    reopen: str


LOGS = (
    Log("nginx", "/var/log/nginx", "nginx -s reopen"),
    Log(
        "the journal",
        "$(ls -d /var/log/journal /run/log/journal 2>/dev/null | head -n 1)",
        "systemctl restart systemd-journald",
    ),
)


def injected(session: Session) -> list[Row]:
    """Each fault under load on one host, which has to be in order again by itself."""
    session.ensure("one", "two")
    rows = [_hung(session)]
    session.serve("one")
    rows += [_full(session, log) for log in LOGS]
    rows.append(_event(session, "database restarted", lambda: _restart_database(session)))
    rows.append(_killed_in_hand_over(session, "the new master", "gunicorn.pid.2"))
    rows.append(_killed_in_hand_over(session, "the old master", "gunicorn.pid"))
    session.serve("one")
    return rows


def _watch(session: Session, name: str, work: Callable[[], object]) -> tuple[Result, list[Window], list[str]]:
    """Do something under load; returns what the witness saw, and what is wrong with the host afterwards."""
    session.say(name)
    windows: list[Window] = []
    with session.watch(HOST) as witness:
        time.sleep(STEADY)
        with session.window(witness, windows, name):
            work()
            problems = session.wrong(hosts=[HOST], patience=RECOVERY)
        time.sleep(PAUSE)
    return witness.result(), windows, problems


def _event(session: Session, name: str, work: Callable[[], object]) -> Row:
    """The row of something that may cost nothing and restart nothing."""
    restarts = session.restarts()
    result, windows, problems = _watch(session, name, work)
    problems += session.more_restarts(restarts)
    return make_row(name, 1, counted(result, windows, name, Tally()), problems)


def _full(session: Session, log: Log) -> Row:
    def fill() -> None:
        try:
            session.fleet.ssh(HOST, FILL.format(directory=log.directory, reopen=log.reopen))
            time.sleep(FULL)
        finally:
            session.fleet.ssh(HOST, EMPTY.format(directory=log.directory, reopen=log.reopen))

    return _event(session, f"full disk under {log.name}", fill)


def _restart_database(session: Session) -> None:
    session.fleet.ssh("infra1", "systemctl restart postgresql")
    # by itself: the pool notices that its connections are gone
    session.fleet.ssh(HOST, READY.format(name=session.fleet.name))


def _hung(session: Session) -> Row:
    """A worker that is stopped answers none of the connections it has; gunicorn replaces it."""
    name = "worker stopped (SIGSTOP)"
    session.deploy("one", asgi_app_timeout=HUNG_AFTER)
    worker = session.fleet.status(HOST)["workers"][0]["pid"]
    held: list[int] = []
    seconds: list[float] = []

    def stop() -> None:
        held.append(int(session.fleet.ssh(HOST, STOP.format(pid=worker, name=session.fleet.name))))
        began = time.monotonic()
        while worker in [item["pid"] for item in session.fleet.status(HOST)["workers"]]:
            if time.monotonic() - began > RECOVERY:
                break
            time.sleep(0.5)
        seconds.append(time.monotonic() - began)

    restarts = session.restarts()
    result, windows, problems = _watch(session, name, stop)
    problems += session.more_restarts(restarts)
    if seconds[0] > RECOVERY:
        problems.append(f"the worker was not replaced within {RECOVERY:g} s")
    tally = counted(result, windows, name, Tally())
    note = f"{tally.failed} lost of {held[0]} connections that the worker had; replaced after {seconds[0]:.1f} s"
    return make_row(name, 1, tally, problems, allowed=held[0], note=note)


def _killed_in_hand_over(session: Session, whose: str, file: str) -> Row:
    """Of a new master that dies nothing may be felt; an old one takes along what it had."""
    name = f"{whose} killed in a hand-over"
    one, two = session.serve("one"), session.releases["two"]
    application = session.fleet.name
    moments: list[float] = []

    def switch_and_kill() -> None:
        switch = threading.Thread(
            target=session.fleet.ssh,
            args=(HOST, f"bareforge activate {application} {session.activation('two', HOST)}"),
            kwargs={"check": False},
        )
        switch.start()
        try:
            directory = f"/run/{application}/gunicorn"
            said = session.fleet.ssh(HOST, KILL_IN_HAND_OVER.format(directory=directory, file=file))
            moments.append(float(said))
        finally:
            switch.join()

    result, windows, problems = _watch(session, name, switch_and_kill)
    serves = session.fleet.release(HOST)
    if serves not in (one, two) or (file.endswith(".2") and serves != one):
        problems.append(f"{HOST} serves {serves}")
    allowed = 0
    if not file.endswith(".2"):
        allowed = judge(result, moments[0], windows[0].end).in_flight
    tally = counted(result, windows, name, Tally())
    note = f"{tally.failed} lost of {allowed} in flight; serves the {'old' if serves == one else 'new'} release"
    return make_row(name, 1, tally, problems, allowed=allowed, note=note)
