"""Bad input ends the deploy with one message that names cause and cure; what served before still serves."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.lab import ROOT, ask, play

testinfra_hosts = ["ansible://app1"]

CONFIGURATION: dict[str, Any] = yaml.safe_load((ROOT / "inventory/lab/group_vars/all.yml").read_text())
KEY = {"FORGE_SECRET_KEY": CONFIGURATION["vault_agent_settings"]["FORGE_SECRET_KEY"]}
DATABASE = {
    "FORGE_DATABASE_URL": {
        "database": "database/creds/forge",
        "template": "postgresql+asyncpg://{username}:{password}@infra1:5432/forge?ssl=verify-full",
    }
}
ENVIRONMENT: dict[str, str] = CONFIGURATION["asgi_app_environment"]
REFUSES = (
    "bareforge-runtime: the application refuses to start: {}; fix the named setting or the application and deploy again"
)


def serving() -> set[tuple[str, str, int]]:
    """Host, release and process of the workers that answer now."""
    found = set()
    for _ in range(16):
        answer = json.loads(ask("/version"))
        found.add((answer["host"], answer["release"], answer["pid"]))
    return found


def masters(host: Host) -> str:
    with host.sudo():
        return str(host.check_output("cat /run/forge/gunicorn/gunicorn.pid; readlink /srv/forge/current"))


def refusal(*arguments: str, **variables: Any) -> str:
    """The one message with which the deploy of app1 ends."""
    run = play("deploy.yml", "--limit", "app1", "--extra-vars", json.dumps(variables), *arguments)
    assert run.returncode != 0, run.stdout
    failures = re.findall(r"^fatal: .*?FAILED! => (\{.*?^\}|\{.*?\})$", run.stdout, re.M | re.S)
    assert len(failures) == 1, run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    return str(json.loads(failures[0])["msg"])


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "database URL missing": (
        {"vault_agent_settings": KEY},
        REFUSES.format("FORGE_DATABASE_URL is missing; set it in the environment or declare it as a secret"),
    ),
    "database URL empty": (
        {"vault_agent_settings": KEY, "asgi_app_environment": {**ENVIRONMENT, "FORGE_DATABASE_URL": ""}},
        REFUSES.format("FORGE_DATABASE_URL is empty; set it in the environment or declare it as a secret"),
    ),
    "database URL of another database": (
        {"vault_agent_settings": {**KEY, "FORGE_DATABASE_URL": {
            "database": "database/creds/forge", "template": "mysql://{username}:{password}@infra1/forge"}}},
        REFUSES.format("FORGE_DATABASE_URL must start with postgresql:// or postgresql+asyncpg://"),
    ),
    "short secret key": (
        {"vault_agent_settings": DATABASE,
         "asgi_app_environment": {**ENVIRONMENT, "FORGE_SECRET_KEY": "too-short-canary"}},
        REFUSES.format("FORGE_SECRET_KEY must have at least 32 characters; generate one with: openssl rand -hex 32"),
    ),
    "unknown environment": (
        {"asgi_app_environment": {**ENVIRONMENT, "FORGE_ENVIRONMENT": "prod"}},
        REFUSES.format("FORGE_ENVIRONMENT must be one of development, staging, production, got 'prod'"),
    ),
    "misspelled setting": (
        {"asgi_app_environment": {**ENVIRONMENT, "FORGE_DATABSE_URL": "x"}},
        REFUSES.format("FORGE_DATABSE_URL is not a setting of this application; did you mean FORGE_DATABASE_URL?"),
    ),
    "database of another environment": (
        {"asgi_app_environment": {**ENVIRONMENT, "FORGE_ENVIRONMENT": "staging"}},
        "the migration failed, no host was switched: bareforge-runtime: forge_app.migrate ended with exit code 1 "
        "(forge_app.migrate: FORGE_ENVIRONMENT is staging but the database says production; "
        "FORGE_DATABASE_URL points to the wrong server); fix what the lines above name and run it again",
    ),
    "wrong module": (
        {"asgi_app_module": "forge_app.wrong:app"},
        "bareforge-runtime: cannot import module 'forge_app.wrong': No module named 'forge_app.wrong'; "
        "check asgi_app_module ('forge_app.wrong:app')",
    ),
    "unreachable Vault": (
        {"vault_agent_address": "https://infra1:8299"},
        "bareforge-agent: cannot reach Vault at https://infra1:8299: connection refused; "
        "check vault_agent_address and that the host may connect to it",
    ),
    "AppRole that does not exist": (
        {"vault_agent_role": "nobody", "vault_agent_enroll": True},
        "AppRole role 'nobody' does not exist at auth/approle of https://127.0.0.1:18210; "
        "create it with: ansible-playbook playbooks/vault.yml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name_and_changes_nothing_that_serves(host: Host, name: str) -> None:
    variables, message = CASES[name]
    before = masters(host), serving()
    assert refusal(**variables) == message
    assert (masters(host), serving()) == before


def test_misspelled_role_variables_are_refused_with_the_known_ones() -> None:
    message = refusal(asgi_app_wokers=3)
    assert message.startswith(
        "Unknown variable(s) asgi_app_wokers. Known variables of role asgi_app: asgi_app_environment,"
    )
    assert message.endswith("; see roles/asgi_app/README.md")
    assert "asgi_app_workers" in message


def test_a_python_older_than_the_application_needs_is_refused(tmp_path: Path, host: Host) -> None:
    before = masters(host)
    source = tmp_path / "app"
    shutil.copytree(ROOT / "app", source, ignore=shutil.ignore_patterns("__pycache__"))
    project = (source / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(project.replace('requires-python = ">=3.11"', 'requires-python = ">=3.12"'))
    python = host.check_output("/usr/bin/python3 -c 'import platform; print(platform.python_version())'")
    assert refusal(asgi_app_source=str(source)) == (
        f"Python {python} of this host does not satisfy the source's requires-python >=3.12; install a fitting Python "
        "and name it in the role's python variable, or deploy a version that supports 3.11"
    )
    assert masters(host) == before


def test_after_all_refusals_a_restart_still_brings_up_the_old_release(host: Host) -> None:
    before = {(name, release) for name, release, _ in serving()}
    with host.sudo():
        host.check_output("systemctl restart bareforge-agent.service forge.service")
    deadline = time.monotonic() + 30
    while {(name, release) for name, release, _ in serving()} != before:
        assert time.monotonic() < deadline
        time.sleep(1)
    run = play("deploy.yml")
    assert run.returncode == 0, run.stdout
