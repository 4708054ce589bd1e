"""Render the project's templates as a play does: Ansible's own Templar, the role's defaults and vars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).parents[2]
init_plugin_loader()


def trusted(value: Any) -> Any:
    """What comes from project files is a template; ansible-core 2.19 wants that said."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return value


def variables(role: str, **given: Any) -> dict[str, Any]:
    """The role's defaults and internal variables, with what the caller sets."""
    found: dict[str, Any] = {"inventory_hostname": "app1", "ansible_managed": "Ansible managed"}
    for part in ("defaults", "vars"):
        found |= yaml.safe_load((ROOT / "roles" / role / part / "main.yml").read_text())
    found["role_path"] = str(ROOT / "roles" / role)
    return {**found, **given}


def templar(role: str, **given: Any) -> Templar:
    """A Templar that knows the role's variables."""
    return Templar(loader=DataLoader(), variables=trusted(variables(role, **given)))


def render(template: Path, role: str, **given: Any) -> str:
    """The text that a host would get; an undefined variable raises."""
    text = template.read_text()
    engine = templar(role, **given)
    return str(engine.template(trust_as_template(text), preserve_trailing_newlines=True, escape_backslashes=False))
