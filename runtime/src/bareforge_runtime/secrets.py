"""The settings that the agent keeps in files in memory (tmpfs), read into this process.

The environment variable BAREFORGE_SECRETS names the directory. It holds `kv.json` and `db.json`, each a flat
JSON object {setting name: string}; a file is absent when nothing is declared for it. Unset or empty, the
application has no secrets.

`/proc/PID/environ` shows the environment a process was started with, so settings that are added to
`os.environ` later do not appear there. Programs that the application starts do inherit them, unless it
starts them with an environment of its own.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

DIRECTORY_VARIABLE = "BAREFORGE_SECRETS"
FILES = ("kv.json", "db.json")

# What this process itself has put into its environment, to tell it from what it was started with.
_loaded: dict[str, str] = {}

_listeners: list[Callable[[Iterable[str]], object]] = []


class SecretsError(Exception):
    """The secrets cannot be used. The text is one line, `cause; cure`, and never contains a value."""


def read(directory: Path, names: Sequence[str] = FILES) -> dict[str, str]:
    """Return all settings of the secret files in `directory`, {setting name: value}.

    names: of the files to read. Raises SecretsError.
    """
    try:
        present = {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        raise SecretsError(
            f"the secrets directory {directory} does not exist; "
            "is the agent running? see: journalctl -u bareforge-agent"
        ) from None
    except OSError as error:
        raise _unreadable(directory, error) from None
    settings: dict[str, str] = {}
    for name in names:
        if name not in present:
            continue
        for setting, value in _read_file(directory / name).items():
            if setting in settings:
                raise SecretsError(
                    f"the setting {setting} is in both {FILES[0]} and {FILES[1]} of {directory}; "
                    "declare it once in the agent's configuration"
                )
            settings[setting] = value
    return settings


def load_into_environment() -> dict[str, str]:
    """Add the secrets to `os.environ` of this process and return them, {setting name: value}.

    A setting that the process was started with and that has another value than the secret is refused:
    silently preferring either would hide which one is in force. Raises SecretsError.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE, "")
    if not directory:
        return {}
    settings = read(Path(directory))
    for name, value in settings.items():
        present = os.environ.get(name)
        if present is not None and present not in (value, _loaded.get(name)):
            raise SecretsError(
                f"the setting {name} is a secret and also an environment variable with another value; "
                "remove it from the environment of the application"
            )
    # first, so that no output can show one of them before it is known as a secret
    for listener in _listeners:
        listener(settings.values())
    os.environ.update(settings)
    _loaded.update(settings)
    return settings


def tell(listener: Callable[[Iterable[str]], object]) -> None:
    """Call `listener` with the values, of now and of each later load: a redactor needs them."""
    listener(_loaded.values())
    _listeners.append(listener)


def changed(directory: Path, names: Sequence[str] = FILES) -> list[str]:
    """Names of the settings that are others in the files than this process has loaded last. Raises SecretsError."""
    return sorted(name for name, value in read(directory, names).items() if value != _loaded.get(name))


def _read_file(file: Path) -> dict[str, str]:
    cure = "restart the agent, which writes it: systemctl restart bareforge-agent"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, error) from None
    except ValueError:
        # The text of a JSON error quotes nothing of the document, but its position is of no use either.
        raise SecretsError(f"{file} is not a flat JSON object of strings; {cure}") from None
    if not isinstance(document, dict):
        raise SecretsError(f"{file} is not a flat JSON object of strings; {cure}")
    for name, value in document.items():
        if not isinstance(value, str):
            raise SecretsError(f"{file} is not a flat JSON object of strings: see the setting {name}; {cure}")
        if not name or "=" in name or "\0" in name + value:
            raise SecretsError(
                f"{file} has a setting that cannot be an environment variable: {name!r}; "
                "correct it in the agent's configuration or in Vault"
            )
    return document


def _unreadable(path: Path, error: OSError) -> SecretsError:
    reason = (error.strerror or type(error).__name__).lower()
    return SecretsError(
        f"cannot read {path}: {reason}; is this user in the group that the agent writes for? see: ls -ld {path}"
    )
