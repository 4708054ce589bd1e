import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from forge_app.main import create_app
from forge_app.settings import Settings, SettingsError, variable
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2-is-secret"
GOOD = {
    "FORGE_ENVIRONMENT": "development",
    "FORGE_DATABASE_URL": f"postgresql://forge:{PASSWORD}@db.example:6432/forge",
    "FORGE_SECRET_KEY": "very-secret-key-of-32-characters",
}


def load(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]) -> Settings:
    for name, value in (GOOD | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return Settings.load()


def test_good_settings_have_the_documented_defaults(monkeypatch):
    settings = load(monkeypatch, {})
    assert str(settings.database_url) == f"postgresql+asyncpg://forge:{PASSWORD}@db.example:6432/forge"
    assert settings.secret_key.get_secret_value() == GOOD["FORGE_SECRET_KEY"]
    assert settings.database_address == "db.example:6432"
    assert (settings.pool_size, settings.pool_max_overflow, settings.database_timeout) == (5, 0, 2.0)
    assert (settings.debug, settings.docs, settings.log_level) == (False, True, "info")


@pytest.mark.parametrize(
    ("url", "expected", "address"),
    [
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d", "h:5432"),
        ("postgresql://u:a%40b%2Fc%25@h:1/d", "postgresql+asyncpg://u:a%40b%2Fc%25@h:1/d", "h:1"),
        (
            "postgresql://u:p@[::1]:5433/d?ssl=require",
            "postgresql+asyncpg://u:p@[::1]:5433/d?ssl=require",
            "[::1]:5433",
        ),
    ],
)
def test_database_url_is_normalised_to_asyncpg(monkeypatch, url, expected, address):
    settings = load(monkeypatch, {"FORGE_DATABASE_URL": url})
    assert (str(settings.database_url), settings.database_address) == (expected, address)


SCHEME = "FORGE_DATABASE_URL must start with postgresql:// or postgresql+asyncpg://"
URL = "FORGE_DATABASE_URL is not a valid URL; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
SECRET = "set it in the environment or declare it as a secret"
ENVIRONMENTS = "development, staging, production"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FORGE_DATABASE_URL": None}, f"FORGE_DATABASE_URL is missing; {SECRET}"),
        ({"FORGE_DATABASE_URL": ""}, f"FORGE_DATABASE_URL is empty; {SECRET}"),
        ({"FORGE_DATABASE_URL": "  "}, f"FORGE_DATABASE_URL is empty; {SECRET}"),
        ({"FORGE_DATABASE_URL": f"mysql://u:{PASSWORD}@h/d"}, SCHEME),
        ({"FORGE_DATABASE_URL": f"postgres://u:{PASSWORD}@h/d"}, SCHEME),
        ({"FORGE_DATABASE_URL": f"postgresql+psycopg2://u:{PASSWORD}@h/d"}, SCHEME),
        ({"FORGE_DATABASE_URL": PASSWORD}, SCHEME),
        ({"FORGE_DATABASE_URL": f"postgresql://u:{PASSWORD}@h:port/d"}, URL),
        ({"FORGE_DATABASE_URL": f"postgresql://u:{PASSWORD}/x@h/d"}, URL),
        (
            {"FORGE_DATABASE_URL": f"postgresql://u:{PASSWORD}@h1,h2/d"},
            "FORGE_DATABASE_URL must name exactly one server",
        ),
        (
            {"FORGE_DATABASE_URL": f"postgresql://u:{PASSWORD}@h"},
            "FORGE_DATABASE_URL must name a database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        ),
        (
            {"FORGE_DATABASE_URL": f"postgresql://u:{PASSWORD}@h/d?sslmode=require"},
            "FORGE_DATABASE_URL contains sslmode, which asyncpg does not know; write ssl=require instead",
        ),
        ({"FORGE_SECRET_KEY": None}, f"FORGE_SECRET_KEY is missing; {SECRET}"),
        ({"FORGE_SECRET_KEY": ""}, f"FORGE_SECRET_KEY is empty; {SECRET}"),
        (
            {"FORGE_SECRET_KEY": PASSWORD},
            "FORGE_SECRET_KEY must have at least 32 characters; generate one with: openssl rand -hex 32",
        ),
        (
            {"FORGE_ENVIRONMENT": None},
            f"FORGE_ENVIRONMENT is missing; set it in the environment to one of {ENVIRONMENTS}",
        ),
        (
            {"FORGE_ENVIRONMENT": ""},
            f"FORGE_ENVIRONMENT is empty; set it in the environment to one of {ENVIRONMENTS}",
        ),
        ({"FORGE_ENVIRONMENT": "prod"}, f"FORGE_ENVIRONMENT must be one of {ENVIRONMENTS}, got 'prod'"),
        ({"FORGE_ENVIRONMENT": "a\nb"}, rf"FORGE_ENVIRONMENT must be one of {ENVIRONMENTS}, got 'a\nb'"),
        (
            {"FORGE_LOG_LEVEL": "loud"},
            "FORGE_LOG_LEVEL must be one of debug, info, warning, error, got 'loud'",
        ),
        ({"FORGE_LOG_LEVEL": ""}, "FORGE_LOG_LEVEL is empty; give it a value or remove it"),
        ({"FORGE_ENVIRONMENT": "production", "FORGE_DEBUG": "true"}, "FORGE_DEBUG must be off in production"),
        ({"FORGE_DEBUG": "perhaps"}, "FORGE_DEBUG must be true or false"),
        ({"FORGE_DOCS": "perhaps"}, "FORGE_DOCS must be true or false"),
        ({"FORGE_POOL_SIZE": "0"}, "FORGE_POOL_SIZE must be a whole number from 1 to 50"),
        ({"FORGE_POOL_SIZE": "51"}, "FORGE_POOL_SIZE must be a whole number from 1 to 50"),
        ({"FORGE_POOL_SIZE": "many"}, "FORGE_POOL_SIZE must be a whole number from 1 to 50"),
        ({"FORGE_POOL_MAX_OVERFLOW": "-1"}, "FORGE_POOL_MAX_OVERFLOW must be a whole number from 0 to 50"),
        ({"FORGE_DATABASE_TIMEOUT": "0"}, "FORGE_DATABASE_TIMEOUT must be a number from 0.1 to 60"),
        ({"FORGE_DATABASE_TIMEOUT": "nan"}, "FORGE_DATABASE_TIMEOUT must be a number from 0.1 to 60"),
        (
            {"FORGE_DATABSE_URL": f"postgresql://u:{PASSWORD}@h/d"},
            "FORGE_DATABSE_URL is not a setting of this application; did you mean FORGE_DATABASE_URL?",
        ),
        (
            {"FORGE_ZZZZZZ": PASSWORD},
            "FORGE_ZZZZZZ is not a setting of this application; known are FORGE_ENVIRONMENT, "
            "FORGE_DATABASE_URL, FORGE_SECRET_KEY, FORGE_POOL_SIZE, FORGE_POOL_MAX_OVERFLOW, "
            "FORGE_DATABASE_TIMEOUT, FORGE_DEBUG, FORGE_DOCS, FORGE_LOG_LEVEL",
        ),
        (
            {
                "FORGE_DATABASE_URL": None,
                "FORGE_DATABSE_URL": "x",
                "FORGE_SECRET_KEY": "",
                "FORGE_ENVIRONMENT": "prod",
            },
            "FORGE_DATABSE_URL is not a setting of this application; did you mean FORGE_DATABASE_URL? | "
            f"FORGE_ENVIRONMENT must be one of {ENVIRONMENTS}, got 'prod' | "
            f"FORGE_DATABASE_URL is missing; {SECRET} | FORGE_SECRET_KEY is empty; {SECRET}",
        ),
        (
            {"FORGE_ENVIRONMENT": "production", "FORGE_DEBUG": "1", "FORGE_SECRET_KEY": None},
            f"FORGE_SECRET_KEY is missing; {SECRET} | FORGE_DEBUG must be off in production",
        ),
    ],
)
def test_refusals_are_one_line_with_the_variable_and_no_secret(monkeypatch, changes, message):
    with pytest.raises(SettingsError) as refusal:
        load(monkeypatch, changes)
    assert str(refusal.value) == message
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None, "a chained pydantic error carries the input"


