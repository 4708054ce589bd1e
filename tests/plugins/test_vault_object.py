"""vault_object against a real server: every kind of object idempotent, refusals exact, no secret shown."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import modules
import pytest
from ansible.module_utils import basic
from conftest import Ansible, Server, free_port

from plugins.module_utils import bareforge_vault, bareforge_vault_compare
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


class Here:
    """Runs the module in this process, with nothing of Vault in the environment but what is given."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = directory
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        for module in (bareforge_vault, bareforge_vault_compare):
            monkeypatch.setitem(sys.modules, module.__name__.replace("plugins", "ansible"), module)
        monkeypatch.setenv("HOME", str(directory))

    def run(self, args: dict[str, Any], check: bool = False, **environment: str) -> dict[str, Any]:
        with self._monkeypatch.context() as given:
            for name in [name for name in os.environ if name.startswith("VAULT_")]:
                given.delenv(name)
            for name, value in environment.items():
                given.setenv(name, value)
            return modules.run(given, self._capsys, "vault_object", args, check)

    def refusal(self, args: dict[str, Any], **environment: str) -> str:
        result = self.run(args, **environment)
        assert result["failed"]
        message = str(result["msg"])
        assert "\n" not in message
        return message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    home = tmp_path / "home"
    home.mkdir()
    return Here(home, monkeypatch, capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_written_once_and_only_when_it_differs(kind: str, engines: Server, here: Here) -> None:
    path, first, respelled, changed = KINDS[kind]
    # stands for the password; verify_connection lets the connection be stored without a database
    hidden = {"secret_data": {"password": "pw", "verify_connection": False}} if "config/" in path else {}
    steps = {
        "predicted": (first, True),
        "created": (first, False),
        "repeated": (first, False),
        "respelled": (respelled, False),
        "change predicted": (changed, True),
        "changed": (changed, False),
        "repeated change": (changed, False),
    }
    results = {
        name: here.run({"path": path, "data": data, **hidden}, check, **engines.environment)
        for name, (data, check) in steps.items()
    }
    assert {name: result["changed"] for name, result in results.items()} == {
        "predicted": True,
        "created": True,
        "repeated": False,
        "respelled": False,
        "change predicted": True,
        "changed": True,
        "repeated change": False,
    }
    assert [name for name, result in results.items() if result["created"]] == ["predicted", "created"]


def test_check_mode_writes_nothing(engines: Server, ansible: Ansible) -> None:
    args = {"path": "sys/policies/acl/unwritten", "data": {"policy": POLICY}}
    run = ansible.task("vault_object", args, "--check", "--diff", **engines.environment)
    assert run.result()["changed"] is True
    assert "sys/policies/acl/unwritten" in run.output
    assert "unwritten" not in engines.read("sys/policies/acl?list=true")["keys"]


def test_mount_options_that_cannot_change_are_refused(engines: Server, here: Here) -> None:
    run = here.run({"path": "sys/mounts/secret", "data": {"type": "ssh"}}, **engines.environment)
    assert run["msg"] == (
        "sys/mounts/secret exists with type 'kv', which cannot become 'ssh'; choose another path, or disable "
        "the mount (this deletes what it holds)"
    )


def test_create_only_leaves_an_existing_object(engines: Server, here: Here) -> None:
    engines.write("sys/policies/acl/kept", policy=POLICY)
    args = {"path": "sys/policies/acl/kept", "data": {"policy": 'path "x" { capabilities = ["read"] }'}}
    run = here.run({**args, "create_only": True}, **engines.environment)
    assert run["changed"] is False
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


def test_first_password_is_not_written_again(engines: Server, here: Here) -> None:
    args = {
        "path": "auth/approle/role/first",
        "data": {"token_period": "1h"},
        # stands for a password: a value Vault shows, so that the test can see whether it was written
        "secret_data": {"token_num_uses": 7},
        "secret_data_create_only": True,
    }
    here.run(args, **engines.environment)
    assert engines.read("auth/approle/role/first")["token_num_uses"] == 7
    later = {**args, "data": {"token_period": "2h"}, "secret_data": {"token_num_uses": 9}}
    assert here.run(later, **engines.environment)["changed"] is True
    assert engines.read("auth/approle/role/first")["token_num_uses"] == 7
    without = {**later, "data": {"token_period": "3h"}, "secret_data": {"token_num_uses": ""}}
    assert here.run(without, **engines.environment)["changed"] is True


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


def several(mount: str) -> list[dict[str, Any]]:
    """An engine, a secret that needs it, a policy."""
    return [
        {"path": f"sys/mounts/{mount}", "data": {"type": "kv", "options": {"version": "2"}}},
        {"path": f"{mount}/data/forge", "generate": {"secret_key": 64}},
        {"path": f"sys/policies/acl/{mount}", "data": {"policy": POLICY}},
    ]


def test_several_objects_are_written_in_order(engines: Server, ansible: Ansible) -> None:
    def task(name: str, objects: list[dict[str, Any]], **keywords: Any) -> dict[str, Any]:
        return {"name": name, "vault_object": {"objects": objects}, **keywords}

    wider = [*several("listed")[:2], {"path": "/sys/policies/acl/listed/", "data": {"policy": POLICY + POLICY}}]
    run = ansible.tasks(
        [
            task("predicted", several("listed"), check_mode=True),
            {"name": "read", "vault_object": {**several("listed")[0], "create_only": True}, "check_mode": True},
            task("created", several("listed")),
            task("repeated", several("listed")),
            task("change predicted", wider, check_mode=True),
            task("changed", wider),
            task("nothing", []),
        ],
        "-vvv",  # the report has the differences only then
        "--diff",
        **engines.environment,
    )
    assert run.status == 0, run.output
    paths = ["sys/mounts/listed", "listed/data/forge", "sys/policies/acl/listed"]
    predicted, created = run.result("predicted"), run.result("created")
    assert predicted["changed"] is True
    assert predicted["objects"] == [
        {"path": paths[0], "changed": True, "created": True, "differing": ["type", "options"]},
        {"path": paths[1], "changed": True, "created": True, "differing": ["data.secret_key"]},
        {"path": paths[2], "changed": True, "created": True, "differing": ["policy"]},
    ]
    assert run.result("read")["created"] is True, "the prediction wrote"
    assert [one["before_header"] for one in created["diff"]] == paths
    assert created["diff"][1]["after"] == {"keys": ["secret_key"]}
    for key in ("changed", "objects", "diff"):
        assert created[key] == predicted[key]
    assert set(engines.read("listed/data/forge")["data"]) == {"secret_key"}

    assert run.result("repeated")["changed"] is False
    assert [one["changed"] for one in run.result("repeated")["objects"]] == [False, False, False]
    assert run.result("repeated")["diff"] == []
    for name in ("change predicted", "changed"):
        result = run.result(name)
        assert [(one["path"], one["created"]) for one in result["objects"] if one["changed"]] == [(paths[2], False)]
        assert [one["after"] for one in result["diff"]] == [{"policy": POLICY + POLICY}]
    assert engines.read("sys/policies/acl/listed")["policy"].count("secret/data/forge") == 2
    assert (run.result("nothing")["changed"], run.result("nothing")["objects"]) == (False, [])


def test_a_list_that_fails_names_what_it_wrote(engines: Server, ansible: Ansible, here: Here) -> None:
    mount, secret, policy = several("halfway")
    bad = {"path": "auth/approle/role/halfway", "data": {"token_type": "round"}}
    failed = ansible.task("vault_object", {"objects": [mount, secret, bad, policy]}, **engines.environment).result()
    assert failed["msg"].startswith(
        f"Vault at {engines.address} refused to write auth/approle/role/halfway: invalid 'token_type' value"
    )
    assert failed["msg"].endswith(
        " (at object 3 of 4, auth/approle/role/halfway; written before it: sys/mounts/halfway, halfway/data/forge)"
    )
    assert failed["changed"] is True
    assert [one["path"] for one in failed["objects"]] == ["sys/mounts/halfway", "halfway/data/forge"]
    made = engines.read("halfway/data/forge")["data"]
    assert "halfway" not in engines.read("sys/policies/acl?list=true")["keys"], "it went on after the failure"

    # what is as declared was not written
    narrow = engines.token('path "sys/mounts/halfway" { capabilities = ["read"] }')
    environment = {**engines.environment, "VAULT_TOKEN": narrow}
    assert here.refusal({"objects": [mount, policy]}, **environment) == (
        f"permission denied to read sys/policies/acl/halfway at {engines.address}: either the policies of "
        "VAULT_TOKEN (default, narrow) do not allow it, or nothing is mounted there yet; see docs/vault.md "
        "(at object 2 of 2, sys/policies/acl/halfway; nothing was written before it)"
    )
    good = {**bad, "data": {"token_type": "service"}}
    again = ansible.task("vault_object", {"objects": [mount, secret, good, policy]}, **engines.environment).result()
    assert [one["changed"] for one in again["objects"]] == [False, False, True, True]
    assert engines.read("halfway/data/forge")["data"] == made


def test_a_prediction_that_fails_has_written_nothing(engines: Server, ansible: Ansible, here: Here) -> None:
    mount, secret, _ = several("foreseen")
    short = {**secret, "generate": {"key": 8}}
    run = ansible.task("vault_object", {"objects": [mount, short]}, "--check", **engines.environment)
    assert run.result()["msg"] == (
        "foreseen/data/forge: the length of generated key 'key' must be a number from 16 to 1024 "
        "(at object 2 of 2, foreseen/data/forge; nothing was written before it)"
    )
    assert here.refusal({"objects": [secret, mount]}, **engines.environment) == (
        "Vault has nothing mounted for foreseen/data/forge; enable the engine first "
        "(at object 1 of 2, foreseen/data/forge; nothing was written before it)"
    )


def test_a_list_stands_alone(vault: Server, here: Here) -> None:
    beside = here.refusal({"objects": [PROBE], "data": {"policy": POLICY}}, **vault.environment)
    assert beside == "parameters are mutually exclusive: objects|data"
    assert here.refusal({}, **vault.environment) == "one of the following is required: objects, path"
    pathless = here.refusal({"objects": [{"data": {}}]}, **vault.environment)
    assert pathless == "missing required arguments: path found in objects"
    assert here.refusal({"objects": several("x")}, **{**vault.environment, "VAULT_TOKEN": ""}) == (
        f"VAULT_TOKEN is not set; export a token of {vault.address} that may write "
        "sys/mounts/x, x/data/forge, sys/policies/acl/x"
    )


def test_no_secret_of_a_list_is_shown(engines: Server, ansible: Ansible) -> None:
    # its text in a list has other quotes and backslashes than the secret itself
    canary = secrets.token_hex(8) + "'\"\\" + secrets.token_hex(8)
    secret = {"path": "secret/data/listed", "data": {"data": {"a": "x"}}, "secret_data": {"data": {"key": canary}}}
    bad = {**secret, "path": "secret/data/listed_badly", "generate": {"pin": 1}}
    run = ansible.task("vault_object", {"objects": [secret, bad]}, "-vvv", "--diff", **engines.environment)
    assert run.result()["msg"].endswith("; written before it: secret/data/listed)")
    assert engines.read("secret/data/listed")["data"] == {"a": "x", "key": canary}
    shown = run.output + (ansible.directory / "report.json").read_text()
    assert [part for part in (canary[:16], canary[-16:]) if part in shown] == []
    secret["data"]["data"]["a"] = f"open {canary[:16]}"
    run = ansible.task("vault_object", {"objects": [secret]}, "-vvv", **engines.environment)
    assert canary[:16] in run.output, "the search finds what is shown"


def test_no_secret_of_a_list_is_logged(engines: Server, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(basic, "has_journal", False)
    monkeypatch.setattr(basic.syslog, "syslog", lambda _priority, text: logged.append(text))
    canary = secrets.token_hex(8) + "'\"\\" + secrets.token_hex(8)
    secret = {"path": "secret/data/logged", "secret_data": {"data": {"key": canary}}}
    result = here.run({"objects": [secret, PROBE]}, **engines.environment)
    assert result["changed"] is True
    assert logged == ["Invoked for secret/data/logged, sys/policies/acl/probe"]
    here.run(PROBE, **engines.environment)
    assert logged[1:] == ["Invoked for sys/policies/acl/probe"]


PROBE = {"path": "sys/policies/acl/probe", "data": {"policy": POLICY}}


def test_refusals_before_the_first_request(vault: Server, here: Here, tmp_path: Path) -> None:
    good = vault.environment
    assert here.refusal(PROBE) == ("VAULT_ADDR is not set; export the URL of Vault, for example https://vault1:8200")
    # hvac alone would fall back to this file
    (here.home / ".vault-token").write_text(vault.root_token)
    assert here.refusal(PROBE, **{**good, "VAULT_TOKEN": ""}) == (
        f"VAULT_TOKEN is not set; export a token of {vault.address} that may write sys/policies/acl/probe"
    )
    absent = str(tmp_path / "token")
    assert here.refusal(PROBE, **{**good, "VAULT_TOKEN": "", "VAULT_TOKEN_FILE": absent}) == (
        f"VAULT_TOKEN_FILE names {absent}, which cannot be read (no such file or directory); "
        "correct it or set VAULT_TOKEN"
    )
    assert here.refusal(PROBE, **{**good, "VAULT_ADDR": "http://vault1:8200"}) == (
        "VAULT_ADDR http://vault1:8200 would send the token unencrypted; use https://"
    )
    missing = str(tmp_path / "missing.pem")
    assert here.refusal(PROBE, **{**good, "VAULT_CACERT": missing}) == (
        f"VAULT_CACERT names {missing}, which is not a file; set it to the PEM file of Vault's certificate authority"
    )


def test_the_token_may_come_from_a_file(vault: Server, here: Here, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{vault.root_token}\n")
    environment = {**vault.environment, "VAULT_TOKEN": "", "VAULT_TOKEN_FILE": str(tmp_path / "token")}
    here.run({**PROBE, "path": "sys/policies/acl/from_file"}, **environment)
    assert vault.read("sys/policies/acl/from_file")


def test_refusals_of_the_transport(vault: Server, here: Here) -> None:
    nobody = f"https://127.0.0.1:{free_port()}"
    assert here.refusal(PROBE, **{**vault.environment, "VAULT_ADDR": nobody}) == (
        f"cannot reach Vault at {nobody}: Connection refused; check VAULT_ADDR and that Vault runs"
    )
    assert here.refusal(PROBE, **{**vault.environment, "VAULT_CACERT": ""}) == (
        f"cannot trust Vault at {vault.address}: self-signed certificate; check VAULT_ADDR and VAULT_CACERT"
    )


def test_refusals_of_vault(engines: Server, here: Here) -> None:
    narrow = engines.token('path "sys/policies/acl/other" { capabilities = ["read"] }')
    assert here.refusal(PROBE, **{**engines.environment, "VAULT_TOKEN": narrow}) == (
        f"permission denied to read sys/policies/acl/probe at {engines.address}: either the policies of "
        "VAULT_TOKEN (default, narrow) do not allow it, or nothing is mounted there yet; see docs/vault.md"
    )
    assert here.refusal(PROBE, **{**engines.environment, "VAULT_TOKEN": "s.worthless"}) == (
        f"VAULT_TOKEN is not valid at {engines.address} (wrong, expired or revoked); export a fresh one"
    )
    assert here.refusal({"path": "nowhere/data/x", "data": {"data": {"a": "b"}}}, **engines.environment) == (
        "Vault has nothing mounted for nowhere/data/x; enable the engine first"
    )
    bad = {"path": "auth/approle/role/x", "data": {"token_type": "round"}}
    assert here.refusal(bad, **engines.environment).startswith(
        f"Vault at {engines.address} refused to write auth/approle/role/x: invalid 'token_type' value"
    )
    typo = {"path": "auth/approle/role/typo", "data": {"token_perod": "1h"}}
    assert here.refusal(typo, **engines.environment) == (
        "Vault accepted auth/approle/role/typo but did not keep token_perod; check the spelling of the key "
        "and the form of its value"
    )


def test_refusals_of_secrets(engines: Server, here: Here) -> None:
    empty = {"path": "database/config/empty", "data": {"plugin_name": "x"}, "secret_data": {"password": ""}}
    assert here.refusal(empty, **engines.environment) == (
        "database/config/empty must be written but its secret 'password' is empty; provide it, see docs/vault.md"
    )
    elsewhere = {"path": "database/roles/x", "generate": {"key": 64}}
    assert here.refusal(elsewhere, **engines.environment) == (
        "generate needs the path of a KV v2 secret (MOUNT/data/NAME), not database/roles/x"
    )
    short = {"path": "secret/data/short", "generate": {"key": 8}}
    assert here.refusal(short, **engines.environment) == (
        "secret/data/short: the length of generated key 'key' must be a number from 16 to 1024"
    )
    engines.write("secret/data/gone", data={"key": "1"})
    engines.client.adapter.delete("/v1/secret/data/gone")
    gone = {"path": "secret/data/gone", "generate": {"key": 64}}
    assert here.refusal(gone, **engines.environment) == (
        "the current version (1) of secret/data/gone is deleted; undelete it, or delete the metadata of the "
        "secret to start afresh"
    )


def test_sealed_vault_is_named(sealed_vault: Server, here: Here) -> None:
    assert here.refusal(PROBE, **sealed_vault.environment) == (
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
