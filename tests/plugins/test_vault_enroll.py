"""vault_enroll against a real server, with the real agent and with one whose answers the test chooses.

systemd is stood in for: `systemd-run` on PATH hands the credential over as systemd does, `systemd-creds`
keeps it unencrypted. The encrypted credential itself is proven on the lab's hosts.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Ansible, Run, Server

SYSTEMD_RUN = """#!{python}
import os, re, subprocess, sys
given = sys.argv[1:]
command = given[next(i for i, word in enumerate(given) if word.startswith("/")):]
properties = dict(word.split("=", 1) for word in given if re.match("[A-Z][A-Za-z]*=", word))
name, credential = properties["LoadCredentialEncrypted"].split(":")
open("{record}/properties", "w").write(repr(sorted(properties)))
if open(credential).read() == "undecryptable":
    sys.exit(243)
directory = "{record}/credentials"
os.makedirs(directory, exist_ok=True)
open(directory + "/" + name, "w").write(open(credential).read())
sys.exit(subprocess.run(command, env={{**os.environ, "CREDENTIALS_DIRECTORY": directory}}).returncode)
"""

SYSTEMD_CREDS = """#!{python}
import sys
open(sys.argv[-1], "w").write(sys.stdin.read())
"""

REAL_AGENT = """#!/bin/sh
PYTHONPATH={source} exec {python} "$@"
"""

AGENT = """#!{python}
import hvac, json, os, sys
assert sys.argv[1:3] == ["-m", "bareforge_agent"], sys.argv
verb, options = sys.argv[3], dict(zip(sys.argv[4::2], sys.argv[5::2]))
config = json.load(open(options["--config"]))
if "answer" in config:
    print("a line before", file=sys.stderr)
    print(config["answer"][1], file=sys.stderr)
    sys.exit(config["answer"][0])
vault = hvac.Client(url=config["address"], token="", verify=config["ca_certificate"])
def login(identity):
    try:
        vault.auth.approle.login(**identity, mount_point=config["approle_mount"])
    except hvac.exceptions.InvalidRequest:
        print("bareforge-agent: Vault refuses this host's login; enrol it again", file=sys.stderr)
        sys.exit(3)
if verb == "check":
    login(json.load(open(os.environ["CREDENTIALS_DIRECTORY"] + "/approle")))
else:
    handed = json.load(sys.stdin)
    seen = open("{record}/seen", "w")
    for process in filter(str.isdigit, os.listdir("/proc")):
        for part in ("cmdline", "environ"):
            try:
                seen.write(open(f"/proc/{{process}}/{{part}}", errors="replace").read())
            except OSError:
                pass
    json.dump(handed, open("{record}/handed", "w"))
    lookup = vault.adapter.post("/v1/sys/wrapping/lookup", json={{"token": handed["wrap_token"]}})
    assert lookup["data"]["creation_path"] == handed["creation_path"]
    vault.token = handed["wrap_token"]
    identity = {{"role_id": handed["role_id"], "secret_id": vault.sys.unwrap()["data"]["secret_id"]}}
    json.dump(identity, open(options["--credential"], "w"))
