"""vault_identity against a real server."""

from __future__ import annotations

import itertools
from typing import Any

import hvac
import pytest
from conftest import Ansible, Server

_numbers = itertools.count(1)


@pytest.fixture
def role(vault: Server) -> str:
    """A new role; its mount is made by the first one."""
    if "approle/" not in vault.client.sys.list_auth_methods()["data"]:
        vault.client.sys.enable_auth_method("approle")
    name = f"web{next(_numbers)}"
    vault.write(f"auth/approle/role/{name}", token_period="1h")
    return name


def secret_id(vault: Server, role: str) -> dict[str, str]:
    """A new secret_id of a role with its accessor, and the role_id."""
    data = vault.write(f"auth/approle/role/{role}/secret-id")["data"]
    role_id = vault.read(f"auth/approle/role/{role}/role-id")["role_id"]
    return {"secret_id": data["secret_id"], "accessor": data["secret_id_accessor"], "role_id": role_id}


def login(vault: Server, identity: dict[str, str]) -> hvac.Client:
    client = hvac.Client(url=vault.address, token="", verify=str(vault.ca))
    client.session.trust_env = False
    client.auth.approle.login(role_id=identity["role_id"], secret_id=identity["secret_id"])
    return client


def probe(ansible: Ansible, vault: Server, *arguments: str, **args: Any) -> dict[str, Any]:
    run = ansible.task("vault_identity", args, *arguments, **vault.environment)
    assert run.status == 0, run.output
    return run.result()


def test_lists_accessors(ansible: Ansible, vault: Server, role: str) -> None:
    assert probe(ansible, vault, role=role)["accessors"] == []
    made = {secret_id(vault, role)["accessor"] for _ in range(2)}
    found = probe(ansible, vault, role=role)
    assert (set(found["accessors"]), found["changed"]) == (made, False)


def test_retires_the_named_ones_only_and_once(ansible: Ansible, vault: Server, role: str) -> None:
    old, new = secret_id(vault, role), secret_id(vault, role)
    given = {"role": role, "state": "retired", "accessors": [old["accessor"], "gone-long-ago"]}
    would = probe(ansible, vault, "--check", **given)
    assert (would["changed"], would["destroyed"]) == (True, 1)
    login(vault, old)
    done = probe(ansible, vault, **given)
    assert (done["changed"], done["destroyed"]) == (True, 1)
    with pytest.raises(hvac.exceptions.InvalidRequest):
        login(vault, old)
    login(vault, new)
    again = probe(ansible, vault, **given)
    assert (again["changed"], again["destroyed"]) == (False, 0)


def test_revokes_all_access_of_one_role_and_of_no_other(ansible: Ansible, vault: Server, role: str) -> None:
    other = f"{role}b"
    vault.write(f"auth/approle/role/{other}", token_period="1h")
    lost, kept = secret_id(vault, role), secret_id(vault, other)
    tokens = [login(vault, lost), login(vault, lost)]
    neighbour = login(vault, kept)
    would = probe(ansible, vault, "--check", role=role, state="revoked")
    assert (would["changed"], would["existed"], would["tokens"]) == (True, True, 2)
    assert all(token.is_authenticated() for token in tokens)
    done = probe(ansible, vault, role=role, state="revoked")
    assert (done["changed"], done["existed"], done["tokens"]) == (True, True, 2)
    assert not any(token.is_authenticated() for token in tokens)
    assert neighbour.is_authenticated()
    with pytest.raises(hvac.exceptions.InvalidRequest):
        login(vault, lost)
    login(vault, kept)
    again = probe(ansible, vault, role=role, state="revoked")
    assert (again["changed"], again["existed"], again["tokens"]) == (False, False, 0)


def test_revokes_tokens_of_a_role_with_capitals_and_none_of_another_mount(ansible: Ansible, vault: Server) -> None:
    for mount in ("approle", "other"):
        if f"{mount}/" not in vault.client.sys.list_auth_methods()["data"]:
            vault.client.sys.enable_auth_method("approle", path=mount)
        vault.write(f"auth/{mount}/role/Web-Capital", token_period="1h")
    here = login(vault, secret_id(vault, "Web-Capital"))
    role_id = vault.read("auth/other/role/Web-Capital/role-id")["role_id"]
    other = vault.write("auth/other/role/Web-Capital/secret-id")["data"]["secret_id"]
    there = hvac.Client(url=vault.address, token="", verify=str(vault.ca))
    there.session.trust_env = False
    there.auth.approle.login(role_id=role_id, secret_id=other, mount_point="other")
    done = probe(ansible, vault, role="Web-Capital", state="revoked")
    assert (done["existed"], done["tokens"]) == (True, 1)
    assert (here.is_authenticated(), there.is_authenticated()) == (False, True)


def test_refusal_names_the_right_that_is_missing(ansible: Ansible, vault: Server, role: str) -> None:
    token = vault.token('path "auth/approle/role/*" { capabilities = ["read", "delete"] }')
    environment = {**vault.environment, "VAULT_TOKEN": token}
    run = ansible.task("vault_identity", {"role": role, "state": "revoked"}, "--check", **environment)
    assert run.status != 0
    assert run.result()["msg"] == (
        f"permission denied to list auth/token/accessors at {vault.address}: either the policies of VAULT_TOKEN "
        "(default, narrow) do not allow it, or nothing is mounted there yet; see docs/vault.md"
    )


def test_without_a_token_nothing_is_asked(ansible: Ansible, vault: Server, role: str) -> None:
    environment = {**vault.environment, "VAULT_TOKEN": ""}
    run = ansible.task("vault_identity", {"role": role, "state": "retired"}, **environment)
    assert run.result()["msg"] == (
        f"VAULT_TOKEN is not set; export a token of {vault.address} that may destroy secret_ids of AppRole role "
        f"'{role}'"
    )
