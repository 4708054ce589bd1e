"""Which release this process runs.

A release describes itself in `release.json`, next to its virtual environment. It is read once, when this
module is imported: a process never changes its release, while the `current` link of the host does.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """One release, as its `release.json` describes it; fields the file does not give are empty."""

    id: str
    version: str = ""
    git_revision: str = ""
    created: str = ""


def read(environment: Path) -> Release:
    """Return the release that the virtual environment directory `environment` belongs to.

    Without a `release.json` beside the environment the release is called "development".
    Raises ValueError when the file is there but does not describe a release.
    """
    file = environment.resolve().parent / "release.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Release(id="development")
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); deploy this release again") from None
    if not isinstance(document, dict) or not document.get("id"):
        raise ValueError(f"{file} does not name a release id; deploy this release again")
    names = ("id", "version", "git_revision", "created")
    return Release(**{name: str(document.get(name) or "") for name in names})


_CURRENT = read(Path(sys.prefix))


def current() -> Release:
    """Return the release of this process, as resolved when this module was imported."""
    return _CURRENT
