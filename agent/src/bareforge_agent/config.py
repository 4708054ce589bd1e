"""The agent's configuration file and credential, validated strictly."""

import json
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bareforge_agent.errors import ENROLL, ConfigurationError, EnrolmentError

DEFAULT_POLL_SECONDS = 15.0
DEFAULT_GRACE_SECONDS = 60.0
SET_NAME = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
"""Name of a set, and of its directory in $RUNTIME_DIRECTORY."""
TOKEN_FILE = "token"  # noqa: S105 (a file's name)
"""The one file of the agent's own, in the same directory, that a set's name could collide with."""
SIGN_PATH = re.compile(r"[^/]+(/[^/]+)*/sign/[^/]+", re.ASCII)
"""A path of Vault's PKI that signs a request with a key that Vault never sees."""
HOST_NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z]([a-z0-9-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
"""A host name of a certificate, also with a wildcard; no address, whose last part would begin with a digit."""
DURATION = re.compile(r"[1-9][0-9]*[smhd]", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class KvSetting:
    """A setting that is one key of a KV v2 secret; `template`, if any, is filled with {value} as it is.

    version: of the secret; None is the latest one.
    """

    name: str
    mount: str
    path: str
    key: str
    template: str | None = None
    version: int | None = None

    @property
    def place(self) -> str:
        """The secret as people write it on the command line, "MOUNT/PATH"."""
        return f"{self.mount}/{self.path}"

    def render(self, value: str) -> str:
        """Return the text of the setting."""
        return value if self.template is None else self.template.format(value=value)


@dataclass(frozen=True)
class DatabaseSetting:
    """A setting made of database credentials; `template` is filled with URL-quoted {username}, {password}."""

    name: str
    path: str
    template: str

    def render(self, username: str, password: str) -> str:
        """Return the text of the setting."""
        return self.template.format(username=quote(username, safe=""), password=quote(password, safe=""))


@dataclass(frozen=True)
class SettingSet:
    """Settings that are kept together in the directory `name`, as one release knows them."""

    name: str
    kv: tuple[KvSetting, ...]
    database: tuple[DatabaseSetting, ...]

    @property
    def database_paths(self) -> frozenset[str]:
        """The Vault paths of the credentials that the set is made of."""
        return frozenset(setting.path for setting in self.database)


@dataclass(frozen=True)
class CertificateRequest:
    """The site's certificate: `sign` is the path of Vault's PKI that signs it, `ttl` how long it is to live ("72h")."""

    sign: str
    names: tuple[str, ...]
    ttl: str


@dataclass(frozen=True)
class Config:
    """What the configuration file says.

    poll_seconds: how often KV secrets are read again, and leases asked for. grace_seconds: how long a user of the
    database stays that was replaced, so that its readers can move; at most a quarter of its lease. certificate: None
    where the host needs none.
    """

    address: str
    ca_certificate: Path | None
    approle_mount: str
    sets: tuple[SettingSet, ...]
    poll_seconds: float = DEFAULT_POLL_SECONDS
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    certificate: CertificateRequest | None = None

    @property
    def database_paths(self) -> frozenset[str]:
        """The Vault paths of all sets' credentials; one that several sets name is one user of the database."""
        return frozenset(path for each in self.sets for path in each.database_paths)

    @property
    def count(self) -> int:
        """How many settings there are, in all sets together."""
        return sum(len(each.kv) + len(each.database) for each in self.sets)


@dataclass(frozen=True)
class Credential:
    """The host's AppRole identity; or `token`, with which somebody has logged in already."""

    role_id: str
    secret_id: str
    token: str = ""

    def __repr__(self) -> str:
        return "Credential(***)"


def read_config(file: Path) -> Config:
    """Return the configuration in `file`; raises ConfigurationError."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {_reason(error)}; check --config") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON ({error}); correct it") from None
    return _Reader(file).config(document)


def read_credential(environment: Mapping[str, str] = os.environ) -> Credential:
    """Return the credential `approle` that systemd has decrypted for this unit; raises EnrolmentError."""
    directory = environment.get("CREDENTIALS_DIRECTORY", "")
    file = Path(directory) / "approle"
    if not directory or not file.exists():
        raise EnrolmentError(f"this host has no AppRole credential; {ENROLL}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        role_id, secret_id = document["role_id"], document["secret_id"]
    except OSError as error:
        raise EnrolmentError(f"cannot read the AppRole credential: {_reason(error)}; {ENROLL}") from None
    except (ValueError, KeyError, TypeError):
        role_id = secret_id = None
    if not (isinstance(role_id, str) and role_id and isinstance(secret_id, str) and secret_id):
        raise EnrolmentError(f"the AppRole credential is not what enrolment writes; {ENROLL}")
    return Credential(role_id, secret_id)


class _Reader:
    """Turns the parsed document into a Config; every refusal names the file and the place in it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def config(self, document: Any) -> Config:
        known = {"address", "ca_certificate", "approle_mount", "sets", "poll_seconds", "grace_seconds", "certificate"}
        self._keys(document, "the file", known, required={"address", "approle_mount", "sets"})
        sets = document["sets"]
        if not isinstance(sets, dict):
            raise self._wrong("sets", "is not an object {set name: settings}")
        if not sets:
            raise self._wrong("sets", "is empty", "add at least one set")
        return Config(
            address=self._address(document["address"]),
            ca_certificate=self._ca_certificate(document.get("ca_certificate", "")),
            approle_mount=self._text(document["approle_mount"], "approle_mount").strip("/"),
            sets=tuple(self._set(name, settings) for name, settings in sets.items()),
            poll_seconds=self._seconds(document, "poll_seconds", DEFAULT_POLL_SECONDS),
            grace_seconds=self._seconds(document, "grace_seconds", DEFAULT_GRACE_SECONDS),
            certificate=self._certificate(document["certificate"]) if "certificate" in document else None,
        )

    def _certificate(self, value: Any) -> CertificateRequest:
        keys = {"sign", "names", "ttl"}
        self._keys(value, "certificate", keys, required=keys)
        sign = self._text(value["sign"], "certificate.sign").strip("/")
        if not SIGN_PATH.fullmatch(sign):
            raise self._wrong("certificate.sign", "is not MOUNT/sign/ROLE, such as pki/sign/forge")
        names = value["names"]
        if not isinstance(names, list) or not names:
            raise self._wrong("certificate.names", "is not a list of names, or is empty", "name at least one")
        for name in names:
            if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
                raise self._wrong("certificate.names", f"has {name!r}, which is no host name")
        ttl = self._text(value["ttl"], "certificate.ttl")
        if not DURATION.fullmatch(ttl):
            raise self._wrong("certificate.ttl", "is not a duration, such as 72h")
        return CertificateRequest(sign, tuple(names), ttl)

    def _set(self, name: str, settings: Any) -> SettingSet:
        where = f"sets.{name}"
        if not SET_NAME.fullmatch(name):
            raise self._wrong(where, "is not named with 1 to 64 of the characters a-z and 0-9", "rename the set")
        if name == TOKEN_FILE:
            raise self._wrong(where, "has the name of a file of the agent's own", "rename the set")
        if not isinstance(settings, dict):
            raise self._wrong(where, "is not an object {setting name: source}")
        parsed = [self._setting(f"{where}.{setting}", setting, source) for setting, source in settings.items()]
        return SettingSet(
            name=name,
            kv=tuple(setting for setting in parsed if isinstance(setting, KvSetting)),
            database=tuple(setting for setting in parsed if isinstance(setting, DatabaseSetting)),
        )

    def _setting(self, where: str, name: str, source: Any) -> KvSetting | DatabaseSetting:
        if not name or "=" in name or "\0" in name:
            raise self._wrong(where, "cannot be the name of an environment variable")
        if isinstance(source, dict) and "database" in source:
            self._keys(source, where, {"database", "template"}, required={"database", "template"})
            path = self._text(source["database"], f"{where}.database").strip("/")
            fields = {"username", "password"}
            return DatabaseSetting(name, path, self._template(source["template"], where, fields))
        self._keys(source, where, {"kv", "key", "template", "version"}, required={"kv", "key"})
        mount, _, path = self._text(source["kv"], f"{where}.kv").strip("/").partition("/")
        if not path:
            raise self._wrong(f"{where}.kv", "is not MOUNT/PATH, such as secret/forge")
        template = self._template(source["template"], where, {"value"}) if "template" in source else None
        key = self._text(source["key"], f"{where}.key")
        return KvSetting(name, mount, path, key, template, self._version(source.get("version"), f"{where}.version"))

    def _version(self, value: Any, where: str) -> int | None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self._wrong(where, "is not the number of a version")
        return value

    def _template(self, value: Any, where: str, fields: set[str]) -> str:
        where = f"{where}.template"
        template = self._text(value, where)
        shown = " and ".join(f"{{{field}}}" for field in sorted(fields, reverse=True))
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError:
            raise self._wrong(where, "has a single brace", "write {{ or }} for a brace of its own") from None
        used = {(field, spec, conversion) for _, field, spec, conversion in parts if field is not None}
        if used != {(field, "", None) for field in fields}:
            raise self._wrong(where, f"does not use exactly {shown}")
        return template

    def _address(self, value: Any) -> str:
        address = self._text(value, "address").rstrip("/")
        parts = urlsplit(address)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path:
            raise self._wrong("address", f"is not a URL such as https://infra1:8200: {address!r}")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise self._wrong("address", "is http://, which would send secrets in clear", "use https://")
        return address

    def _ca_certificate(self, value: Any) -> Path | None:
        if value == "":
            return None
        file = Path(self._text(value, "ca_certificate"))
        try:
            file.read_bytes()
        except OSError as error:
            raise self._wrong("ca_certificate", f"cannot be read, {file}: {_reason(error)}") from None
        return file

    def _seconds(self, document: Any, where: str, default: float) -> float:
        value = document.get(where, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86400:
            raise self._wrong(where, "is not a number of seconds between 0 and 86400")
        return float(value)

    def _keys(self, value: Any, where: str, known: set[str], required: set[str]) -> None:
        if not isinstance(value, dict):
            raise self._wrong(where, "is not an object")
        for key in value:
            if key not in known:
                raise self._wrong(where, f"has the unknown key {key!r}", f"known: {', '.join(sorted(known))}")
        for key in sorted(required):
            if key not in value:
                raise self._wrong(where, f"lacks the key {key!r}", "add it")

    def _text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(where, "is not a text, or is empty")
        return value

    def _wrong(self, where: str, what: str, cure: str = "correct it") -> ConfigurationError:
        return ConfigurationError(f"{self._file}: {where} {what}; {cure}")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
