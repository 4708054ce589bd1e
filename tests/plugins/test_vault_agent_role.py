"""Role vault_agent without a host: its refusals word for word, its specification, its unit."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Ansible, Run

ROLE = ROOT / "roles/vault_agent"
GOOD: dict[str, Any] = {
    "vault_agent_address": "https://vault1:8200",
    "vault_agent_settings": {
        "FORGE_SECRET_KEY": {"kv": "secret/forge", "key": "secret_key"},
        "FORGE_MAIL_URL": {
            "kv": "secret/mail",
            "key": "password",
            "template": "smtp://forge:{value}@mail",
            "version": 3,
        },
        "FORGE_DATABASE_URL": {
            "database": "database/creds/forge",
            "template": "postgresql://{username}:{password}@db/forge",
        },
    },
}
SHAPE = (
    "vault_agent_settings.X must be {kv: MOUNT/PATH, key: KEY}, optionally with template and version (a number), or "
    "{database: MOUNT/creds/ROLE, template: TEXT}; see roles/vault_agent/README.md"
)


def preflight(ansible: Ansible, variables: dict[str, Any]) -> tuple[int, str]:
    """Return the status of the role's preflight and its refusal, empty when it passes."""
    import_role = {"name": "vault_agent", "tasks_from": "preflight"}
    # systemctl answers for the version of a host this machine need not be
    binaries = ansible.directory / "bin"
    binaries.mkdir(exist_ok=True)
    (binaries / "systemctl").write_text("#!/bin/sh\necho 'systemd 252 (252.38-1~deb12u1)'\n")
    (binaries / "systemctl").chmod(0o755)
    task = {
        "name": "role",
        "ansible.builtin.import_role": import_role,
        "vars": variables,
        "environment": {"PATH": f"{binaries}:/usr/bin:/bin"},
    }
    run = ansible.tasks([task])
    failed = run.tasks.get("the failed task", {})
    refused = [result["msg"] for result in failed.get("results", [failed]) if "evaluated_to" in result]
    words = refused[0] if refused else ""
    return run.status, words


def test_good_variables_pass(ansible: Ansible) -> None:
    assert preflight(ansible, GOOD) == (0, "")


def test_unknown_variable(ansible: Ansible) -> None:
    status, words = preflight(ansible, {**GOOD, "vault_agent_adress": "https://vault1:8200"})
    assert status != 0
    assert words == (
        "Unknown variable(s) vault_agent_adress. Known variables of role vault_agent: vault_agent_address, "
        "vault_agent_approle_mount, vault_agent_ca_certificate, vault_agent_certificate, vault_agent_enroll, "
        "vault_agent_keep_sets, vault_agent_python, vault_agent_reader_group, vault_agent_role, vault_agent_settings, "
        "vault_agent_source, vault_agent_start_timeout; see roles/vault_agent/README.md"
    )


@pytest.mark.parametrize("address", ["", "vault1:8200", "http://vault1:8200", "https://vault1:8200/v1"])
def test_bad_address(address: str, ansible: Ansible) -> None:
    assert preflight(ansible, {**GOOD, "vault_agent_address": address})[1] == (
        f'vault_agent_address is "{address}", it must be https://HOST:PORT without a path '
        "(http:// only for 127.0.0.1); see roles/vault_agent/README.md"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "vault_agent_settings is empty; name at least one setting, see roles/vault_agent/README.md"),
        (
            {"": {"kv": "secret/x", "key": "y"}},
            'vault_agent_settings names "", a setting is named with letters, digits and _ and does not begin '
            "with a digit; see roles/vault_agent/README.md",
        ),
        ({"X": "secret/forge"}, SHAPE),
        ({"X": {"kv": "secret/forge"}}, SHAPE),
        ({"X": {"kv": "secret", "key": "y"}}, SHAPE),
        ({"X": {"kv": "secret/forge", "key": "y", "teplate": "{value}"}}, SHAPE),
        ({"X": {"kv": "secret/forge", "key": "y", "database": "database/creds/forge"}}, SHAPE),
        (
            {"X": {"database": "database/creds/forge"}},
            "vault_agent_settings.X.template must contain {username} and {password}; see roles/vault_agent/README.md",
        ),
        (
            {"X": {"kv": "secret/forge", "key": "y", "template": "fixed"}},
            "vault_agent_settings.X.template must contain {value}; see roles/vault_agent/README.md",
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, ansible: Ansible) -> None:
    assert preflight(ansible, {**GOOD, "vault_agent_settings": settings})[1] == message


