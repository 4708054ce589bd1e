"""The controller's one way to Vault: a client whose every failure is a single line an operator can act on.

Used by the module vault_object and the action vault_enroll, both of which run on the controller with hvac.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

try:
    import hvac
    import requests
except ImportError:
    HAS_HVAC = False
else:
    HAS_HVAC = True

REQUEST_SECONDS = 30
"""Time limit of one request; verifying a database connection is the slowest thing Vault is asked for."""

KV_UPGRADE_ATTEMPTS = 10
"""How often a write is repeated while a new KV v2 mount prepares itself, half a second apart."""

ABSENT_MOUNT = re.compile(r"^no (secret engine mount|auth engine) at ", re.IGNORECASE)
LOOPBACK = re.compile(r"^http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/?$")


class VaultAccessError(Exception):
    """What is wrong, where, and what to do next, in one line and without any secret value."""


def token_from_environment() -> str:
    """The token in VAULT_TOKEN, else the content of the file that VAULT_TOKEN_FILE names, else nothing.

    The file is for tokens that a `vault agent` sink or a pipeline writes. Raises VaultAccessError if it cannot be
    read.
    """
    token, file = os.environ.get("VAULT_TOKEN", ""), os.environ.get("VAULT_TOKEN_FILE", "")
    if token or not file:
        return token
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise VaultAccessError(
            f"VAULT_TOKEN_FILE names {file}, which cannot be read ({(error.strerror or '').lower()}); "
            "correct it or set VAULT_TOKEN"
        ) from None


class Vault:
    """A Vault client with one token.

    address: URL of Vault; token: may `purpose`, which completes "a token that may ..."; ca_certificate: path
    of a PEM file, or empty for the system's certificates. Raises VaultAccessError when one cannot be used.
    """

    def __init__(self, address: str, token: str, ca_certificate: str, purpose: str) -> None:
        if not HAS_HVAC:
            raise VaultAccessError(f"Python package hvac is missing for {sys.executable}; run scripts/setup")
        if not address:
            raise VaultAccessError("VAULT_ADDR is not set; export the URL of Vault, for example https://vault1:8200")
        if not address.startswith("https://") and not LOOPBACK.match(address):
            raise VaultAccessError(f"VAULT_ADDR {address} would send the token unencrypted; use https://")
        if not token:
            raise VaultAccessError(f"VAULT_TOKEN is not set; export a token of {address} that may {purpose}")
        if ca_certificate and not Path(ca_certificate).is_file():
            raise VaultAccessError(
                f"VAULT_CACERT names {ca_certificate}, which is not a file; "
                "set it to the PEM file of Vault's certificate authority"
            )
        self.address = address.rstrip("/")
        self._client = hvac.Client(
            url=self.address, token=token, verify=ca_certificate or True, timeout=REQUEST_SECONDS
        )
        # Vault's address is meant literally: a proxy of the environment would see the token's destination
        self._client.session.trust_env = False

    @classmethod
    def of_environment(cls, purpose: str) -> Vault:
        """The Vault of VAULT_ADDR and VAULT_CACERT, with the controller's token. Raises VaultAccessError."""
        environment = os.environ
        return cls(
            environment.get("VAULT_ADDR", ""), token_from_environment(), environment.get("VAULT_CACERT", ""), purpose
        )

    def read(self, path: str, version: int | None = None) -> dict[str, Any] | None:
        """Return the `data` of a path, None when nothing is there.

        version: of a KV v2 secret, if not the latest one.
        A deleted version of a KV v2 secret is returned as Vault does: `data` is null, `metadata` says when.
        """
        try:
            query = {} if version is None else {"version": version}
            answer = self._client.adapter.request("get", f"/v1/{path}", params=query)
        except hvac.exceptions.InvalidPath as error:
            gone = error.json.get("data") if isinstance(error.json, dict) else None
            return gone if isinstance(gone, dict) else None
        except hvac.exceptions.InvalidRequest as error:
            if ABSENT_MOUNT.match(reason(error)):
                return None
            raise self._failure(error, "read", path) from None
        except (hvac.exceptions.VaultError, OSError) as error:
            raise self._failure(error, "read", path) from None
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, dict):
            raise VaultAccessError(f"the answer for {path} did not come from Vault; check VAULT_ADDR {self.address}")
        return data

    def write(self, path: str, body: dict[str, Any], wrap_ttl: str | None = None) -> dict[str, Any]:
        """Write body to a path and return Vault's whole answer, empty when it has none."""
        for attempt in range(KV_UPGRADE_ATTEMPTS):
            try:
                answer = self._client.adapter.request("post", f"/v1/{path}", json=body, wrap_ttl=wrap_ttl)
            except hvac.exceptions.InvalidRequest as error:
                if "Upgrading from non-versioned" not in reason(error) or attempt == KV_UPGRADE_ATTEMPTS - 1:
                    raise self._failure(error, "write", path) from None
                time.sleep(0.5)
            except (hvac.exceptions.VaultError, OSError) as error:
                raise self._failure(error, "write", path) from None
            else:
                return answer if isinstance(answer, dict) else {}
        raise AssertionError("the last attempt returns or raises")

    def lease(self, path: str) -> str:
        """Have something made at a path that is leased; returns the lease's id."""
        try:
            answer = self._client.adapter.request("get", f"/v1/{path}")
        except (hvac.exceptions.VaultError, OSError) as error:
            raise self._failure(error, "read", path) from None
        return str(answer["lease_id"])

    def names(self, path: str) -> list[str]:
        """Return the names below a path, none when there are none."""
        try:
            answer = self._client.adapter.request("list", f"/v1/{path}")
        except hvac.exceptions.InvalidPath:
            return []
        except (hvac.exceptions.VaultError, OSError) as error:
            raise self._failure(error, "list", path) from None
        return [str(name) for name in answer["data"]["keys"]]

    def delete(self, path: str) -> None:
        """Delete what is at a path; nothing there is fine."""
        try:
            self._client.adapter.request("delete", f"/v1/{path}")
        except hvac.exceptions.InvalidPath:
            return
        except (hvac.exceptions.VaultError, OSError) as error:
            raise self._failure(error, "delete", path) from None

    def login_role(self, accessor: str) -> str:
        """Return the path of the AppRole role that a token was made by, "auth/MOUNT/role/NAME" in lower case.

        Vault keeps the name so. Empty for other tokens and for one that has ended.
        """
        path = "auth/token/lookup-accessor"
        try:
            answer = self._client.adapter.request("post", f"/v1/{path}", json={"accessor": accessor})
        except hvac.exceptions.Forbidden as error:
            # Vault's answer for an accessor that is gone, too
            if "invalid accessor" in reason(error):
                return ""
            raise self._failure(error, "write", path) from None
        except hvac.exceptions.InvalidPath:
            return ""
        except (hvac.exceptions.VaultError, OSError) as error:
            raise self._failure(error, "write", path) from None
        name = (answer["data"].get("meta") or {}).get("role_name")
        mount = str(answer["data"].get("path") or "").removesuffix("/login")
        return f"{mount}/role/{name}".lower() if name else ""

    def _failure(self, error: Exception, verb: str, path: str) -> VaultAccessError:
        if isinstance(error, hvac.exceptions.Forbidden):
            return self._forbidden(verb, path)
        if isinstance(error, hvac.exceptions.VaultDown) and "sealed" in reason(error):
            return VaultAccessError(f"Vault at {self.address} is sealed; unseal it, then run again")
        if isinstance(error, hvac.exceptions.InvalidPath):
            return VaultAccessError(f"Vault has nothing mounted for {path}; enable the engine first")
        if isinstance(error, hvac.exceptions.VaultError):
            return VaultAccessError(f"Vault at {self.address} refused to {verb} {path}: {reason(error)}")
        return VaultAccessError(transport_failure(error, self.address))

    def _forbidden(self, verb: str, path: str) -> VaultAccessError:
        # 403 means a bad token as well as a missing right; only a valid token can look itself up
        try:
            policies = self._client.adapter.request("get", "/v1/auth/token/lookup-self")["data"]["policies"]
        except hvac.exceptions.VaultError:
            return VaultAccessError(
                f"VAULT_TOKEN is not valid at {self.address} (wrong, expired or revoked); export a fresh one"
            )
        except OSError as error:
            return VaultAccessError(transport_failure(error, self.address))
        return VaultAccessError(
            f"permission denied to {verb} {path} at {self.address}: either the policies of VAULT_TOKEN "
            f"({', '.join(policies)}) do not allow it, or nothing is mounted there yet; see docs/vault.md"
        )


def reason(error: Exception) -> str:
    """Return Vault's own words in one line, without the frame of its error lists."""
    text = " ".join(str(error.args[0] if error.args and error.args[0] else "no reason given").split())
    return re.sub(r"^\d+ errors? occurred: ", "", text).replace("* ", "").strip()


def transport_failure(error: Exception, address: str) -> str:
    """Word a failure to talk to Vault at all."""
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r"certificate verify failed: (.+?) \(_ssl", text)
        why = found.group(1) if found else "the server does not speak TLS as expected"
        return f"cannot trust Vault at {address}: {why}; check VAULT_ADDR and VAULT_CACERT"
    if isinstance(error, requests.exceptions.Timeout):
        return f"Vault at {address} did not answer within {REQUEST_SECONDS} s; check VAULT_ADDR and the network"
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    why = found.group(1).strip() if found else type(error).__name__
    return f"cannot reach Vault at {address}: {why}; check VAULT_ADDR and that Vault runs"