@pytest.mark.parametrize(
    ("changes", "docs"),
    [
        ({"FORGE_ENVIRONMENT": "development"}, True),
        ({"FORGE_ENVIRONMENT": "staging"}, True),
        ({"FORGE_ENVIRONMENT": "production"}, False),
        ({"FORGE_ENVIRONMENT": "production", "FORGE_DOCS": "true"}, True),
        ({"FORGE_ENVIRONMENT": "development", "FORGE_DOCS": "false"}, False),
    ],
)
def test_docs_are_off_in_production_unless_asked_for(monkeypatch, changes, docs):
    settings = load(monkeypatch, changes)
    assert settings.docs is docs
    paths = {getattr(route, "path", "") for route in create_app(settings).routes}
    assert ({"/docs", "/openapi.json"} <= paths) is docs
    assert ({"/docs", "/openapi.json"} & paths != set()) is docs


def test_no_repr_shows_a_secret(monkeypatch):
    settings = load(monkeypatch, {})
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "development" in text
        assert PASSWORD not in text
        assert GOOD["FORGE_SECRET_KEY"] not in text


def test_even_the_plain_validation_error_shows_no_value():
    with pytest.raises(ValidationError) as refusal:
        Settings(environment=PASSWORD, database_url=f"x://{PASSWORD}", secret_key=PASSWORD, debug=PASSWORD)  # type: ignore[arg-type]
    assert "database_url" in str(refusal.value)
    assert PASSWORD not in str(refusal.value) + repr(refusal.value)


def test_create_app_reads_the_environment(monkeypatch):
    load(monkeypatch, {"FORGE_POOL_SIZE": "7"})
    app = create_app()
    assert isinstance(app, FastAPI)
    assert app.state.settings.pool_size == 7


def test_a_failing_start_ends_with_the_line_and_shows_no_secret():
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/app/src:{ROOT}/runtime/src", **GOOD}
    environment["FORGE_DATABASE_URL"] = f"mysql://u:{PASSWORD}@h/d"
    result = subprocess.run(
        [sys.executable, "-c", "from forge_app.main import create_app; create_app()"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"forge_app.settings.SettingsError: {SCHEME}"
    assert "pydantic_core" not in result.stderr
    assert PASSWORD not in result.stderr


def test_importing_the_application_needs_no_settings_and_does_nothing():
    code = "import sys, logging, forge_app.main; sys.exit(bool(logging.getLogger().handlers))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/app/src:{ROOT}/runtime/src"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_env_example_lists_every_setting_with_its_default(monkeypatch):
    lines = (ROOT / "app/.env.example").read_text().splitlines()
    given = dict(match.groups() for line in lines if (match := re.fullmatch(r"#?(FORGE_\w+)=(.*)", line)))
    assert list(given) == [variable(field) for field in Settings.model_fields]
    defaults = load(monkeypatch, {})
    assert load(monkeypatch, given | GOOD) == defaults
