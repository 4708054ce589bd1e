"""What a controller remembers of hosts: their Python, which decides what is built, and the releases they have.

It saves the question before the answer. A host that has changed since says so, and what it says is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any


def _file(cache: Path, host: str) -> Path:
    return cache / "hosts" / f"{hashlib.sha256(host.encode()).hexdigest()[:16]}.json"


def remembered(cache: Path, host: str) -> dict[str, Any]:
    """What is known of a host: target (python_version, machine, libc_version), releases; empty if nothing is."""
    try:
        known: dict[str, Any] = json.loads(_file(cache, host).read_text())
    except (OSError, ValueError):
        return {}
    return known


def remember(cache: Path, host: str, **known: Any) -> None:
    """Keep it for the next run; where that cannot be, the next run asks."""
    file = _file(cache, host)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as partial:
            partial.write(json.dumps(known))
        Path(partial.name).rename(file)


def host_key(name: str, task_vars: dict[str, Any]) -> str:
    """What a host is known by: an address may be another machine tomorrow, which then says so."""
    parts = [task_vars.get(key, "") for key in ("inventory_hostname", "ansible_host", "ansible_port")]
    return " ".join(map(str, [*parts, name]))
