"""Users of a real database that are replaced, removed, and taken away."""

import json
import signal
import time
from collections.abc import Callable

from tests.agent.conftest import FORGE_KEY, SET, Bao, Host, Postgres
from tests.agent.test_agent_run import READY, connect, lease, leased, url


def until(true: Callable[[], bool], host: Host, seconds: float = 10) -> float:
    """Wait for something; returns the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, host.log()
        time.sleep(0.05)
    return time.monotonic() - began


def turn(host: Host, database: Postgres, **changes: object) -> str:
    """Start an agent, wait until its database user was replaced; returns the replaced one."""
    host.configure(url("turning", database.port), **changes)
    host.start()
    host.wait_for_status(READY)
    first = connect(host)
    until(lambda: connect(host) != first, host)
    return first


def test_replaced_user_stays_for_the_grace_and_is_removed_before_its_lease_ends(host: Host, database: Postgres) -> None:
    first = turn(host, database, grace_seconds=1)
    took = until(lambda: first not in leased(database), host, seconds=2.5)
    assert took > 0.7
    assert connect(host) in leased(database)
    assert json.loads((host.runtime / "state.json").read_text())["retired"] == {}


def test_replaced_user_is_removed_by_the_next_process_too(host: Host, database: Postgres) -> None:
    first = turn(host, database, grace_seconds=2)
    host.stop(host.running[-1])
    host.start()
    host.wait_for_status(READY)
    assert first in leased(database)
    until(lambda: first not in leased(database), host, seconds=3)


def test_replaced_user_that_may_not_be_removed_is_told_once_and_left(host: Host, bao: Bao, database: Postgres) -> None:
    bao.root.sys.create_or_update_policy("careful", 'path "database/creds/+" { capabilities = ["read"] }')
    host.put_credential(bao.role("host-careful", token_policies=["careful"]))
    first = turn(host, database, grace_seconds=0.5)
    said = (
        "a replaced user of the database stays until its lease ends: permission denied on sys/leases/revoke; "
        "let the policy of this host's AppRole role update sys/leases/revoke"
    )
    until(lambda: said in host.log(), host, seconds=3)
    assert first in leased(database)
    time.sleep(1)
    assert host.log().count(said) == 1
    assert [line for line in host.listen() if line.startswith("STATUS=")] == ["STATUS=ok, 1 settings"]


def test_lease_that_was_revoked_is_noticed_by_the_next_look(host: Host, bao: Bao, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    host.start()
    host.wait_for_status(READY)
    before, first = host.settings("db"), connect(host)
    bao.root.sys.revoke_lease(lease(host))
    until(lambda: host.settings("db") != before, host, seconds=3)
    assert connect(host) != first
    assert "the lease of database/creds/forge was revoked; getting new credentials" in host.log()


def test_policy_that_does_not_allow_to_look_is_no_trouble(host: Host, bao: Bao, database: Postgres) -> None:
    allowed = ("database/creds/+", "auth/token/lookup-self")
    policy = "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in allowed)
    bao.root.sys.create_or_update_policy("blind", policy)
    host.put_credential(bao.role("host-blind", token_policies=["blind"], token_no_default_policy=True))
    host.configure(url("forge", database.port))
    host.start()
    host.wait_for_status(READY)
    user = connect(host)
    time.sleep(1)
    assert connect(host) == user
    assert host.log() == [f"wrote {SET}/db.json: FORGE_DATABASE_URL"]


def test_hang_up_gets_new_users_while_the_old_ones_work_on(host: Host, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)}, grace_seconds=1)
    process = host.start()
    host.wait_for_status(READY)
    before, first = host.settings("db")["FORGE_DATABASE_URL"], connect(host)
    process.send_signal(signal.SIGHUP)
    until(lambda: host.settings("db")["FORGE_DATABASE_URL"] != before, host, seconds=3)
    assert connect(host, before) == first
    assert connect(host) != first
    until(lambda: first not in leased(database), host, seconds=3)
    assert process.poll() is None


def test_hang_up_while_vault_is_sealed_is_not_forgotten(host: Host, bao: Bao, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    process = host.start()
    host.wait_for_status(READY)
    before = host.settings("db")
    bao.seal()
    process.send_signal(signal.SIGHUP)
    sealed = f"STATUS=Vault at {bao.address} is sealed; unseal it, the agent goes on by itself"
    host.wait_for_status(sealed)
    assert host.settings("db") == before
    bao.unseal()
    until(lambda: host.settings("db") != before, host)
