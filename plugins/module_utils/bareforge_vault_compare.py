"""Compare a declared Vault object with the one Vault returns: pure, no Vault, no Ansible.

Vault answers in other spellings than it accepts: durations come back in seconds, comma-separated strings as
lists, single addresses without their /32, empty values as null.
"""

from __future__ import annotations

import re
from typing import Any

DURATION = re.compile(r"(\d+(ms|[smhd]))+")
UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return both mappings in one, second over first, nested mappings merged likewise."""
    merged = dict(first)
    for key, value in second.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def differing(declared: dict[str, Any], current: dict[str, Any], exact: bool = False) -> list[str]:
    """Return the dotted names of declared keys whose current value is another, in order.

    exact: compare values as they are (contents of a secret), not as settings of Vault.
    """
    names = []
    for key, value in declared.items():
        found = current.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            names += [f"{key}.{below}" for below in differing(value, found, exact)]
        elif exact:
            names += [key] if key not in current or value != found else []
        elif not same(key, value, found):
            names.append(key)
    return names


def same(key: str, declared: Any, found: Any) -> bool:
    """Whether Vault takes both values of a setting for the same."""
    if key.endswith("_statements"):
        # SQL: the order counts and a comma separates nothing
        return statements(declared) == statements(found)
    if isinstance(declared, list) or isinstance(found, list):
        return items(key, declared) == items(key, found)
    return canonical(key, declared) == canonical(key, found)


def statements(value: Any) -> list[str]:
    """Return SQL statements as a list without blank ones."""
    given = value if isinstance(value, list) else [value or ""]
    return [text for text in (str(item).strip() for item in given) if text]


def items(key: str, value: Any) -> list[str]:
    """Return a list, a comma-separated string or nothing as a sorted list."""
    given = value if isinstance(value, list) else str(value or "").split(",")
    return sorted(text for text in (canonical(key, item) for item in given) if text)


def canonical(key: str, value: Any) -> str:
    """Return one spelling for all that Vault takes as the same scalar; empty for every kind of nothing."""
    text = "" if value is None or value == {} else " ".join(str(value).split())
    if key.endswith("_cidrs"):
        return re.sub(r"/(32|128)$", "", text)
    if DURATION.fullmatch(text):
        parts = re.findall(r"(\d+)(ms|[smhd])", text)
        text = str(int(sum(int(number) * UNIT_SECONDS[unit] for number, unit in parts)))
    return "" if text in ("0", "False", "false") else text.lower() if isinstance(value, bool) else text
