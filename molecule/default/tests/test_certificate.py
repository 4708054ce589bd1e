"""The site's certificate from Vault's PKI: used, replaced under load, there after a boot while Vault is away."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.credentials import DATABASE, unseal, until, vault_of
from benchmarks.fleet import Fleet
from tests.lab import ENVIRONMENT, INVENTORY, STATE

HOSTS = ("app1", "app2")
PEM = "/run/bareforge-certificate/site.pem"
# What the PKI role allows here: of hours nobody would see one end. Replaced after some 17 s, for Vault lets a
# certificate begin 30 s before it is made, and two thirds of 70 s are over then.
LIFE = 40
SITE = {
    "vault_agent_certificate": {"sign": "pki/sign/forge", "names": ["localhost"], "ttl": "72h"},
    "nginx_site_certificate": PEM,
    "nginx_site_certificate_key": PEM,
}
UNITS = "bareforge-certificate.service bareforge-certificate.timer"
OFTEN = "[Timer]\nOnUnitInactiveSec=2s\nAccuracySec=100ms\nRandomizedDelaySec=0\n"
# as docs/certificates.md says
REMOVE = (
    "rm -rf /run/bareforge-certificate /var/lib/bareforge-certificate /etc/systemd/system/bareforge-certificate.* "
    "/etc/bareforge-agent/take-certificate; systemctl daemon-reload"
)
LOAD = {**DATABASE, "slow": None}
DROP_IN = "/run/systemd/system/bareforge-certificate.timer.d"


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet(STATE, (INVENTORY,), ENVIRONMENT)


@pytest.fixture(scope="module")
def vault(fleet: Fleet) -> Any:
    return vault_of(fleet)


@pytest.fixture(scope="module", autouse=True)
def site(fleet: Fleet, vault: Any) -> Iterator[None]:
    """The site with such a certificate, of an engine that has the lab's own authority."""
    vault.sys.enable_secrets_engine("pki", config={"max_lease_ttl": "8760h"})
    authority = "".join((fleet.state / f"ca.{part}").read_text() for part in ("key", "pem"))
    vault.write_data("pki/config/ca", data={"pem_bundle": authority})
    try:
        fleet.good("vault.yml", **SITE)
        role = vault.read("pki/roles/forge")["data"]
        vault.write_data("pki/roles/forge", data={**role, "max_ttl": LIFE})
        for host in HOSTS:
            fleet.ssh(host, f"mkdir -p {DROP_IN}; cat > {DROP_IN}/often.conf", given=OFTEN)
        with fleet.witness(*HOSTS, **LOAD) as witness:
            fleet.good("deploy.yml", **SITE)
        result = witness.result()
        print(f"the first certificates: {result.line}")
        assert lost(result) == [], (result.line, result.details)
        assert result.document["failed"] <= len(HOSTS), (result.line, result.details)
        yield
    finally:
        fleet.good("deploy.yml")
        for host in HOSTS:
            fleet.ssh(host, f"systemctl disable --now {UNITS}; rm -rf {DROP_IN}; {REMOVE}", check=False)
        fleet.good("vault.yml")
        vault.sys.disable_secrets_engine("pki")


