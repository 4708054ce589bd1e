"""vault_object against a real server: every kind of object idempotent, refusals exact, no secret shown."""

from __future__ import annotations

import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Ansible, Server, free_port

from plugins.module_utils.bareforge_vault_compare import differing

POLICY = 'path "secret/data/forge" {\n  capabilities = ["read"]\n}\n'

# kind: path, as declared first, the same in another spelling, a real change
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "secret engine": (
        "sys/mounts/kinds",
        {"type": "kv", "options": {"version": "2"}, "config": {"default_lease_ttl": "1h"}},
        {"type": "kv", "options": {"version": 2}, "config": {"default_lease_ttl": 3600}},
        {"type": "kv", "config": {"default_lease_ttl": "2h"}, "description": "forge"},
    ),
    "auth method": (
        "sys/auth/kinds",
        {"type": "approle", "description": "hosts"},
        {"type": "approle"},
        {"type": "approle", "config": {"max_lease_ttl": "90m"}},
    ),
    "policy": (
        "sys/policies/acl/kinds",
        {"policy": POLICY},
        {"policy": POLICY.replace("\n", "  \n\n")},
        {"policy": POLICY.replace("read", "list")},
    ),
    "AppRole role": (
        "auth/approle/role/kinds",
        {"token_policies": ["a", "b"], "token_period": "1h", "token_bound_cidrs": ["10.0.0.5/32"],
         "token_num_uses": 0},
        {"token_policies": "b,a", "token_period": 3600, "token_bound_cidrs": "10.0.0.5",
         "secret_id_bound_cidrs": []},
        {"token_policies": ["a", "b"], "secret_id_bound_cidrs": ["10.0.0.0/16", "10.1.0.0/16"]},
    ),
    "database connection": (
        "database/config/kinds",
        {"plugin_name": "postgresql-database-plugin", "connection_url": "postgresql://{{user}}@db/forge",
         "username": "vault_admin", "allowed_roles": ["forge"]},
        {"allowed_roles": "forge"},
        {"plugin_name": "postgresql-database-plugin", "allowed_roles": ["forge", "report"]},
    ),
    "database role": (
        "database/roles/kinds",
        {"db_name": "kinds", "default_ttl": "1h",
         "creation_statements": ["CREATE ROLE a IN ROLE b, c", "GRANT d"]},
        {"default_ttl": "60m", "creation_statements": [" CREATE ROLE a IN ROLE b, c ", "GRANT d\n"]},
        {"db_name": "kinds", "creation_statements": ["GRANT d", "CREATE ROLE a IN ROLE b, c"]},
    ),
    "secret": (
        "secret/data/kinds",
        {"data": {"ttl": "1h", "list": "b,a"}},
        {"data": {"list": "b,a"}},
        {"data": {"ttl": "60m"}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def engines(vault: Server) -> Server:
    vault.write("sys/mounts/secret", type="kv", options={"version": "2"})
    vault.write("sys/mounts/database", type="database")
    vault.write("sys/auth/approle", type="approle")
    return vault


def verbatim(value: Any) -> Any:
    """Keep Vault's own {{placeholders}} from Ansible."""
    if isinstance(value, dict):
        return {key: verbatim(below) for key, below in value.items()}
    if isinstance(value, list):
        return [verbatim(below) for below in value]
    return re.sub(r"\{\{(\w+)\}\}", r"{{ '{{\1}}' }}", value) if isinstance(value, str) else value


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_written_once_and_only_when_it_differs(kind: str, engines: Server, ansible: Ansible) -> None:
    path, first, respelled, changed = KINDS[kind]
    # stands for the password; verify_connection lets the connection be stored without a database
    hidden = {"secret_data": {"password": "pw", "verify_connection": False}} if "config/" in path else {}

    def task(name: str, data: dict[str, Any], **keywords: Any) -> dict[str, Any]:
        return {"name": name, "vault_object": {"path": path, "data": verbatim(data), **hidden}, **keywords}

    run = ansible.tasks(
        [
            task("predicted", first, check_mode=True),
            task("created", first),
            task("repeated", first),
            task("respelled", respelled),
            task("change predicted", changed, check_mode=True),
            task("changed", changed),
            task("repeated change", changed),
        ],
        **engines.environment,
    )
    assert run.status == 0, run.output
    did = {name: result["changed"] for name, result in run.tasks.items()}
    assert did == {
        "predicted": True,
        "created": True,
        "repeated": False,
        "respelled": False,
        "change predicted": True,
        "changed": True,
        "repeated change": False,
    }
    assert [name for name, result in run.tasks.items() if result["created"]] == ["predicted", "created"]


def test_check_mode_writes_nothing(engines: Server, ansible: Ansible) -> None:
    args = {"path": "sys/policies/acl/unwritten", "data": {"policy": POLICY}}
    run = ansible.task("vault_object", args, "--check", "--diff", **engines.environment)
    assert run.result()["changed"] is True
    assert "sys/policies/acl/unwritten" in run.output
    assert "unwritten" not in engines.read("sys/policies/acl?list=true")["keys"]


def test_mount_options_that_cannot_change_are_refused(engines: Server, ansible: Ansible) -> None:
    run = ansible.task("vault_object", {"path": "sys/mounts/secret", "data": {"type": "ssh"}}, **engines.environment)
    assert run.result()["msg"] == (
        "sys/mounts/secret exists with type 'kv', which cannot become 'ssh'; choose another path, or disable "
        "the mount (this deletes what it holds)"
    )


def test_create_only_leaves_an_existing_object(engines: Server, ansible: Ansible) -> None:
    engines.write("sys/policies/acl/kept", policy=POLICY)
    args = {"path": "sys/policies/acl/kept", "data": {"policy": 'path "x" { capabilities = ["read"] }'}}
    run = ansible.task("vault_object", {**args, "create_only": True}, **engines.environment)
    assert run.result()["changed"] is False
    assert engines.read("sys/policies/acl/kept")["policy"].strip() == POLICY.strip()


def test_secret_keeps_undeclared_keys_and_generated_ones(engines: Server, ansible: Ansible) -> None:
    engines.write("secret/data/mixed", data={"by_hand": "kept"})
    args = {
        "path": "secret/data/mixed",
        "generate": {"secret_key": 64, "pin": 17},
        "data": {"data": {"plain": "1"}},
    }
    first = ansible.task("vault_object", args, "-vvv", "--diff", **engines.environment)
    made = engines.read("secret/data/mixed")["data"]
    assert first.result()["differing"] == ["data.plain", "data.secret_key", "data.pin"]
    assert set(made) == {"by_hand", "plain", "secret_key", "pin"}
    assert made["by_hand"] == "kept"
    assert re.fullmatch("[0-9a-f]{64}", made["secret_key"])
    assert re.fullmatch("[0-9a-f]{17}", made["pin"])
    assert made["secret_key"] not in first.output
    again = ansible.task("vault_object", args, **engines.environment)
    assert again.result()["changed"] is False
    assert engines.read("secret/data/mixed")["data"] == made


def test_first_password_is_not_written_again(engines: Server, ansible: Ansible) -> None:
    args = {
        "path": "auth/approle/role/first",
        "data": {"token_period": "1h"},
        # stands for a password: a value Vault shows, so that the test can see whether it was written
        "secret_data": {"token_num_uses": 7},
        "secret_data_create_only": True,
    }
    ansible.task("vault_object", args, **engines.environment)
    assert engines.read("auth/approle/role/first")["token_num_uses"] == 7
    later = {**args, "data": {"token_period": "2h"}, "secret_data": {"token_num_uses": 9}}
    assert ansible.task("vault_object", later, **engines.environment).result()["changed"] is True
    assert engines.read("auth/approle/role/first")["token_num_uses"] == 7
    without = {**later, "data": {"token_period": "3h"}, "secret_data": {"token_num_uses": ""}}
    assert ansible.task("vault_object", without, **engines.environment).result()["changed"] is True


def test_no_secret_is_shown(engines: Server, ansible: Ansible) -> None:
    canary, stored = secrets.token_hex(16), secrets.token_hex(16)
    engines.write("secret/data/shown", data={"key": stored})
    args = {
        "path": "secret/data/shown",
        "data": {"data": {"other": "x"}},
        "secret_data": {"data": {"key": canary}},
    }
    run = ansible.task("vault_object", args, "-vvv", "--diff", **engines.environment)
    assert engines.read("secret/data/shown")["data"] == {"other": "x", "key": canary}
    shown = run.output + "".join(path.read_text() for path in ansible.directory.rglob("*") if path.is_file()
                                 and path.name != "play.json")  # fmt: skip
    assert [text for text in (canary, stored, engines.root_token) if text in shown] == []

    open_data = ansible.task(
        "vault_object",
        {**args, "data": {"data": {"other": canary}}, "secret_data": {}},
        "-vvv",
        **engines.environment,
    )
    assert canary in open_data.output, "the search finds what is shown"


def refusal(ansible: Ansible, args: dict[str, Any], **environment: str) -> str:
    run = ansible.task("vault_object", args, **environment)
    assert run.status != 0
    message = str(run.result()["msg"])
    assert "\n" not in message
    return message


PROBE = {"path": "sys/policies/acl/probe", "data": {"policy": POLICY}}


def test_refusals_before_the_first_request(vault: Server, ansible: Ansible, tmp_path: Path) -> None:
    good = vault.environment
    assert refusal(ansible, PROBE) == (
        "VAULT_ADDR is not set; export the URL of Vault, for example https://vault1:8200"
    )
    # hvac alone would fall back to this file
    (ansible.directory / ".vault-token").write_text(vault.root_token)
    assert refusal(ansible, PROBE, **{**good, "VAULT_TOKEN": ""}) == (
        f"VAULT_TOKEN is not set; export a token of {vault.address} that may write sys/policies/acl/probe"
    )
    absent = str(tmp_path / "token")
    assert refusal(ansible, PROBE, **{**good, "VAULT_TOKEN": "", "VAULT_TOKEN_FILE": absent}) == (
        f"VAULT_TOKEN_FILE names {absent}, which cannot be read (no such file or directory); "
        "correct it or set VAULT_TOKEN"
    )
    assert refusal(ansible, PROBE, **{**good, "VAULT_ADDR": "http://vault1:8200"}) == (
        "VAULT_ADDR http://vault1:8200 would send the token unencrypted; use https://"
    )
    missing = str(tmp_path / "missing.pem")
    assert refusal(ansible, PROBE, **{**good, "VAULT_CACERT": missing}) == (
        f"VAULT_CACERT names {missing}, which is not a file; set it to the PEM file of Vault's certificate authority"
    )


def test_the_token_may_come_from_a_file(vault: Server, ansible: Ansible, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{vault.root_token}\n")
    environment = {**vault.environment, "VAULT_TOKEN": "", "VAULT_TOKEN_FILE": str(tmp_path / "token")}
    ansible.task("vault_object", {**PROBE, "path": "sys/policies/acl/from_file"}, **environment)
    assert vault.read("sys/policies/acl/from_file")


def test_refusals_of_the_transport(vault: Server, ansible: Ansible) -> None:
    nobody = f"https://127.0.0.1:{free_port()}"
    assert refusal(ansible, PROBE, **{**vault.environment, "VAULT_ADDR": nobody}) == (
        f"cannot reach Vault at {nobody}: Connection refused; check VAULT_ADDR and that Vault runs"
    )
    assert refusal(ansible, PROBE, **{**vault.environment, "VAULT_CACERT": ""}) == (
        f"cannot trust Vault at {vault.address}: self-signed certificate; check VAULT_ADDR and VAULT_CACERT"
    )


def test_refusals_of_vault(engines: Server, ansible: Ansible) -> None:
    narrow = engines.token('path "sys/policies/acl/other" { capabilities = ["read"] }')
    assert refusal(ansible, PROBE, **{**engines.environment, "VAULT_TOKEN": narrow}) == (
        f"permission denied to read sys/policies/acl/probe at {engines.address}: either the policies of "
        "VAULT_TOKEN (default, narrow) do not allow it, or nothing is mounted there yet; see docs/vault.md"
    )
    assert refusal(ansible, PROBE, **{**engines.environment, "VAULT_TOKEN": "s.worthless"}) == (
        f"VAULT_TOKEN is not valid at {engines.address} (wrong, expired or revoked); export a fresh one"
    )
    assert refusal(ansible, {"path": "nowhere/data/x", "data": {"data": {"a": "b"}}}, **engines.environment) == (
        "Vault has nothing mounted for nowhere/data/x; enable the engine first"
    )
    bad = {"path": "auth/approle/role/x", "data": {"token_type": "round"}}
    assert refusal(ansible, bad, **engines.environment).startswith(
        f"Vault at {engines.address} refused to write auth/approle/role/x: invalid 'token_type' value"
    )
    typo = {"path": "auth/approle/role/typo", "data": {"token_perod": "1h"}}
    assert refusal(ansible, typo, **engines.environment) == (
        "Vault accepted auth/approle/role/typo but did not keep token_perod; check the spelling of the key "
        "and the form of its value"
    )


def test_refusals_of_secrets(engines: Server, ansible: Ansible) -> None:
    empty = {"path": "database/config/empty", "data": {"plugin_name": "x"}, "secret_data": {"password": ""}}
    assert refusal(ansible, empty, **engines.environment) == (
        "database/config/empty must be written but its secret 'password' is empty; provide it, see docs/vault.md"
    )
    elsewhere = {"path": "database/roles/x", "generate": {"key": 64}}
    assert refusal(ansible, elsewhere, **engines.environment) == (
        "generate needs the path of a KV v2 secret (MOUNT/data/NAME), not database/roles/x"
    )
    short = {"path": "secret/data/short", "generate": {"key": 8}}
    assert refusal(ansible, short, **engines.environment) == (
        "secret/data/short: the length of generated key 'key' must be a number from 16 to 1024"
    )
    engines.write("secret/data/gone", data={"key": "1"})
    engines.client.adapter.delete("/v1/secret/data/gone")
    gone = {"path": "secret/data/gone", "generate": {"key": 64}}
    assert refusal(ansible, gone, **engines.environment) == (
        "the current version (1) of secret/data/gone is deleted; undelete it, or delete the metadata of the "
        "secret to start afresh"
    )


def test_sealed_vault_is_named(sealed_vault: Server, ansible: Ansible) -> None:
    assert refusal(ansible, PROBE, **sealed_vault.environment) == (
        f"Vault at {sealed_vault.address} is sealed; unseal it, then run again"
    )


def test_python_without_hvac_is_named(vault: Server, ansible: Ansible, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(bare)], check=True)
    task = {
        "name": "probe",
        "vault_object": PROBE,
        "vars": {"ansible_python_interpreter": f"{bare}/bin/python"},
    }
    run = ansible.tasks([task], **vault.environment)
    assert run.result()["msg"] == f"Python package hvac is missing for {bare}/bin/python; run scripts/setup"


@pytest.mark.parametrize(
    ("declared", "current"),
    [
        ({"ttl": "1h30m"}, {"ttl": 5400}),
        ({"ttl": "0s"}, {"ttl": None}),
        ({"roles": "a, b"}, {"roles": ["b", "a"]}),
        ({"cidrs": []}, {}),
        ({"token_bound_cidrs": ["::1/128"]}, {"token_bound_cidrs": ["::1"]}),
        ({"enabled": True}, {"enabled": "true"}),
        ({"config": {"a": 1}}, {"config": {"a": "1", "b": 2}}),
        ({"x_statements": "one, two"}, {"x_statements": ["one, two"]}),
    ],
)
def test_spellings_that_are_the_same(declared: dict[str, Any], current: dict[str, Any]) -> None:
    assert differing(declared, current) == []


@pytest.mark.parametrize(
    ("declared", "current", "names"),
    [
        ({"ttl": "1h"}, {"ttl": 3601}, ["ttl"]),
        ({"roles": ["a"]}, {"roles": ["a", "b"]}, ["roles"]),
        ({"cidrs": []}, {"cidrs": ["10.0.0.0/8"]}, ["cidrs"]),
        ({"config": {"a": 1, "b": 2}}, {"config": {"b": 2}}, ["config.a"]),
        ({"x_statements": ["b", "a"]}, {"x_statements": ["a", "b"]}, ["x_statements"]),
        ({"enabled": False}, {"enabled": True}, ["enabled"]),
    ],
)
def test_values_that_differ(declared: dict[str, Any], current: dict[str, Any], names: list[str]) -> None:
    assert differing(declared, current) == names


def test_secrets_are_compared_as_they_are() -> None:
    assert differing({"a": "1h", "b": "", "c": "x"}, {"a": "60m", "c": "x"}, exact=True) == ["a", "b"]
