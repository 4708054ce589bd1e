"""One run at a time, one migration per deploy, no way back behind a schema that older code cannot live with."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.fleet import CODE, Fleet
from benchmarks.trial.variants import Migration

HOSTS = ("app1", "app2")


def refusal(output: str) -> str:
    failures = re.findall(r"^fatal: .*?FAILED! => (\{.*\})$", output, re.M)
    assert failures, output[-3000:]
    return str(json.loads(failures[0])["msg"])


def test_a_lock_of_another_controller_is_respected_and_named(fleet: Fleet, variants: Any, one: str) -> None:
    now = int(time.time())
    lock = {"id": "other", "owner": "alice@ci", "what": "deploy", "machine": "another", "pid": 1, "pid_started": "1",
            "acquired": now, "expires": now + 900, "minutes": 30}  # fmt: skip
    fleet.ssh("app1", f"echo '{json.dumps(lock)}' > /var/lib/forge/lock.json")
    run = fleet.play("deploy.yml", *CODE, **variants("one"))
    assert run.returncode != 0
    message = refusal(run.stdout)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    assert re.fullmatch(
        rf"forge is locked on app1 by alice@ci \(deploy\) since {since}, \d+ s ago, "
        r"expires in \d+ s unless it goes on; "
        r"wait for it with -e deploy_wait=600, or if that run is dead: ansible-playbook playbooks/unlock\.yml",
        message,
    ), message
    fleet.good("unlock.yml")
    assert fleet.status("app1")["lock"] == {}


def test_of_two_deploys_at_once_one_is_refused(fleet: Fleet, variants: Any, one: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: fleet.play("deploy.yml", *CODE, **variants("one")), range(2)))
    assert sorted(run.returncode == 0 for run in runs) == [False, True]
    refused = next(run for run in runs if run.returncode)
    assert " is locked on app1 by " in refusal(refused.stdout)
    assert "changed=0" in refused.stdout
    assert fleet.status("app1")["lock"] == fleet.status("app2")["lock"] == {}


def database(fleet: Fleet, statement: str) -> str:
    return fleet.ssh("infra1", f"su postgres -c \"psql -tA forge -c '{statement}'\"").strip()


def test_a_failing_migration_leaves_the_fleet_as_it_was(fleet: Fleet, variants: Any, one: str) -> None:
    with fleet.witness(*HOSTS, rate=20) as witness:
        run = fleet.play("release.yml", **variants("failing", migration=Migration.FAILING))
    assert refusal(run.stdout).startswith("the migration failed, no host was switched: bareforge-runtime: ")
    assert database(fleet, "SELECT version_num FROM alembic_version") == "0001"
    for host in HOSTS:
        assert fleet.release(host) == one
        assert fleet.truth(host) == []
    assert witness.result().document["failed"] == 0, witness.result().line


def test_a_migration_runs_once_for_the_fleet_and_a_rollback_across_it_is_judged(
    fleet: Fleet, variants: Any, one: str
) -> None:
    """An expanding step lets older code live on: back is fine. A contracting one does not: refused, and named."""
    fleet.good("deploy.yml", *CODE, **variants("counted", migration=Migration.COUNTED))
    assert database(fleet, "SELECT count(*) FROM trial_migrations") == "1"
    assert "schema 0002" in fleet.ssh("app2", "bareforge history forge | tail -1")
    fleet.good("rollback.yml")
    assert [fleet.release(host) for host in HOSTS] == [one, one]
    database(fleet, "DROP TABLE trial_migrations")
    database(fleet, "UPDATE alembic_version SET version_num = $$0001$$".replace("$$", "'\\''"))
    fleet.good("release.yml", **variants("contract", migration=Migration.CONTRACT, deploy_batches=["100%"]))
    contract = fleet.release("app1")
    run = fleet.play("rollback.yml")
    assert refusal(run.stdout) == (
        f"release {one} expects database revision 0001 and cannot live with revision 0002, which the database has; "
        "deploy a release that can, or restore the database first (docs/rollback.md)"
    )
    assert [fleet.release(host) for host in HOSTS] == [contract, contract]


def test_a_rollback_to_what_is_not_there_is_refused(fleet: Fleet, one: str) -> None:
    run = fleet.play("rollback.yml", release="0.0.1-nothing")
    assert re.fullmatch(
        r"release 0\.0\.1-nothing is not among those that have served on app\d and are kept: .*; name one of them",
        refusal(run.stdout),
    )
