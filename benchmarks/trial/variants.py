"""Makes variants of the reference application: other releases of it, ones that fail, ones that migrate the database.

A variant serves `forge_app.trial:create_app()`, which is trial_app.py of this directory with constants of its own. Its
name is in its version, so each variant is another release, even where nothing but the name differs.
"""

from __future__ import annotations

import re
import shutil
from enum import StrEnum
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
# what no release is made of
LEFT_OUT = ("__pycache__", "*.pyc", "*.egg-info", "*_cache", "build", "dist", ".venv", ".env")
# PEP 440, "Local version identifiers"
LOCAL_VERSION = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


class Fault(StrEnum):
    """How a variant fails. Seconds count from the end of the lifespan's startup; a crash is os._exit(1)."""

    IMPORT = "import"
    """Its module raises ImportError."""
    SETTINGS = "settings"
    """create_app raises SettingsError, as for a setting that is required and absent."""
    LIFESPAN = "lifespan"
    """Its lifespan raises RuntimeError after start_seconds."""
    HANG = "hang"
    """Its lifespan's startup never ends."""
    NOT_READY = "not ready"
    """It serves, but /ready answers 503."""
    CRASH = "crash"
    """It crashes after 5 s."""
    CRASH_LATE = "crash late"
    """It crashes after 30 s."""


class Migration(StrEnum):
    """What a variant's revision 0002 does, on top of 0001 of the reference application."""

    EXPAND = "expand"
    """Adds a nullable column, which older code does not notice."""
    CONTRACT = "contract"
    """Renames a column: /items of older code answers 500 from then on. The variant uses the new name."""
    FAILING = "failing"
    """Adds a column, then fails in the database."""
    SLOW = "slow"
    """Takes 3 s, then adds a nullable column."""
    COUNTED = "counted"
    """Adds a row to the table trial_migrations, which survives a downgrade."""


def make(
    source: Path,
    into: Path,
    *,
    name: str,
    fault: Fault | None = None,
    migration: Migration | None = None,
    start_seconds: float = 1.0,
) -> Path:
    """Write the variant `name` of the application in `source` to the directory `into`/`name`, and return that.

    `name` becomes the local part of the version: 0.1.0+NAME. `start_seconds` is what its start takes longer.
    Raises ValueError for a name that cannot be in a version, and for a source that is not the reference application;
    FileExistsError where the directory is there already.
    """
    if not LOCAL_VERSION.fullmatch(name):
        raise ValueError(f"{name!r} cannot be in a version; use letters and digits, parted by single . - or _")
    directory = into / name
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns(*LEFT_OUT))
    package = directory / "src/forge_app"
    # as it is in the name of the wheel
    local = re.sub("[-_]", ".", name.lower())
    _replace(directory / "pyproject.toml", r'^version = "(.+)"$', rf'version = "\1+{local}"')
    _replace(package / "__init__.py", r'^__version__ = "(.+)"$', rf'__version__ = "\1+{local}"')

    trial = package / "trial.py"
    shutil.copyfile(DIRECTORY / "trial_app.py", trial)
    _replace(trial, r'^FAULT = ""$', f'FAULT = "{fault or ""}"')
    _replace(trial, r"^START_SECONDS = 0.0$", f"START_SECONDS = {float(start_seconds)!r}")

    if migration:
        revision = DIRECTORY / f"revisions/{migration}.py"
        shutil.copyfile(revision, package / f"migrations/versions/v0002_{migration}.py")
    if migration is Migration.CONTRACT:
        _replace(package / "models.py", r"^(    description: .*mapped_column\()Text\)$", r'\1"details", Text)')
    return directory


def _replace(file: Path, pattern: str, replacement: str) -> None:
    """Replace the one line of a file that matches. Raises ValueError where there is none, or more than one."""
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{file} has {count} lines like {pattern}; make the variants fit the reference application")
    file.write_text(text)
