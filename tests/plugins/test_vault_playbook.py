"""playbooks/vault.yml against a real server and a real PostgreSQL: complete after one run, then silent."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest
from conftest import ROOT, START_SECONDS, Ansible, Run, Server, free_port, running_vault

ADMIN_PASSWORD = secrets.token_hex(12)


@dataclass
class Database:
    """A throw-away PostgreSQL with the database forge, its owner and Vault's administrator."""

    port: int
    binaries: Path

    def query(self, statement: str, user: str = "postgres", password: str = "", database: str = "forge") -> str:
        """Return psql's answer; raise AssertionError with its words when it refuses."""
        done = subprocess.run(
            [
                *(str(self.binaries / "psql"), "--no-psqlrc", "--tuples-only", "--no-align", "--quiet"),
                *("--host=127.0.0.1", f"--port={self.port}", f"--username={user}", database),
            ],
            input=statement,
            env={**os.environ, "PGPASSWORD": password, "ON_ERROR_STOP": "1"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert not done.stderr, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    data = tmp_path_factory.mktemp("postgresql")
    # PostgreSQL refuses to run as root
    account = pwd.getpwnam("postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    for directory in (data, *data.parents[:2]):
        directory.chmod(0o755)
    os.chown(data, account.pw_uid, account.pw_gid)
    user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    cluster = data / "cluster"
    subprocess.run(
        [binaries / "initdb", "--pgdata", cluster, "--username=postgres", "--no-sync", "--auth-local=trust"],
        check=True,
        capture_output=True,
        cwd=data,
        **user,
    )
    (cluster / "pg_hba.conf").write_text(
        "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )
    port = free_port()
    with (data.parent / "postgresql.log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", cluster, "-p", str(port), "-k", "", "-h", "127.0.0.1", "-F"],
            stdout=log,
            stderr=log,
            cwd=data,
            **user,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(
            [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
        ).returncode:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        made = Database(port, binaries)
        made.query(
            "CREATE ROLE forge_owner NOLOGIN;"
            f"CREATE ROLE vault_admin LOGIN CREATEROLE PASSWORD '{ADMIN_PASSWORD}';"
            "GRANT forge_owner TO vault_admin WITH ADMIN OPTION; GRANT pg_signal_backend TO vault_admin;",
            database="postgres",
        )
        made.query("CREATE DATABASE forge OWNER forge_owner", database="postgres")
        yield made
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture
def empty_vault(tmp_path: Path) -> Iterator[Server]:
    directory = tmp_path / "vault"
    directory.mkdir()
    with running_vault(directory) as server:
        yield server


def inventory(database: Database) -> dict[str, Any]:
    return {
        "asgi_app_name": "forge",
        "vault_agent_settings": {
            "FORGE_SECRET_KEY": {"kv": "secret/forge", "key": "secret_key"},
            "FORGE_MAIL_KEY": {"kv": "team/mail/forge", "key": "key"},
            "FORGE_DATABASE_URL": {
                "database": "database/creds/forge",
                "template": "postgresql+asyncpg://{username}:{password}@127.0.0.1/forge",
            },
        },
        "vault_generated_secrets": {"secret/forge": {"secret_key": 64}},
        "vault_database": {"address": f"127.0.0.1:{database.port}", "parameters": "sslmode=disable"},
    }


def configure(ansible: Ansible, server: Server, variables: dict[str, Any], *arguments: str, **environment: str) -> Run:
    return play("vault.yml", ansible, server, variables, *arguments, **environment)


def play(
    playbook: str, ansible: Ansible, server: Server, variables: dict[str, Any], *arguments: str, **environment: str
) -> Run:
    hosts = {
        "all": {"vars": variables},
        "app": {"hosts": {"web1": {"vault_host_cidrs": ["127.0.0.1/32"]}, "web2": {"vault_agent_role": "second"}}},
    }
    path = ansible.directory / "hosts.json"
    path.write_text(json.dumps(hosts))
    return ansible.run(
        ROOT / "playbooks" / playbook,
        f"--inventory={path}",
        *arguments,
        **{**server.environment, "VAULT_DATABASE_PASSWORD": ADMIN_PASSWORD, **environment},
    )


def changed(run: Run) -> int:
    assert run.status == 0, run.output
    found = re.search(r"localhost +: ok=\d+ +changed=(\d+)", run.output)
    assert found
    return int(found.group(1))


WRITING = "Write mounts, policy, roles of the hosts, generated secrets, PKI role and the lease of database users"
OBJECTS = [
    "sys/mounts/secret",
    "sys/mounts/team",
    "sys/auth/approle",
    "sys/policies/acl/forge",
    "auth/approle/role/web1",
    "auth/approle/role/second",
    "secret/data/forge",
    "sys/mounts/database",
    "database/config/forge",
    "database/roles/forge",
]


def written(run: Run) -> list[str]:
    """Return the paths that changed, in order."""
    assert run.status == 0, run.output
    named = run.tasks.get("Name what changed", {}).get("msg", [])
    result = run.result(WRITING)
    assert named == [one["path"] for one in result["objects"] if one["changed"]]
    assert result["changed"] is (named != [])
    return list(named)


def login(server: Server, role: str) -> hvac.Client:
    role_id = server.read(f"auth/approle/role/{role}/role-id")["role_id"]
    secret_id = server.write(f"auth/approle/role/{role}/secret-id")["data"]["secret_id"]
    client = hvac.Client(url=server.address, token="", verify=str(server.ca))
    client.session.trust_env = False
    client.auth.approle.login(role_id, secret_id)
    return client


def test_second_run_changes_nothing(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    first = configure(ansible, empty_vault, variables, "-vvv", "--diff")
    assert written(first) == OBJECTS
    made = empty_vault.read("secret/data/forge")["data"]
    assert re.fullmatch("[0-9a-f]{64}", made["secret_key"])
    for canary in (made["secret_key"], ADMIN_PASSWORD, empty_vault.root_token):
        assert canary not in first.output

    # the first password is needed once only
    assert changed(configure(ansible, empty_vault, variables, VAULT_DATABASE_PASSWORD="")) == 0
    assert changed(configure(ansible, empty_vault, variables, "--check")) == 0

    longer = {
        **variables,
        "vault_token_period": "2h",
        "vault_database": {**variables["vault_database"], "ttl": "2h"},
    }
    differ = ["auth/approle/role/web1", "auth/approle/role/second", "database/roles/forge"]
    assert written(configure(ansible, empty_vault, longer, "--check")) == differ
    assert written(configure(ansible, empty_vault, longer, VAULT_DATABASE_PASSWORD="")) == differ
    assert empty_vault.read("secret/data/forge")["data"] == made


def test_hosts_get_what_is_declared_and_nothing_else(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    changed(configure(ansible, empty_vault, inventory(database)))
    role = empty_vault.read("auth/approle/role/web1")
    assert role["token_period"] == 3600
    assert role["secret_id_ttl"] == 90 * 24 * 3600
    assert role["secret_id_bound_cidrs"] == ["127.0.0.1/32"]
    assert role["token_bound_cidrs"] == ["127.0.0.1"]
    assert empty_vault.read("auth/approle/role/second")["secret_id_bound_cidrs"] == []

    empty_vault.write("secret/data/other", data={"key": "1"})
    host = login(empty_vault, "web1")
    assert host.adapter.get("/v1/secret/data/forge")["data"]["data"]["secret_key"]
    for path in (
        "secret/data/other",
        "secret/metadata/forge",
        "database/config/forge",
        "auth/approle/role/web1",
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            host.adapter.get(f"/v1/{path}")
    with pytest.raises(hvac.exceptions.Forbidden):
        host.adapter.post("/v1/secret/data/forge", json={"data": {}})

    lease = host.adapter.get("/v1/database/creds/forge")
    user, password = lease["data"]["username"], lease["data"]["password"]
    database.query("CREATE TABLE things (id int)", user, password)
    assert database.query("SELECT tableowner FROM pg_tables WHERE tablename = 'things'") == "forge_owner"
    host.sys.read_lease(lease["lease_id"])
    host.sys.revoke_lease(lease["lease_id"])
    assert database.query(f"SELECT count(*) FROM pg_roles WHERE rolname = '{user}'") == "0"
    database.query("DROP TABLE things")


def test_check_mode_on_an_empty_vault_writes_nothing(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    assert written(configure(ansible, empty_vault, inventory(database), "--check", "--diff")) == OBJECTS
    assert "secret/" not in empty_vault.read("sys/mounts")
    assert "approle/" not in empty_vault.read("sys/auth")


def test_documented_rights_are_enough(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    del variables["vault_agent_settings"]["FORGE_MAIL_KEY"]
    rights = (ROOT / "docs/vault.md").read_text().split("```hcl\n")[1].split("```")[0]
    token = empty_vault.token(rights)
    expected = [path for path in OBJECTS if path != "sys/mounts/team"]
    assert written(configure(ansible, empty_vault, variables, VAULT_TOKEN=token)) == expected
    assert changed(configure(ansible, empty_vault, variables, VAULT_TOKEN=token)) == 0


CERTIFICATE = {"sign": "pki/sign/shop", "names": ["shop.example.com", "*.shop.example.com"], "ttl": "24h"}
KEY = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]


def signing_request(*names: str) -> str:
    key = subprocess.run(KEY, capture_output=True, check=True).stdout
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = [
        "openssl",
        "req",
        "-new",
        "-key",
        "/dev/stdin",
        "-subj",
        "/",
        "-addext",
        f"subjectAltName={alternatives}",
    ]
    return subprocess.run(command, input=key, capture_output=True, check=True).stdout.decode()


def test_hosts_get_certificates_for_their_names_only(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = {**inventory(database), "vault_agent_certificate": CERTIFICATE}
    run = configure(ansible, empty_vault, variables)
    assert run.status != 0, "there is no such engine yet"
    assert "Vault has nothing mounted for pki/roles/shop; enable the engine first" in run.result(WRITING)["msg"]

    empty_vault.client.sys.enable_secrets_engine("pki", config={"max_lease_ttl": "8760h"})
    empty_vault.write("pki/root/generate/internal", common_name="test PKI", ttl="8760h")
    rights = (
        (ROOT / "docs/vault.md")
        .read_text()
        .split("```hcl\n")[1]
        .split("```")[0]
        .replace("pki/roles/forge", "pki/roles/shop")
    )
    team = 'path "team/data/mail/forge" { capabilities = ["create", "read", "update"] }'
    token = empty_vault.token(rights + team)
    assert "pki/roles/shop" in written(configure(ansible, empty_vault, variables, VAULT_TOKEN=token))
    assert changed(configure(ansible, empty_vault, variables, VAULT_TOKEN=token)) == 0
    role = empty_vault.read("pki/roles/shop")
    assert (role["allowed_domains"], role["max_ttl"], role["no_store"], role["client_flag"]) == (
        ["*.shop.example.com", "shop.example.com"],
        24 * 3600,
        True,
        False,
    )

    host = login(empty_vault, "web1")
    for names in (CERTIFICATE["names"], ["shop.example.com"]):
        signed = host.adapter.post("/v1/pki/sign/shop", json={"csr": signing_request(*names)})
        assert signed["data"]["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    for name in ("bank.example.com", "a.b.shop.example.com", "localhost"):
        with pytest.raises(hvac.exceptions.InvalidRequest, match="not allowed by this role"):
            host.adapter.post("/v1/pki/sign/shop", json={"csr": signing_request(name)})
    for path in ("pki/issue/shop", "pki/sign-verbatim/shop", "pki/roles/shop", "pki/root/sign-intermediate"):
        with pytest.raises(hvac.exceptions.Forbidden):
            host.adapter.post(f"/v1/{path}", json={"csr": signing_request("shop.example.com")})

    # a role of somebody else's is left alone
    empty_vault.client.delete("pki/roles/shop")
    assert written(configure(ansible, empty_vault, {**variables, "vault_certificate_role": False})) == []


def test_without_a_database(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    del variables["vault_database"], variables["vault_agent_settings"]["FORGE_DATABASE_URL"]
    assert written(configure(ansible, empty_vault, variables)) == [path for path in OBJECTS if "database" not in path]
    assert "database/" not in empty_vault.read("sys/mounts")


def test_refusals(vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    run = configure(ansible, vault, {**variables, "vault_database": {"adress": "127.0.0.1"}})
    assert run.status != 0
    assert run.result("Refuse a database description that cannot be followed")["msg"] == (
        "vault_database needs address and knows address, name, username, owner, parameters, ttl, max_ttl, "
        "and vault_agent_settings must read exactly one database path; found keys adress and path(s) "
        "database/creds/forge; see docs/vault.md"
    )
    run = configure(ansible, vault, {**variables, "vault_agent_certificate": {**CERTIFICATE, "names": []}})
    assert run.status != 0
    assert "vault_agent_certificate must be {sign: MOUNT/sign/ROLE, names: [HOST NAMES, no addresses]}" in run.output
    run = configure(
        ansible,
        vault,
        {
            **variables,
            "vault_agent_certificate": "{{ certificate_of[inventory_hostname] }}",
            "certificate_of": {"web1": CERTIFICATE, "web2": {**CERTIFICATE, "ttl": "2d"}},
        },
    )
    assert run.result("Refuse certificates of several lives")["msg"] == (
        "vault_agent_certificate.ttl is 24h and 2d on different hosts, but one PKI role has one max_ttl and would cut "
        "the longer ones short; set one ttl"
    )
    run = configure(ansible, vault, {**variables, "vault_agent_settings": {}})
    assert run.result("Refuse empty settings")["msg"] == (
        "vault_agent_settings is empty; name at least one setting, see roles/vault_agent/README.md"
    )


def documented_rights() -> str:
    """Of who configures Vault and of who rotates, as docs/vault.md and docs/rotation.md say."""
    texts = [(ROOT / "docs" / name).read_text() for name in ("vault.md", "rotation.md")]
    return "\n".join(text.split("```hcl\n")[1].split("```")[0] for text in texts)


def test_root_password_of_the_database_is_known_to_vault_only(
    empty_vault: Server, database: Database, ansible: Ansible
) -> None:
    variables = inventory(database)
    changed(configure(ansible, empty_vault, variables))
    token = empty_vault.token(documented_rights())
    given = ("-vvv", "-e", "rotate=database_root")
    try:
        run = play("rotate.yml", ansible, empty_vault, variables, *given, "--check", VAULT_TOKEN=token)
        assert changed(run) == 1
        database.query("SELECT 1", "vault_admin", ADMIN_PASSWORD)
        run = play("rotate.yml", ansible, empty_vault, variables, *given, VAULT_TOKEN=token)
        assert changed(run) == 1
        with pytest.raises(AssertionError, match="password authentication failed"):
            database.query("SELECT 1", "vault_admin", ADMIN_PASSWORD)
        lease = empty_vault.client.adapter.get("/v1/database/creds/forge")
        database.query("SELECT 1", lease["data"]["username"], lease["data"]["password"])
        empty_vault.client.sys.revoke_lease(lease["lease_id"])
        assert database.query("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'") == "0"
    finally:
        database.query(f"ALTER ROLE vault_admin PASSWORD '{ADMIN_PASSWORD}'")


def test_root_password_that_leads_nowhere_is_told(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    run = play("rotate.yml", ansible, empty_vault, variables, "-e", "rotate=database_root")
    assert run.status != 0
    assert run.result("Rotate it, and prove that users can still be made")["msg"] == (
        "there is no database/config/forge in Vault; create it with: ansible-playbook playbooks/vault.yml"
    )
    del variables["vault_database"]
    run = play("rotate.yml", ansible, empty_vault, variables, "-e", "rotate=database_root")
    assert run.result("Refuse where Vault leases no users")["msg"] == (
        "vault_database is not set, so Vault has no user of its own in a database; see docs/vault.md"
    )


def test_a_lost_host_loses_everything(empty_vault: Server, database: Database, ansible: Ansible) -> None:
    variables = inventory(database)
    changed(configure(ansible, empty_vault, variables))
    lost, kept = login(empty_vault, "second"), login(empty_vault, "web1")
    user = lost.adapter.get("/v1/database/creds/forge")["data"]["username"]
    token = empty_vault.token(documented_rights())
    given = ("-e", "rotate=revoke", "-e", "host=web2")
    run = play("rotate.yml", ansible, empty_vault, variables, *given, VAULT_TOKEN=token)
    assert changed(run) == 1
    assert run.result("Say what is gone and what to do")["msg"].startswith(
        "web2: role deleted, 1 token(s) revoked, and with them its users of the database. "
    )
    assert (lost.is_authenticated(), kept.is_authenticated()) == (False, True)
    assert database.query(f"SELECT count(*) FROM pg_roles WHERE rolname = '{user}'") == "0"
    assert changed(play("rotate.yml", ansible, empty_vault, variables, *given, VAULT_TOKEN=token)) == 0


@pytest.mark.parametrize(
    ("given", "task", "message"),
    [
        (
            ["-e", "rotate=everything"],
            "Name the flows",
            'rotate is "everything"; say what to rotate: -e rotate=database (new database users on every host), '
            "database_root (the password of Vault's own user), secret_id (new AppRole identities), setting (a new "
            "value for one secret, with -e setting=NAME) or revoke (take all access from one host, with -e host=NAME); "
            "see docs/rotation.md",
        ),
        (
            ["-e", "rotate=revoke"],
            "Refuse what is no host of the application",
            'host is ""; name the host to take all access from, -e host=NAME, one of web1, web2',
        ),
    ],
)
def test_refused_rotations(
    vault: Server, database: Database, ansible: Ansible, given: list[str], task: str, message: str
) -> None:
    run = play("rotate.yml", ansible, vault, inventory(database), *given)
    assert run.status != 0
    assert run.result(task)["msg"] == message
