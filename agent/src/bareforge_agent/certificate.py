"""`certificate`: the site's certificate from Vault's PKI. The key is made here, and Vault never sees it.

One file holds key and chain, so that whoever reads both reads a pair. It is in memory; what outlives a reboot is a copy
that systemd has encrypted, and hands back as the credential `certificate`.
"""

import contextlib
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bareforge_agent import files
from bareforge_agent.config import CertificateRequest, Config, Credential
from bareforge_agent.errors import AgentError, ConfigurationError
from bareforge_agent.vault import Vault

FILE = "site.pem"
CREDENTIAL = "certificate"
# Share of its life after which a certificate is replaced: what is left is the time in which Vault may be away.
RENEW_AFTER = 2 / 3
# Longest common name that X.509 allows; the names that count are the alternative ones.
LONGEST_COMMON_NAME = 64
OPENSSL_TIMEOUT = 30
# The last line of the file, which OpenSSL reads over.
MARK = "# signed at {sign} for {ttl}"
METRIC = """\
# HELP bareforge_certificate_end_timestamp_seconds When the site's certificate ends.
# TYPE bareforge_certificate_end_timestamp_seconds gauge
bareforge_certificate_end_timestamp_seconds {end:.0f}
"""


@dataclass(frozen=True)
class Issued:
    """What a certificate says; seconds since the epoch. mark: where it was signed and for how long, MARK filled in."""

    begin: float
    end: float
    names: frozenset[str]
    mark: str

    def due(self, request: CertificateRequest, now: float) -> bool:
        """Whether it is time for another one, or another one is wanted."""
        other = self.names != frozenset(request.names) or self.mark != marked(request)
        return other or now >= self.begin + RENEW_AFTER * (self.end - self.begin)

    @property
    def until(self) -> str:
        """The end, for people."""
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.end))


def saved_copy(environment: Mapping[str, str] = os.environ) -> str:
    """The certificate with its key that systemd has kept; empty where there is none."""
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    return files.read_text(Path(directory) / CREDENTIAL) if directory else ""


def keep(
    config: Config,
    credential: Callable[[], Credential],
    directory: Path,
    saved: str,
    log: Callable[[str], None],
) -> None:
    """Make sure that directory/site.pem is a certificate that is not due; logs where it had to be made.

    saved: the copy that systemd has kept, empty if there is none. Beside the certificate `metrics.prom` says when it
    ends. Raises AgentError, and leaves the certificate that there is.
    """
    request = _requested(config)
    file = directory / FILE
    found = read(files.read_text(file))
    if found is None and (restored := read(saved)) is not None:
        files.write(file, saved, files.STATE_MODE)
        found = restored
        log(f"took up the certificate from before, valid until {found.until}")
    if found is not None:
        _publish(directory, found)
        if not found.due(request, time.time()):
            return
    try:
        issued = _renew(config, request, credential, file)
    except AgentError as error:
        if found is not None:
            log(f"the certificate in use is valid until {found.until}")
        raise error from None
    _publish(directory, issued)
    log(f"got a certificate for {', '.join(request.names)}, valid until {issued.until}")


def prove(vault: Vault, request: CertificateRequest) -> None:
    """Have a certificate signed that nobody uses; raises AgentError."""
    vault.sign(request.sign, _signing_request(_make_key(), request.names), request.ttl)


def read(text: str) -> Issued | None:
    """What the first certificate of a PEM text says; None where there is none."""
    if "-----BEGIN CERTIFICATE-----" not in text:
        return None
    command = ["x509", "-noout", "-dates", "-ext", "subjectAltName"]
    try:
        lines = _openssl(command, text).splitlines()
    except AgentError:
        return None
    dates = dict(line.split("=", 1) for line in lines if line.startswith("not"))
    names = [part.strip().removeprefix("DNS:") for line in lines if "DNS:" in line for part in line.split(",")]
    return Issued(
        begin=float(ssl.cert_time_to_seconds(dates["notBefore"])),
        end=float(ssl.cert_time_to_seconds(dates["notAfter"])),
        names=frozenset(names),
        mark=text.rstrip().rpartition("\n")[2],
    )


def marked(request: CertificateRequest) -> str:
    """The line that says what was asked for."""
    return MARK.format(sign=request.sign, ttl=request.ttl)


def _requested(config: Config) -> CertificateRequest:
    if config.certificate is None:
        raise ConfigurationError("the configuration names no certificate; set vault_agent_certificate")
    return config.certificate


def _renew(config: Config, request: CertificateRequest, credential: Callable[[], Credential], file: Path) -> Issued:
    vault = Vault(config)
    key = _make_key()
    vault.login(credential())
    try:
        chain = vault.sign(request.sign, _signing_request(key, request.names), request.ttl)
    finally:
        # it ends by itself
        with contextlib.suppress(AgentError):
            vault.revoke_token()
    new = file.with_name(f"{file.name}.signed")
    text = f"{key}{chain}{marked(request)}\n"
    files.write(new, text, files.STATE_MODE)
    issued = read(text)
    try:
        # as nginx will: key and certificate belong together
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(new)
    except ssl.SSLError as error:
        new.unlink()
        raise _unusable(request, f"does not fit its key ({error.reason})") from None
    if issued is None or issued.due(request, time.time()):
        new.unlink()
        raise _unusable(request, "has other names, or ends at once")
    new.replace(file)
    return issued


def _unusable(request: CertificateRequest, why: str) -> AgentError:
    return ConfigurationError(
        f"the certificate that Vault has signed at {request.sign} {why}; "
        "correct the PKI role, or the clock of this host"
    )


def _make_key() -> str:
    return _openssl(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])


def _signing_request(key: str, names: tuple[str, ...]) -> str:
    subject = f"/CN={names[0]}" if len(names[0]) <= LONGEST_COMMON_NAME else "/"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = ["req", "-new", "-key", "/dev/stdin", "-subj", subject, "-addext", f"subjectAltName={alternatives}"]
    return _openssl(command, key)


def _openssl(arguments: list[str], given: str = "") -> str:
    """What openssl says to a text on its standard input: no key in an argument or a file. Raises ConfigurationError."""
    try:
        done = subprocess.run(
            ["openssl", *arguments],  # noqa: S607 (that of the unit's PATH)
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=OPENSSL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run openssl: {type(error).__name__}; apt-get install openssl") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigurationError(f"openssl {arguments[0]} failed: {last}; correct names of the certificate")
    return done.stdout


def _publish(directory: Path, issued: Issued) -> None:
    files.publish(directory, {"metrics.prom": METRIC.format(end=issued.end)})
