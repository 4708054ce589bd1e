"""Credentials of the lab's fleet, as tests and benchmarks of their rotation see them. No value is ever shown."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hvac
import requests

from benchmarks.fleet import Fleet, FleetError

CREDENTIALS = "database/creds/forge"
INFRA = "infra1"
# What a witness asks where every answer needs the database. The slow ones hold a session for 2 s and ask again then.
DATABASE: dict[str, Any] = {
    "get": "/items?limit=5",
    "post": "/items",
    "body": '{"name": "asked for while credentials change"}',
    "echo": False,
    "slow": "/trial/database?seconds=2",
    "slow_post": None,
    "stream": None,
    # one worker alone, while the other is replaced, has 5 connections: two of them go to these
    "slow_rate": 1,
}
# Prints the hash of a setting in the agent's files; {name} is the setting's.
HASH = (
    "import hashlib, json, glob; "
    'values = [json.load(open(file))[\\"{name}\\"] for file in glob.glob(\\"/run/bareforge-agent/*/kv.json\\")]; '
    "print(*sorted({{hashlib.sha256(value.encode()).hexdigest() for value in values}}))"
)


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when something is true. Raises FleetError when the seconds are over; what: says what was waited for."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= deadline:
            raise FleetError(f"after {seconds:g} s not yet: {what}")
        time.sleep(0.3)


def vault_of(fleet: Fleet) -> Any:
    """A client of the lab's Vault with all rights, independent of the project's own code."""
    token = (fleet.state / "vault-token").read_text().strip()
    session = requests.Session()
    session.trust_env = False
    session.verify = str(fleet.state / "ca.pem")
    make: Any = hvac.Client
    return make(url=fleet.environment["VAULT_ADDR"], token=token, session=session, timeout=60)


def unseal(fleet: Fleet, vault: Any) -> None:
    """Unseal Vault and wait until it serves. Raises FleetError."""
    vault.sys.submit_unseal_key((fleet.state / "vault-unseal-key").read_text())
    until(lambda: bool(vault.sys.read_leader_status()["is_self"]), 60, "Vault is active again")


def leased(fleet: Fleet, host: str) -> dict[str, Any]:
    """The credentials of the database that a host's agent has, with username and lease_id."""
    state = json.loads(fleet.ssh(host, "cat /run/bareforge-agent/state.json"))
    found: dict[str, Any] = state["databases"][CREDENTIALS]
    return found


def user(fleet: Fleet, host: str) -> str:
    """The user of the database that a host has now."""
    return str(leased(fleet, host)["username"])


def users(fleet: Fleet) -> set[str]:
    """The leased users that the database has."""
    return set(_ask(fleet, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'").split())


def sessions(fleet: Fleet, name: str) -> int:
    """How many connections a user of the database has."""
    counted = _ask(fleet, "SELECT usename, count(*) FROM pg_stat_activity WHERE usename LIKE 'v-%' GROUP BY usename")
    return {line.split("|")[0]: int(line.split("|")[1]) for line in counted.split()}.get(name, 0)


def _ask(fleet: Fleet, query: str) -> str:
    return fleet.ssh(INFRA, f'runuser -u postgres -- psql -Atc "{query}"')


def secret_hash(fleet: Fleet, host: str, setting: str) -> str:
    """The hash of a KV setting on a host; several, with spaces between, where its sets differ."""
    return fleet.ssh(host, f'/usr/bin/python3 -c "{HASH.format(name=setting)}"').strip()


def vault_hash(vault: Any, path: Path | str, key: str) -> str:
    """The hash of the latest value of a key of a secret below `secret/`."""
    answer = vault.secrets.kv.v2.read_secret_version(path=str(path), raise_on_deleted_version=True)
    return hashlib.sha256(answer["data"]["data"][key].encode()).hexdigest()
