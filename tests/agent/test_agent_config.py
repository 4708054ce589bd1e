"""The configuration file: what is understood and every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
from bareforge_agent import config
from bareforge_agent.errors import AgentError, ConfigurationError, EnrolmentError

VALID: dict[str, Any] = {
    "address": "https://infra1:8200/",
    "ca_certificate": "",
    "approle_mount": "approle",
    "sets": {
        "a1": {
            "FORGE_SECRET_KEY": {"kv": "secret/forge/web", "key": "secret_key"},
            "FORGE_CACHE_URL": {"kv": "secret/forge", "key": "cache", "template": "redis://:{value}@c/{{0}}"},
            "FORGE_DATABASE_URL": {
                "database": "database/creds/forge",
                "template": "postgresql://{username}:{password}@db/forge",
            },
        },
        "b2": {
            "FORGE_DATABASE": {"database": "database/creds/forge", "template": "{username}/{password}"},
            "FORGE_ARCHIVE": {"database": "database/creds/archive", "template": "{username}/{password}"},
        },
    },
}
ENROLL = "enrol this host again: ansible-playbook playbooks/deploy.yml -e vault_agent_enroll=true"


def read(tmp_path: Path, document: object) -> config.Config:
    file = tmp_path / "config.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return config.read_config(file)


def test_everything_is_understood(tmp_path: Path) -> None:
    result = read(tmp_path, VALID)
    assert result.address == "https://infra1:8200"
    assert result.ca_certificate is None
    assert result.poll_seconds == 15
    first, second = result.sets
    assert (first.name, second.name) == ("a1", "b2")
    key, cache = first.kv
    assert (key.mount, key.path, key.place) == ("secret", "forge/web", "secret/forge/web")
    assert key.render("a b") == "a b"
    assert cache.render("p/w") == "redis://:p/w@c/{0}"
    (database,) = first.database
    assert database.render("u@x", "p/ %") == "postgresql://u%40x:p%2F%20%25@db/forge"
    assert (second.kv, second.database[0].render("u@x", "p/ %")) == ((), "u%40x/p%2F%20%25")
    assert (result.count, sorted(result.database_paths)) == (5, ["database/creds/archive", "database/creds/forge"])


def changed(**changes: Any) -> dict[str, Any]:
    return {**VALID, **changes}


def setting(**source: Any) -> dict[str, Any]:
    return changed(sets={"s": {"A": source}})


SET_NAMED = "is not named with 1 to 64 of the characters a-z and 0-9; rename the set"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "the file is not an object; correct it"),
        (
            changed(adress="x"),
            "the file has the unknown key 'adress'; "
            "known: address, approle_mount, ca_certificate, certificate, grace_seconds, poll_seconds, sets",
        ),
        (
            changed(settings={}),
            "the file has the unknown key 'settings'; "
            "known: address, approle_mount, ca_certificate, certificate, grace_seconds, poll_seconds, sets",
        ),
        ({"address": "https://x", "approle_mount": "approle"}, "the file lacks the key 'sets'; add it"),
        ({"address": "https://x", "sets": {}}, "the file lacks the key 'approle_mount'; add it"),
        (changed(address=""), "address is not a text, or is empty; correct it"),
        (
            changed(address="infra1:8200"),
            "address is not a URL such as https://infra1:8200: 'infra1:8200'; correct it",
        ),
        (
            changed(address="http://infra1:8200"),
            "address is http://, which would send secrets in clear; use https://",
        ),
        (
            changed(ca_certificate="/nowhere.pem"),
            "ca_certificate cannot be read, /nowhere.pem: no such file or directory; correct it",
        ),
        (
            changed(poll_seconds=0),
            "poll_seconds is not a number of seconds between 0 and 86400; correct it",
        ),
        (
            changed(grace_seconds="a minute"),
            "grace_seconds is not a number of seconds between 0 and 86400; correct it",
        ),
        (
            setting(kv="secret/forge", key="k", version="3"),
            "sets.s.A.version is not the number of a version; correct it",
        ),
        (setting(kv="secret/forge", key="k", version=0), "sets.s.A.version is not the number of a version; correct it"),
        (changed(sets=[]), "sets is not an object {set name: settings}; correct it"),
        (changed(sets={}), "sets is empty; add at least one set"),
        (changed(sets={"a1": {}, "Ab": {}}), f"sets.Ab {SET_NAMED}"),
        (changed(sets={"": {}}), f"sets. {SET_NAMED}"),
        (changed(sets={"..": {}}), f"sets... {SET_NAMED}"),
        (changed(sets={"a" * 65: {}}), f"sets.{'a' * 65} {SET_NAMED}"),
        (changed(sets={"token": {}}), "sets.token has the name of a file of the agent's own; rename the set"),
        (changed(sets={"s": []}), "sets.s is not an object {setting name: source}; correct it"),
        (
            changed(sets={"s": {"A=B": {}}}),
            "sets.s.A=B cannot be the name of an environment variable; correct it",
        ),
        (setting(kv="secret/a"), "sets.s.A lacks the key 'key'; add it"),
        (
            setting(kv="secret/a", key="k", path="x"),
            "sets.s.A has the unknown key 'path'; known: key, kv, template, version",
        ),
        (
            setting(kv="secret", key="k"),
            "sets.s.A.kv is not MOUNT/PATH, such as secret/forge; correct it",
        ),
        (
            setting(kv="secret/a", key="k", template="{password}"),
            "sets.s.A.template does not use exactly {value}; correct it",
        ),
        (setting(database="database/creds/a"), "sets.s.A lacks the key 'template'; add it"),
        (
            setting(database="database/creds/a", template="{username}"),
            "sets.s.A.template does not use exactly {username} and {password}; correct it",
        ),
        (
            setting(database="database/creds/a", template="{username.__class__}{password}"),
            "sets.s.A.template does not use exactly {username} and {password}; correct it",
        ),
        (
            setting(kv="secret/a", key="k", template="{value"),
            "sets.s.A.template has a single brace; write {{ or }} for a brace of its own",
        ),
    ],
)
def test_refused(tmp_path: Path, document: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, document)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {message}"
    assert caught.value.code == 2


def test_not_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config.json is not JSON \(.*\); correct it"):
        read(tmp_path, "{")


def test_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.read_config(tmp_path / "absent")
    assert str(caught.value) == f"cannot read {tmp_path / 'absent'}: no such file or directory; check --config"


@pytest.mark.parametrize("environment", [{}, {"CREDENTIALS_DIRECTORY": "/nowhere"}])
def test_credential_missing(environment: dict[str, str]) -> None:
    with pytest.raises(EnrolmentError) as caught:
        config.read_credential(environment)
    assert str(caught.value) == f"this host has no AppRole credential; {ENROLL}"


@pytest.mark.parametrize("content", ["hidden", "[]", '{"role_id": "hidden"}', '{"role_id": 1, "secret_id": ""}'])
def test_credential_malformed(tmp_path: Path, content: str) -> None:
    (tmp_path / "approle").write_text(content)
    with pytest.raises(AgentError) as caught:
        config.read_credential({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert str(caught.value) == f"the AppRole credential is not what enrolment writes; {ENROLL}"
    assert caught.value.code == 3


def test_credential_does_not_show_itself() -> None:
    assert "hidden" not in repr(config.Credential("hidden", "hidden"))
