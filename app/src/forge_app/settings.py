"""The settings of the service: environment variables FORGE_*, checked before anything else happens.

No file is read: a stray `.env` in a working directory must not be able to change a production process.
"""

import difflib
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PostgresDsn,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "FORGE_"
SECRETS = frozenset({"database_url", "secret_key"})


class SettingsError(Exception):
    """The settings are unusable. The message is one line, names every wrong variable and no secret value."""


def _refuse(reason: str) -> PydanticCustomError:
    # the template must be a literal for the type checker; {reason} is filled in by pydantic
    return PydanticCustomError("forge_rule", "{reason}", {"reason": reason})


def _check_scheme(value: object) -> object:
    """Refuse a URL for another driver, which pydantic's own type would let through."""
    if not str(value).startswith(("postgresql://", "postgresql+asyncpg://")):
        raise _refuse("must start with postgresql:// or postgresql+asyncpg://")
    return value


def _for_asyncpg(url: PostgresDsn) -> PostgresDsn:
    """Return the URL with the driver written out; refuse what asyncpg would only refuse when it connects."""
    if len(url.hosts()) != 1:
        raise _refuse("must name exactly one server")
    if not (url.path or "").strip("/"):
        raise _refuse("must name a database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if "sslmode" in parse_qs(url.query or "", keep_blank_values=True):
        raise _refuse("contains sslmode, which asyncpg does not know; write ssl=require instead")
    return PostgresDsn(str(url).replace("postgresql://", "postgresql+asyncpg://", 1))


class Settings(BaseSettings):
    """Settings of one process. Fields are environment variables in upper case after FORGE_.

    `environment` comes first because the rules of later fields look at it.
    """

    # hide_input_in_errors and repr=False: neither an error nor a repr may print a value
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "staging", "production"]
    """Compared with the database's own marker at start."""

    database_url: Annotated[PostgresDsn, BeforeValidator(_check_scheme), AfterValidator(_for_asyncpg)] = Field(
        repr=False
    )
    """postgresql://USER:PASSWORD@HOST:PORT/DATABASE; becomes postgresql+asyncpg://."""

    secret_key: SecretStr = Field(min_length=32)
    """Key for what the service signs; demanded from the first release on, so that no default can creep in."""

    pool_size: int = Field(default=5, ge=1, le=50)
    """Connections that each worker keeps open. 5 x 4 workers x 2 generations during a hand-over = 40 of
    PostgreSQL's default max_connections of 100."""

    pool_max_overflow: int = Field(default=0, ge=0, le=50)
    """Extra connections under load. 0: the pool is then the whole budget, and a peak waits in the worker
    instead of paying for a new connection (a process on the server) at the worst moment."""

    database_timeout: float = Field(default=2.0, ge=0.1, le=60)
    """Deadline of /ready in seconds; below the 3 to 5 s after which probes usually give up themselves."""

    debug: bool = False
    """Tracebacks in responses; refused in production."""

    docs: bool = Field(default_factory=lambda data: data.get("environment") != "production")
    """Serve /docs and /openapi.json; off in production unless asked for."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # a field rule, not a model rule: model rules do not run when any field failed, which would hide a problem
    @field_validator("debug")
    @classmethod
    def _no_debug_in_production(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("environment") == "production":
            raise _refuse("must be off in production")
        return value

    @property
    def database_address(self) -> str:
        """HOST:PORT of the database, for messages."""
        host = self.database_url.hosts()[0]
        return f"{host['host']}:{host['port'] or 5432}"

    @classmethod
    def load(cls) -> Self:
        """Read the environment of this process.

        Raises SettingsError with all problems on one line, joined by ` | `.
        """
        # an unknown name first: a misspelt variable is the cause, the missing one its consequence
        problems = _unknown_variables(os.environ)
        try:
            settings = cls()  # type: ignore[call-arg]  # the fields come from the environment
        except ValidationError as error:
            problems += _explain(error, os.environ)
        if problems:
            # raised outside `except`: the pydantic error, with its input, is not even in the context
            raise SettingsError(" | ".join(problems))
        return settings


def variable(field: str) -> str:
    """Return the name of the environment variable of a field: `pool_size` -> `FORGE_POOL_SIZE`."""
    return PREFIX + field.upper()


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [variable(field) for field in Settings.model_fields]
    problems = []
    for name in sorted(environment):
        # pydantic-settings reads names regardless of case, so this does too
        if not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        closest = difflib.get_close_matches(name.upper(), known, n=1)
        advice = f"did you mean {closest[0]}?" if closest else f"known are {', '.join(known)}"
        problems.append(f"{name} is not a setting of this application; {advice}")
    return problems


def _explain(error: ValidationError, environment: Mapping[str, str]) -> list[str]:
    values = {name.upper(): value for name, value in environment.items()}
    properties: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
    problems = []
    for details in error.errors(include_url=False, include_input=False):
        # a default that depends on a field which failed is no problem of its own
        if details["type"] != "default_factory_not_called":
            field = str(details["loc"][0])
            value = values.get(variable(field), "")
            problems.append(f"{variable(field)} {_reason(field, details, value, properties[field])}")
    return problems


def _reason(field: str, details: ErrorDetails, value: str, schema: dict[str, Any]) -> str:
    """Say what is wrong with one field; `schema` is its JSON schema, the source of choices and bounds."""
    choices = ", ".join(schema.get("enum", []))
    match details["type"]:
        case "missing":
            return f"is missing; set it in the environment {_where(field, choices)}"
        case _ if not value.strip():
            if field in Settings.model_json_schema()["required"]:
                return f"is empty; set it in the environment {_where(field, choices)}"
            return "is empty; give it a value or remove it"
        case "forge_rule":
            return details["msg"]
        case "literal_error":
            return f"must be one of {choices}, got {value[:40]!r}"
        case "bool_parsing":
            return "must be true or false"
        case "too_short":
            return "must have at least 32 characters; generate one with: openssl rand -hex 32"
        case _ if "minimum" in schema:
            kind = "a whole number" if schema["type"] == "integer" else "a number"
            return f"must be {kind} from {schema['minimum']:g} to {schema['maximum']:g}"
        case _:
            return "is not a valid URL; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


def _where(field: str, choices: str) -> str:
    return "or declare it as a secret" if field in SECRETS else f"to one of {choices}"
