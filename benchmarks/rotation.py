"""Is a request lost while credentials change? Rotations, and Vault away, under load that needs the database.

`scripts/benchmark rotation --help`. The exit code is 0 only if all that is demanded holds. benchmarks/README.md says
what each section proves.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.credentials import DATABASE, INFRA, leased, secret_hash, sessions, unseal, until, user, users, vault_of
from benchmarks.cutover import Event, repeat
from benchmarks.figures import Row, Tally, Window, in_flight, last_failure, make_row
from benchmarks.fleet import FleetError
from benchmarks.session import HOSTS, STEADY, Session, counted
from benchmarks.stock import login_per_worker

SETTING = "FORGE_SECRET_KEY"
# Whole playbooks: each takes most of a minute.
PLAYBOOK_REPETITIONS = 3
# Seconds for which Vault is sealed before anything is done: agents have noticed by then.
NOTICED = 20.0


def serve(session: Session) -> str:
    """Let both hosts serve the variant that the witness asks; returns its release id."""
    session.ensure("one")
    return session.serve("one")


def audited(session: Session) -> list[str]:
    """What playbooks/audit.yml finds now."""
    run = session.fleet.play("audit.yml")
    return [] if run.returncode == 0 else [f"audit.yml: {last_failure(run.stdout) or run.stdout[-500:]}"]


def database(session: Session) -> list[Row]:
    """New users of the database on both hosts at once; the old ones are removed as soon as they have no session."""
    one = serve(session)
    vault = vault_of(session.fleet)
    seconds: list[float] = []

    def rotate(host: str) -> None:
        before = leased(session.fleet, host)
        began = time.monotonic()
        session.fleet.ssh(host, "systemctl reload bareforge-agent")
        until(lambda: user(session.fleet, host) != before["username"], 30, f"{host} has a new user of the database")
        until(lambda: not sessions(session.fleet, before["username"]), 30, f"{host} has left its old user")
        seconds.append(time.monotonic() - began)
        vault.sys.revoke_lease(before["lease_id"])

    kind = "database users"
    result, windows, problems = repeat(
        session, session.repetitions, [Event(kind, lambda: session.on_hosts(rotate), one)], **DATABASE
    )

    def left() -> set[str]:
        return users(session.fleet) - {user(session.fleet, host) for host in HOSTS}

    try:
        # Vault revokes in its own time
        until(lambda: not left(), 30, "users that nobody has are gone from the database")
    except FleetError as error:
        problems.append(f"{error}: {', '.join(sorted(left()))}")
    note = f"{len(seconds)} users replaced, {max(seconds, default=0):.1f} s at most until the old one had no session"
    tally = counted(result, windows, kind, Tally())
    return [make_row(kind, len(windows), tally, [*problems, *audited(session)], note=note)]


def setting(session: Session) -> list[Row]:
    """A new value for one secret, by the playbook."""
    one = serve(session)
    variables = session.variables("one")
    before = secret_hash(session.fleet, HOSTS[0], SETTING)

    def rotate() -> None:
        session.fleet.good("rotate.yml", **variables, rotate="setting", setting=SETTING)

    row = _by_playbook(session, "one secret (rotate.yml)", rotate, one)
    after = {secret_hash(session.fleet, host, SETTING) for host in HOSTS}
    if len(after) != 1 or before in after:
        row = replace(row, holds=False, problems=[*row.problems, "the hosts have not come to one new value"])
    return [row]


def secret_id(session: Session) -> list[Row]:
    """New identities, by the playbook."""
    one = serve(session)
    return [
        _by_playbook(
            session, "secret_id (rotate.yml)", lambda: session.fleet.good("rotate.yml", rotate="secret_id"), one
        )
    ]


def _by_playbook(session: Session, kind: str, work: Callable[[], object], release: str) -> Row:
    repetitions = min(PLAYBOOK_REPETITIONS, session.repetitions)
    result, windows, problems = repeat(session, repetitions, [Event(kind, work, release)], **DATABASE)
    return make_row(kind, len(windows), counted(result, windows, kind, Tally()), [*problems, *audited(session)])


def sealed(session: Session) -> list[Row]:
    """Vault is sealed; then hand-over, HUP and a killed worker. Beside it: workers that log in by themselves."""
    one = serve(session)
    variables = session.variables("one")
    vault = vault_of(session.fleet)
    rows: list[Row] = []
    events: tuple[tuple[str, Callable[[], object]], ...] = (
        ("sealed: hand-over", lambda: session.ssh_all(f"systemctl reload {session.fleet.name}")),
        ("sealed: HUP (reload.yml)", lambda: session.fleet.good("reload.yml", **variables)),
    )
    session.say("Vault is sealed")
    vault.sys.seal()
    try:
        time.sleep(NOTICED)
        for kind, work in events:
            result, windows, problems = repeat(session, 1, [Event(kind, work, one)], **DATABASE)
            rows.append(make_row(kind, 1, counted(result, windows, kind, Tally()), problems))
        rows.append(_killed_worker(session, one))
    finally:
        unseal(session.fleet, vault)
        session.say("Vault is unsealed")
    until(lambda: all(_is_well(session, host) for host in HOSTS), 60, "the agents say that all is well")
    if found := audited(session):
        rows[-1] = replace(rows[-1], holds=False, problems=[*rows[-1].problems, *found])
    return [*rows, _login_per_worker(session, vault)]


def _login_per_worker(session: Session, vault: Any) -> Row:
    role = "auth/approle/role/stock"
    vault.write_data(role, data={"token_ttl": "1h"})
    try:
        identity = {
            "address": f"https://{INFRA}:8200",
            "role_id": vault.read(f"{role}/role-id")["data"]["role_id"],
            "secret_id": vault.write_data(f"{role}/secret-id", data={})["data"]["secret_id"],
        }
        return login_per_worker(session, json.dumps(identity), vault.sys.seal, lambda: unseal(session.fleet, vault))
    finally:
        vault.delete(role)


def _is_well(session: Session, host: str) -> bool:
    said = session.fleet.ssh(host, "systemctl show bareforge-agent --property=StatusText --value")
    return said.startswith("ok, ")


def _killed_worker(session: Session, release: str) -> Row:
    kind = "sealed: a worker killed"
    session.say(kind)
    windows: list[Window] = []
    with session.watch(HOSTS[0], **DATABASE) as witness:
        time.sleep(STEADY)
        worker = session.fleet.status(HOSTS[0])["workers"][0]["pid"]
        with session.window(witness, windows, kind):
            session.fleet.ssh(HOSTS[0], f"kill -9 {worker}")
            at = witness.seconds
            problems = session.wrong(release, [HOSTS[0]], patience=30)
        time.sleep(STEADY)
    result = witness.result()
    allowed = in_flight(result.records, at - 1) + in_flight(result.records, at)
    return make_row(kind, 1, counted(result, windows, kind, Tally()), problems, allowed=allowed)


def cost(session: Session) -> list[Row]:
    """What Vault costs: nothing is demanded."""
    serve(session)
    cold = "systemctl stop bareforge-agent; rm -rf /run/bareforge-agent/*; "
    timed = f"{cold} date +%s.%N; systemctl start bareforge-agent; date +%s.%N"
    memory = "cat /proc/$(systemctl show bareforge-agent --property=MainPID --value)/status"
    notes = []
    for host in HOSTS:
        begin, end = map(float, session.fleet.ssh(host, timed).split())
        resident = re.search(r"^VmRSS:\s+(\d+) kB", session.fleet.ssh(host, memory), re.M)
        used = f"{int(resident[1]) / 1024:.0f} MB" if resident else "unknown memory"
        notes.append(f"{host}: {end - begin:.1f} s from nothing to the first secrets, {used}")
    before = _logins(session)
    session.deploy("one")
    more = {host: count - before[host] for host, count in _logins(session).items()}
    said = ", ".join(f"{count} on {host}" for host, count in more.items())
    notes.append(f"logins of the agent in a deploy: {said}, and one of its check on each")
    row: dict[str, Any] = {"section": "cost of the agent", "repetitions": 1, "ours": False, "note": "; ".join(notes)}
    return [Row(**row)]


def _logins(session: Session) -> dict[str, int]:
    said = session.ssh_all("cat /run/bareforge-agent-status/status.json")
    return {host: int(json.loads(text)["logins"]) for host, text in said.items()}


def sections(_plot: Path | None) -> Mapping[str, command.Section]:
    """The sections by name, in their order."""
    return {"database": database, "setting": setting, "secret_id": secret_id, "sealed": sealed, "cost": cost}


BENCHMARK = command.Benchmark(
    name="rotation",
    purpose=(__doc__ or "").partition("\n")[0],
    # more would not fit into the hour for which a witness watches
    repetitions=(25, 100),
    sections=sections,
)

if __name__ == "__main__":
    sys.exit(command.main(BENCHMARK, sys.argv[1:]))
