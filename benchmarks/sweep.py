"""The kill sweep: the controller, and the module on the host with it, dies at each task boundary and inside the switch.

After each death every host has to restart (which stands for a reboot) into one whole release, old or new, and the same
run once more has to finish the work. All of that under load, of which nothing may be lost.
"""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import (
    Point,
    Row,
    Tally,
    Window,
    changes,
    incomplete,
    last_failure,
    make_row,
    plan_points,
    running_release,
)
from benchmarks.fleet import HEADER, ROOT, Fleet, FleetError
from benchmarks.killing import KILL_MODULES, Run, Runner
from benchmarks.session import FAILURES, HOSTS, Session, counted
from witness.records import parse_release

PLAYBOOKS = ROOT / "playbooks"
# Requests per second and host: this machine has a deploy to do beside.
RATE, SLOW_RATE = 20, 1
# Seconds that workers may take after systemd's start to say that they are ready.
READY = 20.0
# After so many points the run is made a third time, which has to change nothing.
IDLE_RUN_EVERY = 5
# After so many findings a sweep gives up: something is wrong that the rest would only repeat.
MAXIMUM_FINDINGS = 25
# Seconds within which the load balancer has to see both hosts.
BALANCED = 30.0
# Ends of the names of the tasks that are killed in their midst too, with the seconds after which that happens.
INSTALLING = {
    "Build and install the release": (0.5, 1.5, 3.0),
    # plans, builds, installs, stages and proves, in this order
    "Ship the release and prove it beside what serves": (1.0, 2.0, 4.0, 6.0, 8.0),
}
INSIDE = {"Switch to the release, or keep what serves": (0.5, 1.5, 3.0), **INSTALLING}
# A reboot reads the units anew too.
REBOOT = "systemctl daemon-reload && systemctl restart {name}"


@dataclass
class Findings:
    """What the deaths led to, sentences by kind: no whole release, reruns that did not finish the work."""

    bad: list[str] = field(default_factory=list)
    rerun: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.bad) + len(self.rerun)

    def note(self, points: int) -> str:
        """One line for the table."""
        return f"{len(self.bad)} unbootable or mixed states, {len(self.rerun)} wrong reruns at {points} points"


@dataclass(frozen=True)
class Subject:
    """A playbook whose runs are killed, and what is to be so around them; points are numbered from 1.

    variables: of the run at a point, the last argument saying whether its installation is under the knife; number 0 is
    the run that counts the tasks. before: brings the hosts to where a run begins. new: the release afterwards, empty
    where only the run tells. deployed: variables with which deploy.yml changes nothing afterwards.
    """

    playbook: str
    variables: Callable[[int, bool], dict[str, Any]]
    before: Callable[[], object]
    new: str
    deployed: Callable[[int, bool], dict[str, Any]]


def sweep(session: Session) -> Iterator[Row]:
    """deploy.yml and release.yml to another release at each point, and rollback.yml from variant two to one."""

    def bring(playbook: str) -> Subject:
        def release(number: int, installs: bool) -> dict[str, Any]:
            # one that the hosts have not seen where that matters: installing it is most of what a point takes
            name = f"{number}" if installs or number == 0 else f"turn.{number % 2}"
            return session.variables(f"{playbook.removesuffix('.yml')}.{name}", asgi_app_soak=0)

        return Subject(playbook, release, lambda: None, new="", deployed=release)

    session.serve("one")
    yield _sweep(session, bring("deploy.yml"))
    yield _sweep(session, bring("release.yml"))
    session.ensure("one", "two")
    one = session.releases["one"]
    rollback = Subject(
        "rollback.yml",
        # by its name: a rerun must not go back further
        lambda *_: {"release": one},
        lambda: session.serve("two"),
        new=one,
        deployed=lambda *_: session.variables("one", asgi_app_soak=0),
    )
    yield _sweep(session, rollback)