def served(fleet: Fleet, host: str) -> dict[str, Any]:
    """What a client that trusts the authority sees of a host's certificate."""
    trust = ssl.create_default_context(cafile=str(fleet.state / "ca.pem"))
    address = (str(fleet.reach(host)["private_address"]), 443)
    with (
        socket.create_connection(address, timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        found: dict[str, Any] = connection.getpeercert()
    return found


def lost(result: Any) -> list[Any]:
    """Requests that failed and were not sent in the very moment in which nginx closed a connection that was idle.

    A reload ends its workers, and with them what is kept alive and idle (docs/certificates.md).
    """
    failures = [record for record in result.records if record.failure]
    return [record for record in failures if (record.failure, record.connection) != ("reset", "keep-alive")]


def serial(fleet: Fleet, host: str) -> str:
    """Of the certificate that a host serves, empty where it serves none that is valid."""
    try:
        return str(served(fleet, host)["serialNumber"])
    except OSError:
        return ""


def test_every_host_has_one_of_its_own(fleet: Fleet) -> None:
    seen = {host: served(fleet, host) for host in HOSTS}
    assert len({certificate["serialNumber"] for certificate in seen.values()}) == 2
    for host, certificate in seen.items():
        assert certificate["subjectAltName"] == (("DNS", "localhost"),)
        assert 0 < ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time() <= LIFE
        assert fleet.ssh(host, f"stat -c '%a %U' {PEM}").split() == ["400", "bareforge-agent"]
        assert "PRIVATE" not in fleet.ssh(host, "cat /var/lib/bareforge-certificate/site.cred")
        metric = fleet.ssh(host, "setpriv --reuid=65534 --clear-groups cat /run/bareforge-certificate/metrics.prom")
        assert re.search(r"^bareforge_certificate_end_timestamp_seconds \d+$", metric, re.M)


def test_replaced_by_the_timer_without_a_lost_request(fleet: Fleet) -> None:
    """Also while a deploy runs, which finds nothing else to change."""
    serials: dict[str, set[str]] = {host: set() for host in HOSTS}
    with fleet.witness(*HOSTS, **LOAD) as witness:
        output = fleet.good("deploy.yml", **SITE)
        deadline = time.monotonic() + 2 * LIFE
        while time.monotonic() < deadline and min(map(len, serials.values())) < 3:
            for host in HOSTS:
                serials[host].add(str(served(fleet, host)["serialNumber"]))
            time.sleep(1)
    result = witness.result()
    print(f"certificates {', '.join(str(len(found)) for found in serials.values())}: {result.line}")
    assert lost(result) == [], (result.line, result.details)
    assert result.document["failed"] <= sum(map(len, serials.values())), (result.line, result.details)
    assert min(map(len, serials.values())) >= 3, serials
    changed = set(re.findall(r"^TASK \[(.*)\] \*+$(?:\n(?!TASK).*)*?\nchanged: ", output, re.M))
    assert changed <= {"vault_agent : Get the certificate"}, changed


def test_a_boot_while_vault_is_sealed_has_the_one_from_before(fleet: Fleet, vault: Any) -> None:
    fleet.ssh("app1", "systemctl stop bareforge-certificate.timer")
    before = served(fleet, "app1")["serialNumber"]
    vault.sys.seal()
    try:
        # what a boot finds: nothing in memory, the copy on the disk
        fleet.ssh("app1", "systemctl stop nginx; rm -rf /run/bareforge-certificate; systemctl start nginx")
        now = fleet.ssh("app1", f"openssl x509 -noout -serial -in {PEM}").strip().removeprefix("serial=")
        assert now == before
        assert fleet.ssh("app1", "systemctl is-active nginx").strip() == "active"
    finally:
        unseal(fleet, vault)
    fleet.ssh("app1", "systemctl start bareforge-certificate.timer")
    until(lambda: serial(fleet, "app1") not in ("", before), 60, "a new one is served")


def test_nginx_that_had_none_starts_when_there_is_one(fleet: Fleet, vault: Any) -> None:
    """A host that was made anew while Vault is sealed comes up by itself when it is not any more."""
    vault.sys.seal()
    try:
        fleet.ssh("app1", "systemctl stop bareforge-certificate.timer nginx; rm -rf /run/bareforge-certificate")
        fleet.ssh("app1", "rm /var/lib/bareforge-certificate/site.cred")
        fleet.ssh("app1", "systemctl start nginx", check=False)
        assert fleet.ssh("app1", "systemctl is-active nginx", check=False).strip() == "failed"
        said = fleet.ssh("app1", "journalctl --quiet --output=cat --lines=1 --identifier=bareforge-certificate")
        assert re.search(r"bareforge-agent: Vault at \S+ is sealed; unseal it", said)
        fleet.ssh("app1", "systemctl start bareforge-certificate.timer")
    finally:
        unseal(fleet, vault)
    until(lambda: serial(fleet, "app1") != "", 60, "nginx serves it")
