"""`certificate` against a real server and its PKI: when one is made, what keeps it from it, and what is left then."""

import re
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bareforge_agent.certificate import Issued, read, saved_copy
from bareforge_agent.config import CertificateRequest

from tests.agent.conftest import FORGE_KEY, SET, Bao, Host
from tests.agent.test_agent_check import refused

NAMES = ["shop.example.com", "app1"]
# Vault lets a certificate begin 30 s before it is made: of 50 s two thirds are over 3.3 s after that.
SHORT, SHORT_DUE = "20s", 4
WANTED = {"sign": "pki/sign/forge", "names": NAMES, "ttl": "72h"}


@pytest.fixture(scope="module")
def pki(bao: Bao) -> str:
    """An engine with a root of its own; its certificate. Role `forge` signs for the names, `rsa` wants other keys."""
    bao.root.sys.enable_secrets_engine("pki", config={"max_lease_ttl": "8760h"})
    made = bao.root.write_data("pki/root/generate/internal", data={"common_name": "test PKI", "ttl": "8760h"})
    common = {"allowed_domains": NAMES, "allow_bare_domains": True, "max_ttl": "72h", "no_store": True}
    bao.root.write_data("pki/roles/forge", data={**common, "key_type": "ec", "key_bits": 256})
    bao.root.write_data("pki/roles/second", data={**common, "key_type": "ec", "key_bits": 256})
    bao.root.write_data("pki/roles/rsa", data={**common, "key_type": "rsa", "key_bits": 2048})
    bao.root.write_data("pki/roles/other", data={**common, "key_type": "ec", "key_bits": 256, "use_csr_sans": False})
    return str(made["data"]["certificate"])


@pytest.fixture
def site(host: Host, pki: str) -> Host:
    host.configure(certificate=WANTED)
    return host


def certificate(site: Host, code: int = 0) -> str:
    """Run the command; returns what it said."""
    done = site.agent("certificate")
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def pem(site: Host) -> Path:
    return site.runtime / "site.pem"


