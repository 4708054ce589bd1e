"""Bad input ends the deploy with one message that names cause and cure; what served before still serves."""

from __future__ import annotations

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from testinfra.host import Host

from tests.lab import ENVIRONMENT as ENVIRONMENT_OF_RUNS
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


def serving(host: Host) -> tuple[set[tuple[str, str]], str]:
    """What answers through the load balancer, and the master process and release of one host."""
    answers = [json.loads(ask("/version")) for _ in range(8)]
    with host.sudo():
        here = host.check_output("cat /run/forge/gunicorn/gunicorn.pid; readlink -f /srv/forge/current")
    return {(answer["host"], answer["release"]) for answer in answers}, here


def serves_again(host: Host, before: Any) -> None:
    """Return once both hosts answer with the releases they had before; the load balancer needs a moment to see it."""
    deadline = time.monotonic() + 30
    while serving(host)[0] != before[0]:
        assert time.monotonic() < deadline
        time.sleep(1)


def refusal(target: str, variables: dict[str, Any]) -> str:
    """The one message with which the deploy to one host ends; all its output where there is not exactly one."""
    run = play("deploy.yml", "--limit", target, "--extra-vars", json.dumps(variables))
    failures = re.findall(r"^fatal: .*?FAILED! => (\{.*\})$", run.stdout, re.M)
    # a failure that a rescue words anew is shown by Ansible too
    expected = 1 + max(int(count) for count in re.findall(r"rescued=(\d+)", run.stdout))
    if run.returncode == 0 or len(failures) != expected or "Traceback" in run.stdout + run.stderr:
        return run.stdout + run.stderr
    return str(json.loads(failures[-1])["msg"])


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
        f"AppRole role 'nobody' does not exist at auth/approle of {ENVIRONMENT_OF_RUNS['VAULT_ADDR']}; "
        "create it with: ansible-playbook playbooks/vault.yml",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def too_new(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The application as it would be if it needed a newer Python than Debian 12 has."""
    source = tmp_path_factory.mktemp("source") / "app"
    shutil.copytree(ROOT / "app", source, ignore=shutil.ignore_patterns("__pycache__"))
    project = (source / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(project.replace('requires-python = ">=3.11"', 'requires-python = ">=3.12"'))
    return {"asgi_app_source": str(source)}


@pytest.fixture(scope="module")
def before(host: Host) -> Any:
    return serving(host)


@pytest.fixture(scope="module")
def messages(before: Any, too_new: dict[str, str]) -> dict[str, str]:
    """Every bad input tried, on two hosts side by side."""
    inputs = {name: variables for name, (variables, _) in CASES.items()}
    names = list(inputs)
    half = len(names) // 2
    on = {"app1": {"old Python": too_new, **{name: inputs[name] for name in names[:half]}}}
    on["app2"] = {
        "misspelled variable": {"asgi_app_wokers": 3},
        "broken site": {"nginx_site_extra": "no_such_directive on;"},
        **{name: inputs[name] for name in names[half:]},
    }

    def attempt(target: str) -> dict[str, str]:
        return {name: refusal(target, variables) for name, variables in on[target].items()}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(attempt, on)
    return {**first, **second}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_with_cause_and_cure(messages: dict[str, str], name: str) -> None:
    assert messages[name] == CASES[name][1]
    assert "too-short-canary" not in messages[name]


def test_misspelled_role_variables_are_refused_with_the_known_ones(messages: dict[str, str]) -> None:
    message = messages["misspelled variable"]
    assert message.startswith(
        "Unknown variable(s) asgi_app_wokers. Known variables of role asgi_app: asgi_app_environment,"
    )
    assert message.endswith("; see roles/asgi_app/README.md")
    assert "asgi_app_workers" in message


def test_a_site_that_nginx_refuses_is_named_before_anything_switches(messages: dict[str, str]) -> None:
    message = messages["broken site"]
    assert message.startswith("nginx refuses the site forge: ")
    assert 'unknown directive "no_such_directive"' in message
    assert message.endswith(
        "; correct the certificate paths, nginx_site_extra or nginx_site_template; no site was changed"
    )


def test_a_python_older_than_the_application_needs_is_refused(messages: dict[str, str], host: Host) -> None:
    python = host.check_output("/usr/bin/python3 -c 'import platform; print(platform.python_version())'")
    assert messages["old Python"] == (
        f"Python {python} of this host does not satisfy the source's requires-python >=3.12; install a fitting Python "
        "and name it in the role's python variable, or deploy a version that supports 3.11"
    )


def test_nothing_that_serves_has_changed(messages: dict[str, str], before: Any, host: Host) -> None:
    assert messages
    assert serving(host) == before


def test_a_restart_still_brings_up_what_served(messages: dict[str, str], before: Any, host: Host) -> None:
    """Refused settings wait nowhere for the next start of a worker, the service or the agent."""
    with host.sudo():
        host.check_output("systemctl restart bareforge-agent.service forge.service")
    serves_again(host, before)


def test_a_release_that_fails_only_for_real_is_taken_back(before: Any, host: Host) -> None:
    """The hook fails in the real master alone: every check before the switch passes."""
    hook = (
        "def on_starting(server):\n"
        "    if server.cfg.pidfile.startswith('/run/'):\n        raise RuntimeError('fails for real')"
    )
    run = play("deploy.yml", "--limit", "app1", "--extra-vars", json.dumps({"asgi_app_gunicorn_extra": hook}))
    assert run.returncode != 0
    message = json.loads(re.findall(r"^fatal: .*?FAILED! => (\{.*\})$", run.stdout, re.M)[-1])["msg"]
    release = next(release for name, release in before[0] if name == "app1")
    assert re.match(
        rf"Release {re.escape(release)} did not become ready on app1 "
        r"\(master \d+ ended before its workers were ready\); the release before it never stopped serving\. "
        r"Last lines of its journal: .*Error: fails for real$",
        message,
    ), message
    serves_again(host, before)
    with host.sudo():
        assert "fails for real" not in host.file("/etc/forge/active/gunicorn.conf.py").content_string


def test_the_next_good_deploy_converges_and_shows_no_secret_at_any_verbosity(
    messages: dict[str, str], host: Host
) -> None:
    """With a new identity for every host, so that the wrapped secret_id travels too."""
    run = play("deploy.yml", "-vvv", "--diff", "--extra-vars", json.dumps({"vault_agent_enroll": True}))
    assert run.returncode == 0, run.stdout
    with host.sudo():
        files = host.check_output("find /run/bareforge-agent -name kv.json -o -name db.json").split()
        secrets = [value for path in files for value in json.loads(host.file(path).content_string).values()]
        secrets.append(host.file("/run/bareforge-agent/token").content_string.strip())
    secrets += [urlsplit(value).password for value in secrets if "://" in value]
    assert len(secrets) >= 4
    shown = run.stdout + run.stderr
    assert [secret[:2] for secret in secrets if secret in shown] == []
    # OpenBao's tokens, the wrapping ones among them
    token = re.compile(r"\bs\.[A-Za-z0-9]{24}\b")
    assert any(token.search(secret) for secret in secrets)
    assert not token.search(shown)
