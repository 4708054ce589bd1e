"""vault_secret against a real server."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from conftest import Ansible, Server

_numbers = itertools.count(1)


@pytest.fixture
def path(vault: Server) -> str:
    """A secret with two keys, at version 1."""
    if "kept/" not in vault.client.sys.list_mounted_secrets_engines()["data"]:
        vault.client.sys.enable_secrets_engine("kv", path="kept", options={"version": "2"})
    name = f"app{next(_numbers)}"
    # a new mount upgrades itself for a moment
    for attempt in range(20):
        try:
            vault.write(f"kept/data/{name}", data={"key": "first value", "other": "stays"})
            break
        except Exception:
            if attempt == 19:
                raise
    return f"kept/{name}"


def content(vault: Server, path: str) -> dict[str, str]:
    found: dict[str, str] = vault.read(path.replace("/", "/data/", 1))["data"]
    return found


def probe(ansible: Ansible, vault: Server, *arguments: str, value: str = "", **args: Any) -> dict[str, Any]:
    given = {"VAULT_NEW_VALUE": value} if value else {}
    run = ansible.task("vault_secret", args, *arguments, "-vvv", **vault.environment, **given)
    for secret in {value, "first value"} - {""}:
        assert secret not in run.output
    return run.result()


def test_reads_the_version_and_nothing_else(ansible: Ansible, vault: Server, path: str) -> None:
    found = probe(ansible, vault, path=path)
    assert (found["version"], found["changed"]) == (1, False)


def test_generates_one_key_and_keeps_the_others(ansible: Ansible, vault: Server, path: str) -> None:
    given = {"path": path, "key": "key", "state": "changed", "generate": 32, "version": 1}
    assert probe(ansible, vault, "--check", **given)["version"] == 1
    assert content(vault, path)["key"] == "first value"
    done = probe(ansible, vault, **given)
    assert (done["version"], done["changed"]) == (2, True)
    now = content(vault, path)
    assert (len(now["key"]), now["other"]) == (32, "stays")
    assert now["key"] not in str(done)


def test_takes_the_value_of_the_environment(ansible: Ansible, vault: Server, path: str) -> None:
    done = probe(ansible, vault, value="second value", path=path, key="key", state="changed")
    assert done["version"] == 2
    assert content(vault, path) == {"key": "second value", "other": "stays"}


def test_restores_a_version_as_a_new_one_and_once(ansible: Ansible, vault: Server, path: str) -> None:
    probe(ansible, vault, value="second value", path=path, key="key", state="changed")
    done = probe(ansible, vault, path=path, state="restored", version=1)
    assert (done["version"], done["changed"]) == (3, True)
    assert content(vault, path) == {"key": "first value", "other": "stays"}
    again = probe(ansible, vault, path=path, state="restored", version=1)
    assert (again["version"], again["changed"]) == (3, False)


@pytest.mark.parametrize(
    ("args", "value", "message"),
    [
        (
            {"version": 7},
            "never written",
            "{path} is at version 1, not 7: somebody else has changed it meanwhile; run again",
        ),
        ({"key": "kee"}, "never written", "{path} has no key 'kee', only: key, other"),
        (
            {},
            "",
            "'key' is no generated secret and VAULT_NEW_VALUE is not set; export the new value, without it being on a "
            "command line: read -rs VAULT_NEW_VALUE; export VAULT_NEW_VALUE",
        ),
        (
            {"generate": 32},
            "never written",
            "VAULT_NEW_VALUE is set, but 'key' is a generated secret; unset it, or take 'key' out of "
            "vault_generated_secrets",
        ),
        (
            {"state": "restored", "version": 9},
            "",
            "there is no secret {path} in Vault; create it first: playbooks/vault.yml, or vault kv put {path}",
        ),
    ],
)
def test_refuses(ansible: Ansible, vault: Server, path: str, args: dict[str, Any], value: str, message: str) -> None:
    given = {"path": path, "key": "key", "state": "changed", **args}
    assert probe(ansible, vault, value=value, **given)["msg"] == message.format(path=path)
    assert content(vault, path)["key"] == "first value"


def test_restores_nothing_where_somebody_else_has_written(ansible: Ansible, vault: Server, path: str) -> None:
    for value in ("second value", "third value"):
        vault.write(path.replace("/", "/data/", 1), data={"key": value})
    assert probe(ansible, vault, path=path, state="restored", version=1)["msg"] == (
        f"{path} is at version 3, 2 after 1: somebody else has written it too; put right by hand what is to be kept: "
        f"vault kv get -version=1 {path}"
    )
    assert content(vault, path)["key"] == "third value"


def test_refuses_the_same_value_again(ansible: Ansible, vault: Server, path: str) -> None:
    run = ansible.task(
        "vault_secret",
        {"path": path, "key": "key", "state": "changed"},
        **vault.environment,
        VAULT_NEW_VALUE="first value",
    )
    assert run.result()["msg"] == (f"VAULT_NEW_VALUE is the value that 'key' of {path} has already; export another one")


def test_refuses_a_deleted_version(ansible: Ansible, vault: Server, path: str) -> None:
    vault.client.secrets.kv.v2.delete_latest_version_of_secret(path.partition("/")[2], mount_point="kept")
    assert probe(ansible, vault, path=path)["msg"] == (
        f"the latest version of {path} is deleted or destroyed; undelete it, or write a new one: vault kv put {path}"
    )