def _sweep(session: Session, subject: Subject) -> Row:
    runner = Runner(session.fleet, session.directory)
    # that of a run whose rerun has failed
    session.ssh_all(f"bareforge unlock {session.fleet.name}")
    subject.before()
    session.say(f"kill sweep: counting the tasks of {subject.playbook}")
    whole = runner.good(PLAYBOOKS / subject.playbook, **subject.variables(0, True))
    points = plan_points(whole.tasks, session.every, INSIDE, whole.idle)
    installing = {number for number, name in enumerate(whole.tasks, 1) if name.endswith(tuple(INSTALLING))}
    tally, findings = Tally(), Findings()
    done = 0
    for number, point in enumerate(points, 1):
        session.say(f"kill sweep of {subject.playbook}, {number} of {len(points)}: {_place(point)}")
        try:
            subject.before()
            # at the boundary before it, in its midst, and at the one after it
            installs = bool(installing & {int(point.task), int(point.task) - 1})
            _one(session, runner, subject, point, (number, installs), tally, findings)
        except FAILURES as error:
            findings.rerun.append(f"{_place(point)}: {str(error).strip()}")
        done = number
        if findings.count:
            session.say(f"so far: {findings.note(done)}")
        if findings.count >= MAXIMUM_FINDINGS:
            break
    problems = [*findings.bad, *findings.rerun]
    if done < len(points):
        problems.append(f"given up after {done} of {len(points)} points")
    return make_row(f"kill sweep of {subject.playbook}", done, tally, problems, note=findings.note(done))


def _place(point: Point) -> str:
    return f"task {point.task}{f' + {point.after:g} s' if point.after else ''} ({point.name})"


def _one(
    session: Session,
    runner: Runner,
    subject: Subject,
    point: Point,
    which: tuple[int, bool],
    tally: Tally,
    findings: Findings,
) -> None:
    """Kill one run, restart the hosts, run it once more; all under load. which: as the subject's variables take it."""
    place, playbook = _place(point), PLAYBOOKS / subject.playbook
    variables = subject.variables(*which)
    old = {host: running_release(status) for host, status in session.statuses().items()}
    windows: list[Window] = []
    with session.watch(rate=RATE, slow_rate=SLOW_RATE) as witness:
        with session.window(witness, windows, "kill"):
            run = runner.run(playbook, point=point, **variables)
            session.ssh_all(KILL_MODULES, check=False)
            found = session.on_hosts(lambda host: reboot(session, host))
        with session.window(witness, windows, "rerun"):
            again = runner.run(playbook, **variables)
    result = witness.result()
    for window in windows:
        counted(result, windows, window.name, tally)
    if result.details:
        lost = "; ".join(f"{kind} ({detail})" for kind, detail in result.details.items())
        session.say(f"lost at {place}: {lost}")
    if not run.killed:
        findings.rerun.append(f"{place}: the run ended with {run.status} before it was to be killed")
    new = subject.new or session.fleet.release("app1")
    for host, (release, sentences) in found.items():
        if not sentences and release not in (old[host], new):
            sentences = [f"serves {release}, neither {old[host]} nor {new}"]
        if sentences:
            findings.bad.append(f"{place}: {host} after the restart: {', '.join(sentences)}")
    if again.status:
        findings.rerun.append(f"{place}: the rerun failed: {last_failure(again.output) or again.output[-500:]}")
        # the next point begins with an order of its own
        session.ssh_all(f"bareforge unlock {session.fleet.name}", check=False)
        return
    findings.rerun += [f"{place}: after the rerun {sentence}" for sentence in _after_rerun(session, new)]
    if which[0] % IDLE_RUN_EVERY == 1:
        findings.rerun += [f"{place}: {sentence}" for sentence in _idle(runner, subject.deployed(*which))]


def reboot(session: Session, host: str) -> tuple[str, list[str]]:
    """Restart the service as a boot would start it; returns the release of its workers and what is not whole."""
    try:
        session.fleet.ssh(host, REBOOT.format(name=session.fleet.name))
    except FAILURES as error:
        return "", [str(error).strip()]
    deadline = time.monotonic() + READY
    while True:
        status = session.fleet.status(host)
        wrong = incomplete(status)
        if not wrong or time.monotonic() >= deadline:
            return running_release(status), wrong
        time.sleep(0.5)


def _after_rerun(session: Session, release: str) -> list[str]:
    locked = [
        f"{host} is locked by {status['lock']['owner']}"
        for host, status in session.statuses().items()
        if status["lock"]
    ]
    return [*session.wrong(release, patience=5), *locked, *_unbalanced(session.fleet)]


def _idle(runner: Runner, variables: dict[str, Any]) -> list[str]:
    found = []
    for playbook in ("release.yml", "deploy.yml"):
        try:
            run = runner.good(PLAYBOOKS / playbook, **variables)
            changed = {host: count for host, count in changes(run.output).items() if count}
        except FleetError as error:
            found.append(f"one more {playbook} failed: {last_failure(str(error)) or str(error)[-500:]}")
        else:
            found += [f"one more {playbook} changed {count} things on {host}" for host, count in changed.items()]
    return found