CERTIFICATE = {"sign": "pki/sign/shop", "names": ["shop.example.com", "*.example.com", "localhost"]}


@pytest.mark.parametrize(
    "certificate",
    [
        {},
        CERTIFICATE,
        {**CERTIFICATE, "sign": "team/pki/sign/shop", "ttl": "2h"},
        {**CERTIFICATE, "ttl": "10h"},
        {**CERTIFICATE, "ttl": "1d"},
    ],
)
def test_good_certificate(certificate: dict[str, Any], ansible: Ansible) -> None:
    assert preflight(ansible, {**GOOD, "vault_agent_certificate": certificate}) == (0, "")


@pytest.mark.parametrize(
    "change",
    [
        {"sign": "pki/issue/shop"},
        {"names": []},
        {"names": "shop.example.com"},
        {"names": ["10.0.0.1"]},
        {"names": ["shop.example.com", "a b"]},
        {"ttl": "3 days"},
        {"ttl": "1h"},
        {"ttl": "90m"},
        {"key": "x"},
    ],
    ids=str,
)
def test_bad_certificate(change: dict[str, Any], ansible: Ansible) -> None:
    assert preflight(ansible, {**GOOD, "vault_agent_certificate": {**CERTIFICATE, **change}})[1] == (
        "vault_agent_certificate must be {sign: MOUNT/sign/ROLE, names: [HOST NAMES, no addresses]}, optionally with "
        "ttl (at least 2h, in h or d); see roles/vault_agent/README.md"
    )


SETTINGS = GOOD["vault_agent_settings"]
SET = hashlib.sha256(json.dumps(SETTINGS, sort_keys=True).encode()).hexdigest()[:12]
ACCESS = {"address": "https://vault1:8200", "approle_mount": "approle", "ca_certificate": ""}
BEFORE = {"0123456789ab": {"FORGE_OLD_KEY": {"kv": "secret/old", "key": "b"}}, "b": {}}


@dataclass
class Etc:
    """A directory that stands for /etc/bareforge-agent."""

    directory: Path
    ansible: Ansible

    def live(self, document: dict[str, Any]) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "config.json").write_text(as_rendered(document))

    def run(self, *tasks: dict[str, Any], settings: dict[str, Any] = SETTINGS, arguments: tuple[str, ...] = ()) -> Run:
        variables = {**GOOD, "vault_agent_settings": settings, "__vault_agent_etc": str(self.directory)}
        run = self.ansible.tasks([*tasks], "-e", json.dumps(variables), *arguments)
        assert run.status == 0, run.output
        return run

    def prepare(self, settings: dict[str, Any] = SETTINGS, **variables: Any) -> str:
        """Return the configuration that the role would stage and let go live."""
        rendered = self.directory.parent / "rendered.json"
        self.run(
            {"name": "live", "ansible.builtin.import_role": {"name": "vault_agent", "tasks_from": "live"}},
            {
                "name": "probe",
                "ansible.builtin.template": {"src": str(ROLE / "templates/config.json.j2"), "dest": str(rendered)},
                "vars": {"__vault_agent_directory": str(self.directory), **variables},
            },
            settings=settings,
        )
        return rendered.read_text()

    def settle(self, *keep: str) -> list[str]:
        """Return the names of the sets that settle.yml, in check mode, takes away (-) and brings (+)."""
        role = {"name": "vault_agent", "tasks_from": "settle"}
        task = {"name": "settle", "ansible.builtin.include_role": role, "vars": {"vault_agent_keep_sets": list(keep)}}
        run = self.run(task, arguments=("--check", "--diff"))
        differences = [sign + name for sign, name in re.findall(r'^([-+]) {8}"(\w+)": {', run.output, re.MULTILINE)]
        assert run.result("Configure the agent for the current settings and those that are kept")["changed"] is bool(
            differences
        )
        return differences


def as_rendered(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, indent=4) + "\n"


@pytest.fixture
def etc(tmp_path: Path, ansible: Ansible) -> Etc:
    return Etc(tmp_path / "etc", ansible)