def handshake(file: Path, trusted: str, name: str) -> Any:
    """What a client sees of a server that has the file, as nginx, for key and certificate."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=trusted)
    server.load_cert_chain(file, file)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(theirs, server_side=True) as connection:
            connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(ours, server_hostname=name) as connection:
        seen = connection.getpeercert()
        connection.send(b"x")
    thread.join(10)
    return seen


def test_a_client_trusts_it_for_every_name(site: Host, pki: str) -> None:
    said = certificate(site)
    assert re.fullmatch(r"got a certificate for shop\.example\.com, app1, valid until [0-9-]+ [0-9:]+ UTC\n", said), (
        said
    )
    assert {file.name for file in site.runtime.iterdir()} == {"site.pem", "metrics.prom"}, "the key is in one place"
    assert pem(site).stat().st_mode & 0o777 == 0o400
    for name in NAMES:
        seen = handshake(pem(site), pki, name)
        assert {value for _, value in seen["subjectAltName"]} == set(NAMES)
    lives = ssl.cert_time_to_seconds(seen["notAfter"]) - time.time()
    assert abs(lives - 72 * 3600) < 60
    published = site.runtime / "metrics.prom"
    assert f"\nbareforge_certificate_end_timestamp_seconds {time.time() + lives:.0f}\n" in published.read_text()
    assert published.stat().st_mode & 0o777 == 0o444


def test_a_second_run_asks_nobody(site: Host, bao: Bao) -> None:
    certificate(site)
    before = pem(site).read_text()
    bao.seal()
    assert certificate(site) == ""
    assert pem(site).read_text() == before


def test_other_names_make_another_one(site: Host) -> None:
    certificate(site)
    before = pem(site).read_text()
    site.configure(certificate={**WANTED, "names": ["app1"]})
    assert "got a certificate for app1, valid until" in certificate(site)
    found = read(pem(site).read_text())
    assert found is not None
    assert found.names == {"app1"}
    assert pem(site).read_text().splitlines()[1] != before.splitlines()[1], "with another key"


def test_two_thirds_of_its_life(site: Host) -> None:
    """Renewed then, not before: also seen on a certificate that lives 20 s."""
    wanted = CertificateRequest("pki/sign/forge", ("app1",), "72h")
    issued = Issued(begin=1000, end=1900, names=frozenset({"app1"}), mark="# signed at pki/sign/forge for 72h")
    assert [issued.due(wanted, now) for now in (1000, 1599, 1600, 2000)] == [False, False, True, True]
    site.configure(certificate={**WANTED, "ttl": SHORT})
    certificate(site)
    found = read(pem(site).read_text())
    assert found is not None
    assert found.end - found.begin == 50
    assert certificate(site) == ""
    time.sleep(SHORT_DUE)
    assert "got a certificate" in certificate(site)


@pytest.mark.parametrize("change", [{"ttl": "71h"}, {"sign": "pki/sign/second"}])
def test_another_request_makes_another_one(site: Host, change: dict[str, Any]) -> None:
    certificate(site)
    site.configure(certificate={**WANTED, **change})
    assert "got a certificate" in certificate(site)
    assert certificate(site) == ""


def test_vault_away_leaves_the_one_that_there_is(site: Host, bao: Bao) -> None:
    site.configure(certificate={**WANTED, "ttl": SHORT})
    certificate(site)
    before = pem(site).read_text()
    time.sleep(SHORT_DUE)
    bao.seal()
    said = certificate(site, code=4)
    assert re.search(r"^the certificate in use is valid until [0-9-]+ [0-9:]+ UTC$", said, re.M)
    assert f"bareforge-agent: Vault at {bao.address} is sealed; unseal it, the agent goes on by itself" in said
    assert pem(site).read_text() == before


def test_a_boot_while_vault_is_away_takes_up_the_copy(site: Host, bao: Bao) -> None:
    certificate(site)
    before = pem(site).read_text()
    (site.directory / "credentials/certificate").write_text(before)
    pem(site).unlink()
    bao.seal()
    assert "took up the certificate from before, valid until" in certificate(site)
    assert pem(site).read_text() == before


@pytest.mark.parametrize("copy", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_copy_that_is_none_is_not_taken_up(site: Host, copy: str) -> None:
    (site.directory / "credentials/certificate").write_text(copy)
    assert certificate(site).startswith("got a certificate")


def test_without_credentials_there_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "certificate").write_text("not a copy")
    assert saved_copy({}) == ""
    assert saved_copy({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "not a copy"


def test_check_proves_it_and_makes_none(site: Host) -> None:
    """Unless it is asked not to: a new identity is not to depend on a certificate."""
    done = site.agent("check")
    assert (done.returncode, done.stdout) == (0, "ok: 1 settings can be read, and the certificate is signed\n")
    assert list(site.runtime.iterdir()) == []
    site.configure(certificate={**WANTED, "sign": "pki/sign/absent"})
    done = site.agent("check", "--no-certificate")
    assert (done.returncode, done.stdout) == (0, "ok: 1 settings can be read\n")


REFUSALS = [
    (
        {"sign": "denied/sign/forge"},
        5,
        "permission denied on denied/sign/forge; let the policy of this host's AppRole role update denied/sign/forge",
    ),
    (
        {"sign": "nowhere/sign/forge"},
        5,
        "there is no PKI engine at nowhere/sign/forge; enable it in Vault or correct sign of the certificate",
    ),
    (
        {"sign": "pki/sign/absent"},
        5,
        "there is no PKI role at pki/sign/absent; create it: playbooks/vault.yml",
    ),
    (
        {"names": ["bank.example.com"]},
        5,
        "Vault does not sign the certificate at pki/sign/forge: common name bank.example.com not allowed by this role; "
        "correct names or ttl of the certificate, or the PKI role",
    ),
    (
        {"sign": "pki/sign/rsa"},
        5,
        "Vault does not sign the certificate at pki/sign/rsa: role requires keys of type rsa; "
        "correct names or ttl of the certificate, or the PKI role",
    ),
]


@pytest.mark.parametrize(("change", "code", "message"), REFUSALS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("command", ["check", "certificate"])
def test_what_vault_refuses(site: Host, command: str, change: dict[str, Any], code: int, message: str) -> None:
    site.configure(certificate={**WANTED, **change})
    assert refused(site.agent(command), code) == message
    assert list(site.runtime.iterdir()) == []


def test_a_certificate_that_would_be_due_at_once_is_not_used(site: Host) -> None:
    """Signed with other names than the wanted ones it would be asked for again each time."""
    site.configure(certificate={**WANTED, "sign": "pki/sign/other"})
    assert refused(site.agent("certificate"), 2) == (
        "the certificate that Vault has signed at pki/sign/other has other names, or ends at once; "
        "correct the PKI role, or the clock of this host"
    )
    assert list(site.runtime.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "certificate is not an object; correct it"),
        ({"sign": "pki/sign/forge", "names": NAMES}, "certificate lacks the key 'ttl'; add it"),
        ({**WANTED, "key": "x"}, "certificate has the unknown key 'key'; known: names, sign, ttl"),
        (
            {**WANTED, "sign": "pki/issue/forge"},
            "certificate.sign is not MOUNT/sign/ROLE, such as pki/sign/forge; correct it",
        ),
        ({**WANTED, "names": []}, "certificate.names is not a list of names, or is empty; name at least one"),
        ({**WANTED, "names": ["10.0.0.1"]}, "certificate.names has '10.0.0.1', which is no host name; correct it"),
        ({**WANTED, "names": ["a b"]}, "certificate.names has 'a b', which is no host name; correct it"),
        ({**WANTED, "ttl": "3 days"}, "certificate.ttl is not a duration, such as 72h; correct it"),
    ],
)
def test_what_is_wrong_in_the_file(site: Host, value: Any, message: str) -> None:
    site.configure(certificate=value)
    assert refused(site.agent("certificate"), 2) == f"{site.config_file}: {message}"


def test_nothing_to_do_is_said(host: Host) -> None:
    assert refused(host.agent("certificate"), 2) == (
        "the configuration names no certificate; set vault_agent_certificate"
    )


def test_openssl_missing(site: Host, tmp_path: Path) -> None:
    done = site.agent("certificate", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        "bareforge-agent: cannot run openssl: FileNotFoundError; apt-get install openssl\n",
    )


def test_the_agent_is_not_disturbed_by_it(site: Host) -> None:
    site.configure(FORGE_KEY, certificate=WANTED)
    site.start()
    site.wait_for_status("READY=1")
    assert site.settings(of=SET) == {"FORGE_SECRET_KEY": "k-e-y-1"}