def _unbalanced(fleet: Fleet) -> list[str]:
    """Hosts to which the load balancer sends nothing: a run that died while one was drained must not leave it so."""
    context = ssl.create_default_context(cafile=str(fleet.state / "ca.pem"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    url = f"https://localhost:{fleet.environment['LAB_HTTPS_PORT']}/health"
    deadline = time.monotonic() + BALANCED
    seen: set[str] = set()
    while not seen >= set(HOSTS):
        if time.monotonic() >= deadline:
            return [f"the load balancer sends nothing to {', '.join(sorted(set(HOSTS) - seen))}"]
        try:
            with opener.open(url, timeout=10) as answer:
                seen.add(parse_release(answer.headers.get(HEADER, "")).host or "")
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        time.sleep(0.1)
    return []


# ----------------------------------------------------------------------------------------------------- stands beside

NAIVE = ROOT / "benchmarks/naive.yml"
NAIVE_HOST = "app1"
NAIVE_URL = "http://127.0.0.1:8091/"
NAIVE_REBOOT = "systemctl daemon-reload && systemctl restart naive"
# asks as the host itself; nothing within 8 s is nothing
NAIVE_ASK = (
    "for _ in $(seq 16); do "
    f"python3 -c 'import urllib.request as r; print(r.urlopen(\"{NAIVE_URL}\").read().decode())' 2>/dev/null && exit; "
    "sleep 0.5; done"
)
NAIVE_REMOVE = (
    "systemctl disable --now naive; systemctl reset-failed naive; "
    "rm -rf /etc/systemd/system/naive.service /srv/naive /etc/naive; systemctl daemon-reload"
)


def naive(session: Session) -> list[Row]:
    """A playbook as tutorials have it, which copies over what serves, killed at each of its own boundaries."""
    runner = Runner(session.fleet, session.directory)

    def play(release: str, point: Point | None = None) -> Run:
        run = runner.run(NAIVE, "--limit", NAIVE_HOST, point=point, naive_release=release)
        if point:
            session.fleet.ssh(NAIVE_HOST, KILL_MODULES, check=False)
        elif run.status:
            raise FleetError(f"{NAIVE.name} failed:\n{run.output[-4000:]}")
        return run

    def parts() -> dict[str, str]:
        answer = session.fleet.ssh(NAIVE_HOST, NAIVE_ASK, check=False).strip()
        return dict(json.loads(answer)) if answer else {}

    try:
        play("one")
        points = plan_points(play("two").tasks, 1, {})
        bad, stale = [], []
        for point in points:
            session.say(f"naive playbook, task {point.task} of {len(points)}: {point.name}")
            for reboots in (True, False):
                _reset_naive(session, play)
                play("two", point)
                if reboots:
                    session.fleet.ssh(NAIVE_HOST, NAIVE_REBOOT, check=False)
                    found = parts()
                    if len(set(found.values())) != 1:
                        bad.append(f"{point.name}: {_describe(found)}")
                else:
                    # its own failure, as from a service that does not start, is told by what answers afterwards
                    runner.run(NAIVE, "--limit", NAIVE_HOST, naive_release="two")
                    found = parts()
                    if set(found.values()) != {"two"}:
                        stale.append(f"{point.name}: {_describe(found)}")
    finally:
        session.fleet.ssh(NAIVE_HOST, NAIVE_REMOVE, check=False)
    note = (
        f"{len(bad)} of {len(points)} unbootable or mixed after a restart, "
        f"{len(stale)} of {len(points)} not finished by a rerun"
    )
    found_wrong = [f"restarted: {sentence}" for sentence in bad] + [f"run again: {sentence}" for sentence in stale]
    return [Row("kill sweep of a naive playbook", len(points), ours=False, note=note, problems=found_wrong)]


def _reset_naive(session: Session, play: Callable[[str], Run]) -> None:
    """Everything of release one, also where a handler was lost or systemd has given the unit up."""
    session.fleet.ssh(NAIVE_HOST, "systemctl stop naive; systemctl reset-failed naive", check=False)
    play("one")
    session.fleet.ssh(NAIVE_HOST, NAIVE_REBOOT)


def _describe(found: dict[str, str]) -> str:
    return ", ".join(f"{part} {release}" for part, release in found.items()) or "does not start"
