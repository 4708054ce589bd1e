"""The calls of Vault that the agent makes, and what each of their failures means.

hvac raises `VaultError` for answers and `requests` exceptions for transport; both become one of the errors
of `bareforge_agent.errors`, with a text that says what to do.
"""

import errno
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import hvac
import requests
import urllib3.exceptions
from hvac import exceptions

from bareforge_agent.config import Config, Credential, KvSetting
from bareforge_agent.errors import (
    ENROLL,
    AgentError,
    EnrolmentError,
    PathError,
    TokenLostError,
    UnavailableError,
)

# Seconds for one call. Vault answers in milliseconds; creating a database user may take a few seconds.
CALL_TIMEOUT = 10


@dataclass(frozen=True)
class Token:
    """A token and its time to live: `ttl` seconds from now (0: no end), `full` seconds when it was made."""

    value: str
    ttl: float
    full: float
    renewable: bool

    def __repr__(self) -> str:
        return f"Token(ttl={self.ttl}, renewable={self.renewable})"


@dataclass(frozen=True)
class DatabaseCredentials:
    """Credentials of one database path. `lease_id` is empty for static roles; `ttl` in seconds."""

    username: str
    password: str
    lease_id: str
    ttl: float
    renewable: bool

    def __repr__(self) -> str:
        return f"DatabaseCredentials(username={self.username!r}, ttl={self.ttl})"