"""


@dataclass
class Host:
    """A directory that stands for a host with the agent installed."""

    directory: Path
    server: Server
    ansible: Ansible

    def __post_init__(self) -> None:
        binaries = self.directory / "bin"
        binaries.mkdir(parents=True)
        programs = {
            "systemd-run": SYSTEMD_RUN,
            "systemd-creds": SYSTEMD_CREDS,
            "python": AGENT,
            "real-python": REAL_AGENT,
        }
        for name, text in programs.items():
            filled = text.format(python=sys.executable, record=self.directory, source=ROOT / "agent/src")
            (binaries / name).write_text(filled)
            (binaries / name).chmod(0o755)
        self.configure()

    @property
    def credential(self) -> Path:
        return self.directory / "approle.cred"

    def configure(self, **more: Any) -> None:
        access = {
            "address": self.server.address,
            "ca_certificate": str(self.server.ca),
            "approle_mount": "hosts",
        }
        config = {**access, **more}
        (self.directory / "config.json").write_text(json.dumps(config))

    def enroll(self, *arguments: str, environment: dict[str, str] | None = None, **args: Any) -> Run:
        return self.ansible.task(
            "vault_enroll",
            {
                "role": "web1",
                "python": str(self.directory / "bin/python"),
                "config": str(self.directory / "config.json"),
                "credential": str(self.credential),
                "group": "readers",
                **args,
            },
            *arguments,
            PATH=f"{self.directory}/bin:{os.environ['PATH']}",
            **(self.server.environment if environment is None else environment),
        )


@pytest.fixture(scope="module")
def approle(vault: Server) -> Server:
    vault.write("sys/auth/hosts", type="approle")
    vault.write("auth/hosts/role/web1", token_period="1h")
    return vault


@pytest.fixture
def host(tmp_path: Path, approle: Server, ansible: Ansible) -> Host:
    return Host(tmp_path / "host", approle, ansible)


def secret_ids(server: Server) -> int:
    return len(server.read("auth/hosts/role/web1/secret-id?list=true")["keys"])


def test_host_is_enrolled_once(host: Host) -> None:
    first = host.enroll(approle_mount="hosts")
    assert first.status == 0, first.output
    assert first.result()["changed"] is True
    assert first.result()["msg"] == f"the host was enrolled: credential {host.credential} does not exist"
    assert (host.directory / "properties").read_text() == repr(
        ["Group", "LoadCredentialEncrypted", "RuntimeMaxSec", "User"]
    )
    # an enrolled host needs nothing of the controller's Vault access
    again = host.enroll(approle_mount="hosts", environment={})
    assert again.result() == {"changed": False, "msg": "the host is enrolled"}


def test_real_agent_understands_what_it_is_handed(host: Host) -> None:
    host.configure(sets={"a1": {}})
    agent = str(host.directory / "bin/real-python")
    first = host.enroll(approle_mount="hosts", python=agent)
    assert first.result()["msg"] == f"the host was enrolled: credential {host.credential} does not exist"
    assert set(json.loads(host.credential.read_text())) == {"role_id", "secret_id"}
    assert host.enroll(approle_mount="hosts", python=agent).result()["changed"] is False

    host.configure(sets={"a1": {"KEY": {"kv": "secret/nothing", "key": "key"}}})
    denied = host.enroll(approle_mount="hosts", python=agent)
    assert denied.status != 0
    assert denied.result()["msg"].startswith("bareforge-agent: ")
    assert "secret/nothing" in denied.result()["msg"]

    # what an older set needs is not asked for
    host.configure(sets={"a1": {"KEY": {"kv": "secret/nothing", "key": "key"}}, "b2": {}})
    assert host.enroll(approle_mount="hosts", python=agent, set="b2").result()["msg"] == "the host is enrolled"
    assert "secret/nothing" in host.enroll(approle_mount="hosts", python=agent, set="a1").result()["msg"]
    assert host.enroll(approle_mount="hosts", python=agent).status != 0
    # neither by the proof after an enrolment
    renewed = host.enroll(approle_mount="hosts", python=agent, set="b2", force=True)
    assert renewed.result()["msg"] == "the host was enrolled: a new identity was asked for"


def test_refused_identity_and_force_are_replaced(host: Host) -> None:
    host.enroll(approle_mount="hosts")
    identity = json.loads(host.credential.read_text())
    host.server.write("auth/hosts/role/web1/secret-id/destroy", secret_id=identity["secret_id"])
    refused = host.enroll(approle_mount="hosts")
    assert refused.result()["msg"] == (
        "the host was enrolled: bareforge-agent: Vault refuses this host's login; enrol it again"
    )
    replaced = json.loads(host.credential.read_text())
    forced = host.enroll(approle_mount="hosts", force=True)
    assert forced.result()["msg"] == "the host was enrolled: a new identity was asked for"
    assert (
        len(
            {
                identity["secret_id"],
                replaced["secret_id"],
                json.loads(host.credential.read_text())["secret_id"],
            }
        )
        == 3
    )


def test_credential_of_another_machine_is_replaced(host: Host) -> None:
    host.credential.write_text("undecryptable")
    run = host.enroll(approle_mount="hosts")
    assert run.result()["msg"] == (
        f"the host was enrolled: systemd cannot decrypt credential {host.credential} on this host"
    )


@pytest.mark.parametrize("status", [2, 4, 5, 1])
def test_other_failures_are_passed_on_and_enrol_nothing(status: int, host: Host) -> None:
    host.enroll(approle_mount="hosts")
    before = secret_ids(host.server)
    host.configure(answer=[status, "bareforge-agent: secret/forge is denied; widen the policy"])
    run = host.enroll(approle_mount="hosts")
    assert run.result()["msg"] == "bareforge-agent: secret/forge is denied; widen the policy"
    assert run.status != 0
    assert secret_ids(host.server) == before


def test_failing_proof_is_an_error(host: Host) -> None:
    host.configure(ca_certificate=str(host.directory / "missing.pem"))
    run = host.enroll(approle_mount="hosts")
    assert run.status != 0
    assert "missing.pem" in run.result()["msg"]


def test_check_mode_predicts_and_asks_vault_nothing(host: Host) -> None:
    run = host.enroll("--check", approle_mount="hosts", environment={})
    assert run.result() == {
        "changed": True,
        "msg": f"the host would be enrolled: credential {host.credential} does not exist",
    }
    absent = host.enroll("--check", approle_mount="hosts", python="/nowhere/python", environment={})
    assert absent.result() == {
        "changed": True,
        "msg": "the agent is not installed yet; the host would be enrolled",
    }
    assert not host.credential.exists()


def test_refusals(host: Host) -> None:
    access = host.server.environment
    for name in ("VAULT_ADDR", "VAULT_TOKEN"):
        run = host.enroll(approle_mount="hosts", environment={**access, name: ""})
        assert run.result()["msg"] == (
            f"this host is not enrolled and {name} is not set; export VAULT_ADDR, VAULT_CACERT and a "
            "VAULT_TOKEN that may issue secret_ids for AppRole role 'web1', then run the play again"
        )
    unknown = host.enroll(approle_mount="hosts", role="web9")
    assert unknown.result()["msg"] == (
        f"AppRole role 'web9' does not exist at auth/hosts of {host.server.address}; "
        "create it with: ansible-playbook playbooks/vault.yml"
    )
    absent = host.enroll(approle_mount="hosts", python="/nowhere/python")
    assert absent.result()["msg"] == (
        f"/nowhere/python or {host.directory}/config.json does not exist on the host; install the agent first"
    )
    piped = host.ansible.environment
    piped["ANSIBLE_PIPELINING"] = "0"
    assert host.enroll(approle_mount="hosts").result()["msg"] == (
        "pipelining is off, so the host's disk would see the wrapping token; "
        "set pipelining = True under [connection] in ansible.cfg"
    )


def test_a_token_of_the_documented_policy_is_enough(host: Host) -> None:
    token = host.server.token(
        'path "auth/hosts/role/+/role-id" { capabilities = ["read"] }\n'
        'path "auth/hosts/role/+/secret-id" {\n'
        '  capabilities = ["update"]\n  min_wrapping_ttl = "10s"\n  max_wrapping_ttl = "600s"\n}'
    )
    run = host.enroll(approle_mount="hosts", environment={**host.server.environment, "VAULT_TOKEN": token})
    assert run.result()["changed"] is True, run.output
    longer = host.enroll(
        approle_mount="hosts",
        force=True,
        wrap_ttl="1h",
        environment={**host.server.environment, "VAULT_TOKEN": token},
    )
    assert longer.result()["msg"].startswith(
        f"permission denied to write auth/hosts/role/web1/secret-id at {host.server.address}"
    )


def test_wrapping_token_and_secret_id_are_never_seen(host: Host) -> None:
    run = host.enroll("-vvv", approle_mount="hosts")
    assert run.status == 0, run.output
    handed = json.loads((host.directory / "handed").read_text())
    secret_id = json.loads(host.credential.read_text())["secret_id"]
    processes = (host.directory / "seen").read_text()
    files = "".join(path.read_text(errors="replace") for path in host.ansible.directory.rglob("*") if path.is_file())
    assert str(host.directory / "bin/python") in processes, "the agent saw the processes"
    for canary in (handed["wrap_token"], secret_id):
        assert len(canary) > 20
        assert canary not in run.output
        assert canary not in processes
        assert canary not in files
    assert handed["creation_path"] == "auth/hosts/role/web1/secret-id"
