"""Role vault_agent without a host: its refusals word for word, its specification, its unit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Ansible

ROLE = ROOT / "roles/vault_agent"
GOOD: dict[str, Any] = {
    "vault_agent_address": "https://vault1:8200",
    "vault_agent_settings": {
        "FORGE_SECRET_KEY": {"kv": "secret/forge", "key": "secret_key"},
        "FORGE_MAIL_URL": {"kv": "secret/mail", "key": "password", "template": "smtp://forge:{value}@mail"},
        "FORGE_DATABASE_URL": {
            "database": "database/creds/forge",
            "template": "postgresql://{username}:{password}@db/forge",
        },
    },
}
SHAPE = (
    "vault_agent_settings.X must be {kv: MOUNT/PATH, key: KEY}, optionally with template, or "
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
        "vault_agent_approle_mount, vault_agent_ca_certificate, vault_agent_enroll, vault_agent_python, "
        "vault_agent_reader_group, vault_agent_role, vault_agent_settings, vault_agent_source, "
        "vault_agent_start_timeout; see roles/vault_agent/README.md"
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


def test_specification_and_readme_agree_with_the_defaults() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    readme = (ROLE / "README.md").read_text()
    assert [name for name in defaults if f"| `{name}` |" not in readme] == []


def test_unit_is_valid_and_confined(ansible: Ansible, tmp_path: Path) -> None:
    unit = tmp_path / "bareforge-agent.service"
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    variables = {name: value for name, value in variables.items() if "{{" not in str(value)}
    # stands for the release, so that the executable exists
    variables["__vault_agent_root"] = str(tmp_path / "root")
    python = tmp_path / "root/current/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    run = ansible.tasks(
        [
            {
                "name": "probe",
                "ansible.builtin.template": {
                    "src": str(ROLE / "templates/bareforge-agent.service.j2"),
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
    assert "bareforge-agent.service" in broken.stderr, "the role's test of the words finds a typing error"
    unit.write_text(unit.read_text().replace("ProtectSytem=", "ProtectSystem="))
    # in tenths: 1.5 of 10
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert scored.returncode == 0, scored.stdout
