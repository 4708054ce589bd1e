"""Credentials change under requests that need them: each one reads or writes the database."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.credentials import DATABASE, leased, secret_hash, sessions, until, user, users, vault_hash, vault_of
from benchmarks.figures import Point
from benchmarks.fleet import ROOT, Fleet
from benchmarks.killing import Runner
from tests.recorded import RecordedFleet

HOSTS = ("app1", "app2")
LOAD = {**DATABASE, "rate": 20}
SHORT = {"address": "infra1:5432", "parameters": "sslmode=verify-full&sslrootcert=/etc/ssl/lab/ca.pem"}


@pytest.fixture(scope="session")
def vault(fleet: Fleet) -> Any:
    return vault_of(fleet)


@pytest.fixture
def variables_of(variants: Any) -> dict[str, Any]:
    """What the hosts serve, so that nothing is left to deploy."""
    given: dict[str, Any] = variants("one")
    return given


def test_new_users_of_the_database_cost_no_request(fleet: Fleet, vault: Any, variables_of: Any, one: str) -> None:
    """On demand; the old users are really removed, as soon as nobody has a session of theirs."""
    before = {host: user(fleet, host) for host in HOSTS}
    leases = {host: leased(fleet, host)["lease_id"] for host in HOSTS}
    with fleet.witness(*HOSTS, **LOAD) as witness:
        time.sleep(3)
        fleet.good("rotate.yml", **variables_of, rotate="database")
        for host in HOSTS:
            assert user(fleet, host) != before[host]
            until(lambda old=before[host]: not sessions(fleet, old), 20, "the old pool is closed")  # type: ignore[misc]
            vault.sys.revoke_lease(leases[host])
            until(lambda old=before[host]: old not in users(fleet), 20, "the old user is gone")  # type: ignore[misc]
        time.sleep(3)
    result = witness.result()
    print(f"new users of the database: {result.line}")
    assert result.document["failed"] == 0, (result.line, result.details)
    assert result.document["requests"] > 300


def test_leases_that_end_all_the_time_cost_no_request(fleet: Fleet, one: str) -> None:
    """Leases of 20 s that cannot be prolonged: each user is replaced after some 8 s and removed 5 s later."""
    fleet.good("vault.yml", vault_database={**SHORT, "ttl": "20s", "max_ttl": "20s"})
    try:
        seen: dict[str, set[str]] = {host: set() for host in HOSTS}
        with fleet.witness(*HOSTS, **LOAD) as witness:
            for host in HOSTS:
                fleet.ssh(host, "systemctl reload bareforge-agent")
            deadline = time.monotonic() + 45
            while time.monotonic() < deadline:
                for host in HOSTS:
                    seen[host].add(user(fleet, host))
                time.sleep(1)
        result = witness.result()
        print(f"leases of 20 s, {sum(map(len, seen.values()))} users: {result.line}")
        assert result.document["failed"] == 0, (result.line, result.details)
        assert all(len(names) >= 4 for names in seen.values()), seen
        assert len(users(fleet) & set.union(*seen.values())) <= 4, "the others are removed"
    finally:
        fleet.good("vault.yml")
        for host in HOSTS:
            fleet.ssh(host, "systemctl reload bareforge-agent")


def test_new_identities_cost_no_request_and_the_old_ones_open_nothing(fleet: Fleet, vault: Any, one: str) -> None:
    def accessors(host: str) -> set[str]:
        return set(vault.list(f"auth/approle/role/{host}/secret-id")["data"]["keys"])

    before = {host: accessors(host) for host in HOSTS}
    tokens = {host: fleet.ssh(host, "sha256sum < /run/bareforge-agent/token") for host in HOSTS}
    address = fleet.reach("app1")["private_address"]
    watch = f"--url https://{address} --host localhost --ca {fleet.state}/ca.pem --get /items --rate 5"
    with fleet.witness(*HOSTS, **LOAD) as witness:
        output = fleet.good("rotate.yml", rotate="secret_id", deploy_witness=watch)
    result = witness.result()
    assert result.document["failed"] == 0, (result.line, result.details)
    assert re.search(r"witness: [0-9]+ requests, 0 failed", output)
    for host in HOSTS:
        assert len(accessors(host)) == 1
        assert not accessors(host) & before[host]
        assert fleet.ssh(host, "sha256sum < /run/bareforge-agent/token") != tokens[host], "it has logged in with it"
        assert "ok, 2 settings" in fleet.ssh(host, "systemctl show bareforge-agent --property=StatusText")


def test_a_lost_host_has_nothing_any_more_and_the_others_serve_on(fleet: Fleet, variants: Any, one: str) -> None:
    lost, kept = user(fleet, "app2"), user(fleet, "app1")
    try:
        with fleet.witness("app1", **LOAD) as witness:
            output = fleet.good("rotate.yml", rotate="revoke", host="app2")
            # a second one: that of a secret_id which was replaced a moment ago
            assert re.search(r"app2: role deleted, [12] token\(s\) revoked", output), output
            until(lambda: lost not in users(fleet), 20, "its user is gone")
            assert kept in users(fleet)
            until(
                lambda: "Vault refused the AppRole login" in fleet.ssh("app2", "systemctl show bareforge-agent"),
                30,
                "the agent says why it has nothing",
            )
            time.sleep(3)
    finally:
        fleet.good("vault.yml")
        fleet.good("deploy.yml", "--skip-tags", "site", **variants("one"))
    assert witness.result().document["failed"] == 0, witness.result().line
    assert user(fleet, "app2") in users(fleet)
    for host in HOSTS:
        assert fleet.wait_for_truth(host) == []


def test_what_cannot_be_rotated_is_refused(fleet: Fleet) -> None:
    run = fleet.play("rotate.yml", rotate="everything")
    assert run.returncode != 0
    assert 'rotate is \\"everything\\"; say what to rotate: -e rotate=database' in run.stdout
    run = fleet.play("rotate.yml", rotate="revoke", host="app9")
    assert run.returncode != 0
    assert 'host is \\"app9\\"; name the host to take all access from, -e host=NAME, one of app1, app2' in run.stdout


def secret_key(fleet: Fleet, vault: Any) -> dict[str, str]:
    """The hashes of what Vault and every host have, so that no failure shows a value."""
    found = {host: secret_hash(fleet, host, "FORGE_SECRET_KEY") for host in HOSTS}
    return {**found, "vault": vault_hash(vault, "forge", "secret_key")}


def test_a_new_secret_is_tried_then_used(fleet: Fleet, vault: Any, variables_of: Any, one: str) -> None:
    before = secret_key(fleet, vault)
    assert len(set(before.values())) == 1
    with fleet.witness(*HOSTS, **LOAD) as witness:
        fleet.good("rotate.yml", **variables_of, rotate="setting", setting="FORGE_SECRET_KEY")
    result = witness.result()
    print(f"a new secret: {result.line}")
    assert result.document["failed"] == 0, (result.line, result.details)
    after = secret_key(fleet, vault)
    assert len(set(after.values())) == 1
    assert after["vault"] != before["vault"]
    for host in HOSTS:
        assert fleet.wait_for_truth(host) == []
        assert fleet.ssh(host, "bareforge history forge | tail -1").count("reload") == 1


def test_a_secret_that_the_application_refuses_serves_nobody(
    fleet: Fleet, vault: Any, variables_of: Any, one: str
) -> None:
    before = secret_key(fleet, vault)
    short = {"secret/forge": {"secret_key": 16}}
    with fleet.witness(*HOSTS, **LOAD) as witness:
        run = fleet.play(
            "rotate.yml", **variables_of, rotate="setting", setting="FORGE_SECRET_KEY", vault_generated_secrets=short
        )
    assert run.returncode != 0
    cause = re.findall(r"^fatal: \[app1\].*", run.stdout, re.M)[-1]
    assert "FORGE_SECRET_KEY must have at least 32 characters; generate one with: openssl rand -hex 32" in cause
    assert witness.result().document["failed"] == 0, witness.result().line
    assert secret_key(fleet, vault) == before
    for host in HOSTS:
        assert fleet.truth(host) == []
        assert pins(fleet, host) == {}


def pins(fleet: Fleet, host: str) -> dict[str, int]:
    """The versions that a host's agent is kept on, by setting."""
    sets = json.loads(fleet.ssh(host, "cat /etc/bareforge-agent/config.json"))["sets"]
    return {name: source["version"] for each in sets.values() for name, source in each.items() if "version" in source}