class Vault:
    """A client of one Vault server. Not to be carried across a fork: it holds a connection."""

    def __init__(self, config: Config, token: str = "") -> None:
        self._address = config.address
        self._mount = config.approle_mount
        self._ca_certificate = config.ca_certificate
        session = requests.Session()
        # Neither proxies nor CA bundles from the environment; and hvac ignores its own `verify` argument
        # when it is given a session.
        session.trust_env = False
        session.verify = str(config.ca_certificate) if config.ca_certificate else True
        # An empty token, since with None hvac looks into VAULT_TOKEN and ~/.vault-token.
        client: Any = hvac.Client
        self._client = client(url=config.address, token=token, session=session, timeout=CALL_TIMEOUT)

    def login(self, credential: Credential) -> Token:
        """Log in and use the token from now on; raises EnrolmentError when Vault refuses."""
        if credential.token:
            return self._use(credential.token)
        try:
            answer = self._client.auth.approle.login(
                role_id=credential.role_id, secret_id=credential.secret_id, mount_point=self._mount
            )
        except (exceptions.VaultError, OSError) as error:
            if isinstance(error, exceptions.Forbidden) and self._can_log_in():
                raise self._locked_out() from None
            raise self._login_error(error) from None
        auth = answer["auth"]
        ttl = float(auth["lease_duration"])
        try:
            self.look_up_token()
        except TokenLostError:
            raise EnrolmentError(
                "Vault accepted the AppRole login but refuses its token at once; "
                "correct token_bound_cidrs of the role, or the host's route to Vault"
            ) from None
        return Token(auth["client_token"], ttl, ttl, bool(auth["renewable"]))

    def _can_log_in(self) -> bool:
        """Whether there is an AppRole mount to log in at: it refuses an identity that nobody has in other words."""
        # another one each time: what is refused again and again would be locked out in its turn
        nobody = str(uuid.uuid4())
        try:
            self._client.auth.approle.login(role_id=nobody, secret_id=nobody, mount_point=self._mount)
        except exceptions.InvalidRequest:
            return True
        except (exceptions.VaultError, OSError):
            return False
        return True

    def _locked_out(self) -> AgentError:
        return UnavailableError(
            f"Vault at {self._address} has locked this AppRole identity out after too many refused logins; "
            "find out what sent them, then wait (15 min by default) or unlock it: sys/locked-users"
        )

    def _use(self, token: str) -> Token:
        self._client.token = token
        try:
            return self.look_up_token()
        except TokenLostError:
            raise EnrolmentError(
                f"Vault at {self._address} does not accept VAULT_TOKEN; log in again, then: "
                "export VAULT_TOKEN=$(vault print token)"
            ) from None

    def look_up_token(self) -> Token:
        """Return what is known of the token in use; raises TokenLostError when Vault does not accept it."""
        try:
            data = self._client.auth.token.lookup_self()["data"]
        except exceptions.Forbidden:
            raise TokenLostError(f"Vault at {self._address} does not accept the token; {ENROLL}") from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        full = float(data.get("period") or data.get("creation_ttl") or 0)
        return Token(self._client.token, float(data["ttl"]), full, bool(data.get("renewable")))

    def renew_token(self, token: Token) -> Token:
        """Renew the token in use and return it; its new `ttl` may be short when its end is near.

        Raises TokenLostError when it cannot be renewed at all.
        """
        try:
            auth = self._client.auth.token.renew_self()["auth"]
        except (exceptions.Forbidden, exceptions.InvalidRequest):
            raise TokenLostError(f"Vault at {self._address} does not renew the token; {ENROLL}") from None
        except exceptions.InternalServerError as error:
            if "cannot renew" in str(error):
                raise TokenLostError(f"the token has reached its longest life; {ENROLL}") from None
            raise self._general_error(error) from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        return Token(auth["client_token"], float(auth["lease_duration"]), token.full, bool(auth["renewable"]))

    def revoke_token(self) -> None:
        """Revoke the token in use with all credentials that it was given; raises TokenLostError if it has ended."""
        try:
            self._client.auth.token.revoke_self()
        except exceptions.Forbidden:
            raise TokenLostError(f"Vault at {self._address} does not accept the token; {ENROLL}") from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None

    def read_kv(self, setting: KvSetting) -> dict[str, Any]:
        """Return the keys and values of the secret that `setting` is in; raises PathError."""
        what = f"{setting.place} (for {setting.name})"
        which = "the latest version" if setting.version is None else f"version {setting.version}"
        try:
            answer = self._client.secrets.kv.v2.read_secret_version(
                path=setting.path, version=setting.version, mount_point=setting.mount, raise_on_deleted_version=False
            )
        except exceptions.InvalidPath as error:
            # of a version that was destroyed without having been deleted first there is still this much
            answer = error.json if isinstance(error.json, dict) else {}
            if not (answer.get("data") or {}).get("metadata"):
                raise self._no_secret(setting) from None
        except exceptions.Forbidden:
            raise self._denied(
                f"{setting.place} (for {setting.name})", f"{setting.mount}/data/{setting.path}"
            ) from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        data, metadata = answer["data"].get("data"), answer["data"].get("metadata", {})
        if data is None and metadata.get("destroyed"):
            raise PathError(
                f"{which} of {what} is destroyed; write a new one: vault kv put {setting.place} {setting.key}=..."
            )
        if not isinstance(data, dict):
            version = metadata.get("version")
            raise PathError(
                f"{which} of {what} is deleted; restore it: vault kv undelete -versions={version} {setting.place}"
            )
        return data

    def _no_secret(self, setting: KvSetting) -> PathError:
        what = f"{setting.place} (for {setting.name})"
        if setting.version is not None:
            return PathError(
                f"there is no version {setting.version} of {what}; correct version, or leave it out for the latest one"
            )
        return PathError(f"there is no secret {what}; write it: vault kv put {setting.place} {setting.key}=...")

    def read_database(self, path: str) -> DatabaseCredentials:
        """Return new credentials from `path`; raises PathError."""
        try:
            answer = self._client.read(path)
        except exceptions.Forbidden:
            raise self._denied(path, path) from None
        except exceptions.InvalidRequest as error:
            if "unknown role" in str(error):
                raise self._no_database_path(path) from None
            raise self._no_credentials(path, error) from None
        except exceptions.InternalServerError as error:
            raise self._no_credentials(path, error) from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        if answer is None:
            raise self._no_database_path(path)
        data = answer.get("data") or {}
        if not (isinstance(data.get("username"), str) and isinstance(data.get("password"), str)):
            raise PathError(
                f"{path} does not give a username and a password; "
                "name a path of the database engine, such as database/creds/NAME"
            )
        return DatabaseCredentials(
            username=data["username"],
            password=data["password"],
            lease_id=str(answer.get("lease_id") or ""),
            ttl=float(answer.get("lease_duration") or 0),
            renewable=bool(answer.get("renewable")),
        )

    def renew_lease(self, lease_id: str) -> float | None:
        """Renew a lease; returns its new time to live in seconds, or None when it cannot be renewed."""
        try:
            return float(self._client.sys.renew_lease(lease_id)["lease_duration"])
        except (exceptions.InvalidRequest, exceptions.InvalidPath):
            return None
        except exceptions.Forbidden:
            self.look_up_token()
            return None
        except exceptions.InternalServerError as error:
            if "cannot renew" in str(error):
                return None
            raise self._general_error(error) from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None

    def has_lease(self, lease_id: str) -> bool:
        """Whether a lease exists. Where the policy does not allow to ask, it is believed to."""
        try:
            self._client.sys.read_lease(lease_id)
        except (exceptions.InvalidRequest, exceptions.InvalidPath):
            return False
        except exceptions.Forbidden:
            self.look_up_token()
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        return True

    def revoke_lease(self, lease_id: str) -> None:
        """End a lease, and with it its user of the database; one that has ended already is fine. Raises PathError."""
        try:
            self._client.sys.revoke_lease(lease_id)
        except exceptions.InvalidPath:
            return
        except exceptions.InvalidRequest as error:
            if "lease not found" in str(error) or "invalid lease" in str(error):
                return
            raise PathError(
                f"Vault at {self._address} cannot revoke it: {_one_line(error)}; "
                "correct revocation_statements of the database role, or the rights of Vault's own user"
            ) from None
        except exceptions.Forbidden:
            raise self._denied("sys/leases/revoke", "sys/leases/revoke", "update") from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None

    def sign(self, path: str, request: str, ttl: str) -> str:
        """Have a certificate signed; returns it with its chain, PEM. request: PEM. Raises PathError."""
        try:
            answer = self._client.write_data(path, data={"csr": request, "ttl": ttl, "format": "pem"})
        except exceptions.Forbidden:
            raise self._denied(path, path, "update") from None
        except exceptions.InvalidPath:
            raise PathError(
                f"there is no PKI engine at {path}; enable it in Vault or correct sign of the certificate"
            ) from None
        except exceptions.InvalidRequest as error:
            if "unknown role" in str(error):
                raise PathError(f"there is no PKI role at {path}; create it: playbooks/vault.yml") from None
            raise PathError(
                f"Vault does not sign the certificate at {path}: {'; '.join(error.errors) or _one_line(error)}; "
                "correct names or ttl of the certificate, or the PKI role"
            ) from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        data = answer["data"]
        return "\n".join([data["certificate"], *(data.get("ca_chain") or [data["issuing_ca"]])]) + "\n"

    def wrapping_path(self, wrap_token: str) -> str:
        """Return the path whose answer the wrapping token holds; needs no token and does not spend it."""
        try:
            answer = self._client.write_data("sys/wrapping/lookup", data={"token": wrap_token})
        except (exceptions.InvalidRequest, exceptions.Forbidden):
            raise self._wrap_refused() from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        return str(answer["data"]["creation_path"])

    def unwrap(self) -> dict[str, Any]:
        """Return what the wrapping token, which must be the token in use, holds. Spends it."""
        try:
            data: dict[str, Any] = self._client.sys.unwrap()["data"]
        except (exceptions.InvalidRequest, exceptions.Forbidden):
            raise self._wrap_refused() from None
        except (exceptions.VaultError, OSError) as error:
            raise self._general_error(error) from None
        return data

    def _wrap_refused(self) -> AgentError:
        return EnrolmentError(
            "Vault refuses the wrapping token: used, expired or altered; "
            f"if it was not too old, treat it as theft and revoke the role's secret IDs, then {ENROLL}"
        )

    def _login_error(self, error: Exception) -> AgentError:
        text = _one_line(error)
        if isinstance(error, exceptions.InvalidRequest):
            if "CIDR" in text:
                found = re.search(r'source address "([^"]*)"', text)
                source = f" {found[1]}" if found else ""
                return EnrolmentError(
                    f"Vault refused the AppRole login: it sees this host at an address{source} that the "
                    "role or its secret ID is not bound to; correct the bound addresses in Vault, "
                    "or the host's route to it"
                )
            if "HTTP request to an HTTPS server" in text:
                return self._general_error(error)
            return EnrolmentError(f"Vault refused the AppRole login (invalid role or secret ID); {ENROLL}")
        if isinstance(error, exceptions.Forbidden | exceptions.InvalidPath):
            return EnrolmentError(
                f"Vault refused the AppRole login: there is no auth/{self._mount} to log in at; "
                "check approle_mount, or enable it in Vault"
            )
        return self._general_error(error)

    def _denied(self, what: str, path: str, capability: str = "read") -> AgentError:
        """Return the meaning of a 403 on `path`: Vault gives the same answer for a token that is bad."""
        try:
            self.look_up_token()
        except AgentError as error:
            return error
        return PathError(f"permission denied on {what}; let the policy of this host's AppRole role {capability} {path}")

    def _no_database_path(self, path: str) -> AgentError:
        return PathError(f"there is no database role at {path}; create it in Vault or correct the path")

    def _no_credentials(self, path: str, error: Exception) -> AgentError:
        return UnavailableError(
            f"Vault at {self._address} cannot make database credentials at {path}: {_one_line(error)}; "
            "check the database server and Vault's connection to it"
        )

    def _general_error(self, error: Exception) -> AgentError:
        at = f"Vault at {self._address}"
        if isinstance(error, exceptions.VaultDown) and "sealed" in str(error):
            return UnavailableError(f"{at} is sealed; unseal it, the agent goes on by itself")
        if isinstance(error, exceptions.VaultNotInitialized):
            return UnavailableError(f"{at} is not initialized; initialize and unseal it")
        if isinstance(error, exceptions.InvalidRequest) and "HTTPS server" in str(error):
            return self._tls_only()
        if isinstance(error, exceptions.VaultError):
            return UnavailableError(f"{at} answered with an error: {_one_line(error)}; see Vault's log")
        if isinstance(error, requests.exceptions.SSLError):
            return UnavailableError(self._tls_error(str(error)))
        if isinstance(error, requests.exceptions.Timeout):
            return UnavailableError(
                f"{at} did not answer within {CALL_TIMEOUT} s; "
                "check vault_agent_address, firewalls on the way and Vault's log"
            )
        causes = list(_causes(error))
        if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
            return UnavailableError(
                f"cannot reach {at}: the name {urlsplit(self._address).hostname} does not resolve; "
                "check vault_agent_address and the name service of the host"
            )
        numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
        hung_up = any(isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in causes)
        if hung_up and self._refuses_plain_http():
            return self._tls_only()
        reasons = {
            errno.ECONNREFUSED: "connection refused",
            errno.ECONNRESET: "connection reset",
            errno.EHOSTUNREACH: "no route to host",
            errno.ENETUNREACH: "network is unreachable",
        }
        reason = next((reasons[number] for number in numbers if number in reasons), "the connection failed")
        return UnavailableError(
            f"cannot reach {at}: {reason}; check vault_agent_address and that the host may connect to it"
        )

    def _tls_only(self) -> AgentError:
        return UnavailableError(f"Vault at {self._address} speaks TLS only; use https:// in vault_agent_address")

    def _refuses_plain_http(self) -> bool:
        """Whether it says so to a request without a body: while one with a body is sent, it may hang up already."""
        try:
            self._client.sys.read_seal_status()
        except (exceptions.VaultError, OSError) as error:
            return "HTTPS server" in str(error)
        return False

    def _tls_error(self, text: str) -> str:
        at = f"Vault at {self._address}"
        trusted = self._ca_certificate or "the system's CA store"
        if "Hostname mismatch" in text or "IP address mismatch" in text or "doesn't match" in text:
            return f"the TLS certificate of {at} is for another name; check vault_agent_address"
        if "certificate has expired" in text:
            return f"the TLS certificate of {at} has expired; renew it, or set the clock of this host"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            found = re.search(r"verify failed: ([^(]*?)\s*\(", text)
            detail = f" ({found[1]})" if found else ""
            return f"the TLS certificate of {at} is not trusted by {trusted}{detail}; check vault_agent_ca_certificate"
        return f"{at} does not speak TLS as expected; check vault_agent_address, scheme and port"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("1 error occurred: * ") or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those that it was made from, as far as `requests` and urllib3 keep them."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        linked = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        pending += [found for found in linked if isinstance(found, BaseException)]