def test_settings_are_a_set_named_by_its_content(etc: Etc) -> None:
    text = etc.prepare()
    assert text == as_rendered({**ACCESS, "sets": {SET: SETTINGS}})
    turned = {name: dict(reversed(source.items())) for name, source in reversed(SETTINGS.items())}
    assert etc.prepare(turned) == text, "whatever the order they are written in"


def test_playbooks_look_where_the_set_is() -> None:
    """The expression of the set's name is in two places: the role's variables and those of the deploy playbook."""
    name = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__vault_agent_set"].strip("{} ")
    assert name in (ROOT / "playbooks/vars/deploy.yml").read_text()
    assert name in (ROLE / "README.md").read_text()


def test_what_serves_keeps_its_sets(etc: Etc) -> None:
    union = {**ACCESS, "sets": {**BEFORE, SET: SETTINGS}}
    etc.live({**ACCESS, "sets": BEFORE})
    assert etc.prepare() == as_rendered(union)
    etc.live(union)
    assert etc.prepare() == as_rendered(union), "a second time changes nothing"
    settled = {**ACCESS, "sets": {SET: SETTINGS}}
    etc.live(settled)
    assert etc.prepare() == as_rendered(settled), "nor after settle"


def test_only_the_current_set_must_be_readable() -> None:
    (proof,) = [task for task in yaml.safe_load((ROLE / "tasks/enroll.yml").read_text()) if "vault_enroll" in task]
    assert proof["vault_enroll"]["set"] == "{{ __vault_agent_set }}"


def test_live_configuration_without_sets(etc: Etc) -> None:
    etc.live({**ACCESS, "settings": BEFORE["0123456789ab"]})
    assert json.loads(etc.prepare())["sets"] == {SET: SETTINGS}


def test_settle_drops_the_other_sets_once(etc: Etc) -> None:
    etc.live({**ACCESS, "sets": {**BEFORE, SET: SETTINGS}})
    assert sorted(etc.settle()) == ["-0123456789ab", "-b"]
    etc.live({**ACCESS, "sets": {SET: SETTINGS}})
    assert etc.settle() == []


def test_settle_keeps_what_a_rollback_would_read(etc: Etc) -> None:
    etc.live({**ACCESS, "sets": {**BEFORE, SET: SETTINGS}})
    assert etc.settle("b", "gone") == ["-0123456789ab"]


def test_settle_in_check_mode_before_the_first_deploy(etc: Etc) -> None:
    assert etc.settle() == [f"+{SET}"]
    assert not etc.directory.exists()


def test_specification_and_readme_agree_with_the_defaults() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specifications = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = specifications["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    for entry in ("settle", "settings"):
        assert specifications[entry]["options"].items() <= options.items(), entry
    readme = (ROLE / "README.md").read_text()
    assert [name for name in defaults if f"| `{name}` |" not in readme] == []


def test_the_agent_is_told_of_the_certificate(etc: Etc) -> None:
    assert "certificate" not in json.loads(etc.prepare()), "none is the default"
    for given, ttl in ((CERTIFICATE, "72h"), ({**CERTIFICATE, "ttl": "24h"}, "24h")):
        told = json.loads(etc.prepare(vault_agent_certificate=given))["certificate"]
        assert told == {**CERTIFICATE, "ttl": ttl}


@pytest.mark.parametrize("name", ["bareforge-agent.service", "bareforge-certificate.service"])
def test_unit_is_valid_and_confined(name: str, ansible: Ansible, tmp_path: Path) -> None:
    unit = tmp_path / name
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    variables = {name: value for name, value in variables.items() if "{{" not in str(value)}
    # stands for the release, so that the executable exists
    variables["__vault_agent_program"] = str(tmp_path / "root/current")
    variables["__vault_agent_directory"] = "/etc/bareforge-agent"
    python = tmp_path / "root/current/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    run = ansible.tasks(
        [
            {
                "name": "probe",
                "ansible.builtin.template": {
                    "src": str(ROLE / f"templates/{name}.j2"),
                    "dest": str(unit),
                },
                "vars": {**variables, "vault_agent_reader_group": "nogroup"},
            }
        ]
    )
    assert run.status == 0, run.output
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
    broken = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert name in broken.stderr, "the role's test of the words finds a typing error"
    unit.write_text(unit.read_text().replace("ProtectSytem=", "ProtectSystem="))
    # in tenths: 1.5 of 10
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert scored.returncode == 0, scored.stdout
