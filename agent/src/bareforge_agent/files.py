"""Files in the agent's RuntimeDirectory: replaced as a whole, so that a reader never sees half of one."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# Settings are for the agent and the group of the directory, the agent's own state is for nobody else.
SETTINGS_MODE = 0o440
STATE_MODE = 0o400
DIRECTORY_MODE = 0o750
# What is no secret is for everybody.
PUBLIC_MODE, PUBLIC_DIRECTORY_MODE = 0o444, 0o755


def write(file: Path, content: str, mode: int) -> bool:
    """Make `file` have `content` and `mode`; returns whether it had another content before."""
    with contextlib.suppress(OSError):
        if file.read_text(encoding="utf-8") == content and file.stat().st_mode & 0o777 == mode:
            return False
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
        # The readers' group is that of the directory, whatever the agent's own primary group is.
        os.fchown(stream.fileno(), -1, file.parent.stat().st_gid)
        os.fchmod(stream.fileno(), mode)
    temporary.replace(file)
    return True


def write_settings(file: Path, settings: Mapping[str, str]) -> bool:
    """Write settings as a flat JSON object; without any the file is removed. Returns whether it changed."""
    if not settings:
        existed = file.exists()
        file.unlink(missing_ok=True)
        return existed
    return write(file, json.dumps(settings, sort_keys=True), SETTINGS_MODE)


def publish(directory: Path, contents: Mapping[str, str]) -> None:
    """Write files by name, and let everybody in; where that fails, what is secret is kept all the same."""
    with contextlib.suppress(OSError):
        if directory.stat().st_mode & 0o777 != PUBLIC_DIRECTORY_MODE:
            directory.chmod(PUBLIC_DIRECTORY_MODE)
        for name, content in contents.items():
            write(directory / name, content, PUBLIC_MODE)


def make_directory(directory: Path) -> None:
    """Make `directory`, if it is missing, for the group of the directory it is in, which is let in."""
    # Closed until it has its group.
    directory.mkdir(mode=0o700, exist_ok=True)
    os.chown(directory, -1, directory.parent.stat().st_gid)
    directory.chmod(DIRECTORY_MODE)


def remove_directories(parent: Path, name: re.Pattern[str], keep: Collection[str]) -> list[str]:
    """Remove the directories in `parent` with such a name, except those to `keep`; returns the removed ones."""
    removed = []
    for found in sorted(parent.iterdir()):
        if name.fullmatch(found.name) and found.name not in keep and found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
            removed.append(found.name)
    return removed


def read_state(file: Path) -> dict[str, Any]:
    """Return the state object in `file`, empty when there is none or it is unusable: it is only a saving."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_text(file: Path) -> str:
    """Return what is in `file`, empty when it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def to_json(state: Mapping[str, Any]) -> str:
    """Return the text of a state file."""
    return json.dumps(state, sort_keys=True)
