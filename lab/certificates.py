"""Make the lab's certificate authority and its hosts' certificates: certificates.py STATE_DIRECTORY NAME=ADDRESS...

What is there and still right is kept; one line is printed for each that was made. Files:

    STATE_DIRECTORY/ca.pem, ca.key                         the authority
    STATE_DIRECTORY/certificates/NAME/site.pem, site.key   certificate followed by the authority's, and its key
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
# browsers refuse certificates of more than 398 days
HOST_DAYS = 365
RENEW_DAYS = 30


def keep(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once, so that an interrupted run leaves no half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
        handle.write(content)
    new.replace(path)


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key, or make one if there is none that can be used."""
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        found = None
    if isinstance(found, ec.EllipticCurvePrivateKey) and isinstance(found.curve, ec.SECP256R1):
        return found
    made = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.PrivateFormat.TraditionalOpenSSL
    keep(path, made.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()), 0o600)
    return made


def certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a file."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []


def lasts(found: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether it is this key's certificate and its end is not near."""
    end = found.not_valid_after_utc - datetime.timedelta(days=RENEW_DAYS)
    return found.public_key() == key.public_key() and end > datetime.datetime.now(datetime.UTC)


def named(name: str) -> x509.Name:
    """Return a subject."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def describe(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Begin a certificate with what every one has."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(authority: bool) -> x509.KeyUsage:
    """Return what an authority or a server may use its key for."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def authority(state: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the authority and its key, made if need be."""
    key = private_key(state / "ca.key")
    match certificates(state / "ca.pem"):
        case [found] if lasts(found, key):
            return found, key
    name = named("Bareforge lab")
    # Python 3.13 verifies strictly: without keyUsage the certificate is refused
    made = (
        describe(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    keep(state / "ca.pem", made.public_bytes(serialization.Encoding.PEM), 0o644)
    print("authority")
    return made, key


def names_of(host: str, address: str) -> x509.SubjectAlternativeName:
    """Return the names under which a host is asked."""
    addresses = sorted({ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address(address)}, key=str)
    return x509.SubjectAlternativeName([*map(x509.DNSName, (host, "localhost")), *map(x509.IPAddress, addresses)])


def names_and_issuer(found: x509.Certificate, names: x509.SubjectAlternativeName, issuer: x509.Certificate) -> bool:
    """Whether a certificate has these names and this issuer."""
    try:
        found.verify_directly_issued_by(issuer)
        return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == names
    except (InvalidSignature, ValueError, x509.ExtensionNotFound):
        return False


def issue(directory: Path, host: str, address: str, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey) -> None:
    """Give a host key and certificate, unless it has the right ones."""
    key = private_key(directory / "site.key")
    names = names_of(host, address)
    match certificates(directory / "site.pem"):
        case [found, issuer] if issuer == ca and lasts(found, key) and names_and_issuer(found, names, ca):
            return
    issuer_key = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = (
        describe(named(host), ca.subject, key.public_key(), HOST_DAYS)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    keep(directory / "site.pem", b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (made, ca)), 0o644)
    print(host)


def main(state: Path, hosts: list[str]) -> None:
    """Make what is missing or no longer right."""
    ca, ca_key = authority(state)
    for host in hosts:
        name, _, address = host.partition("=")
        issue(state / "certificates" / name, name, address, ca, ca_key)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