def test_a_rotation_that_was_killed_serves_nobody_and_is_taken_up(
    fleet: RecordedFleet, vault: Any, variables_of: Any, one: str, tmp_path: Path
) -> None:
    """Killed while the new value is tried: Vault has it, nobody knows whether it is good."""
    before = secret_key(fleet, vault)
    given = {**variables_of, "rotate": "setting", "setting": "FORGE_SECRET_KEY"}
    proof = "asgi_app : Start the candidate on a private socket and see whether it becomes and stays ready"
    with fleet.witness(*HOSTS, **LOAD) as witness:
        run = Runner(fleet, tmp_path).run(ROOT / "playbooks/rotate.yml", point=Point(proof, 0, proof), **given)
        fleet.outputs.append(run.output)
        assert run.killed, run.output[-3000:]
        kept = {host: pins(fleet, host) for host in HOSTS}
        assert set(kept["app1"]) == {"FORGE_SECRET_KEY"}
        assert kept["app1"] == kept["app2"]
        output = fleet.good("deploy.yml", "--skip-tags", "site", **variables_of)
        assert (
            f"app1 stays on the version(s) {json.dumps(kept['app1'])}, since a rotation has not ended".replace(
                '"', '\\"'
            )
            in output
        )
        assert {host: pins(fleet, host) for host in HOSTS} == kept
        assert {host: secret_hash(fleet, host, "FORGE_SECRET_KEY") for host in HOSTS} == {
            host: before[host] for host in HOSTS
        }
        fleet.good("rotate.yml", **given)
    assert witness.result().document["failed"] == 0, witness.result().line
    after = secret_key(fleet, vault)
    assert len(set(after.values())) == 1
    assert after["vault"] != before["vault"]
    assert [pins(fleet, host) for host in HOSTS] == [{}, {}]
