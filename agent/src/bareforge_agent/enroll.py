"""Enrolment: turn a wrapped secret ID into the host's encrypted credential, without it touching a disk."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bareforge_agent.config import Config, Credential
from bareforge_agent.errors import ENROLL, ConfigurationError, EnrolmentError
from bareforge_agent.vault import Vault

SYSTEMD_CREDS = ("systemd-creds",)


def enroll(config: Config, request: str, destination: Path, systemd_creds: Sequence[str] = SYSTEMD_CREDS) -> None:
    """Write the encrypted credential of this host to `destination` (mode 0600).

    `request` is JSON {"role_id", "wrap_token", "creation_path"}. The wrapping token must hold the answer of
    exactly `creation_path`: a token that somebody else has made and put in its place would unwrap just as
    well, but it was made at another path. The secret ID is proven by a login before it is stored.
    `systemd_creds` is the command that encrypts. Raises AgentError.
    """
    role_id, wrap_token, creation_path = _parse(request)
    # Without a token: used as client token for anything else than unwrapping, the wrapping token is spent.
    found = Vault(config).wrapping_path(wrap_token)
    if found != creation_path:
        raise EnrolmentError(
            f"the wrapping token was not made by that AppRole role: possible theft; it was made at {found!r} "
            f"instead of {creation_path!r}, find out by whom, then {ENROLL}"
        )
    answer = Vault(config, token=wrap_token).unwrap()
    if answer.get("secret_id_num_uses"):
        raise EnrolmentError(
            "the secret IDs of this AppRole role can be used a limited number of times only, "
            f"and the agent logs in again after an outage; set secret_id_num_uses to 0, then {ENROLL}"
        )
    credential = Credential(role_id, str(answer.get("secret_id") or ""))
    if not credential.secret_id:
        raise EnrolmentError(f"the wrapping token holds no secret ID; {ENROLL}")
    proof = Vault(config)
    proof.login(credential)
    proof.revoke_token()
    _encrypt(credential, destination, systemd_creds)


def _parse(request: str) -> tuple[str, str, str]:
    names = ("role_id", "wrap_token", "creation_path")
    try:
        document = json.loads(request)
    except ValueError:
        document = None
    if not isinstance(document, dict) or set(document) != set(names):
        raise ConfigurationError(f"standard input is not a JSON object with {', '.join(names)}; send exactly that")
    values = [document[name] for name in names]
    if not all(isinstance(value, str) and value for value in values):
        raise ConfigurationError(f"{', '.join(names)} on standard input must be texts; send exactly that")
    return values[0], values[1], values[2]


def _encrypt(credential: Credential, destination: Path, systemd_creds: Sequence[str]) -> None:
    """Encrypt beside the destination and rename, so that a failure leaves the old credential in force."""
    plain = json.dumps({"role_id": credential.role_id, "secret_id": credential.secret_id})
    encrypted = destination.with_name(f".{destination.name}.new")
    command = [*systemd_creds, "encrypt", "--name=approle", "-", str(encrypted)]
    encrypted.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, input=plain, capture_output=True, text=True, check=False, umask=0o077)
        if done.returncode != 0:
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise EnrolmentError(f"{systemd_creds[0]} did not encrypt the credential: {reason}; then {ENROLL}")
        encrypted.chmod(0o600)
        encrypted.replace(destination)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise EnrolmentError(
            f"cannot write the credential {destination} with {systemd_creds[0]}: {reason}; correct that, then {ENROLL}"
        ) from None
    finally:
        encrypted.unlink(missing_ok=True)
