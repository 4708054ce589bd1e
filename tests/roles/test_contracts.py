"""What a reader may rely on in every role: documented variables, budgets, handlers that are notified."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
TASKS = sorted(ROOT.glob("roles/*/tasks/*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def specification(role: Path) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return options


def public_defaults(role: Path) -> dict[str, Any]:
    defaults: dict[str, Any] = load(role / "defaults/main.yml")
    return defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
class TestRole:
    def test_argument_specs_equal_the_defaults(self, role: Path) -> None:
        options = specification(role)
        optional = {name: option["default"] for name, option in options.items() if "default" in option}
        assert optional == public_defaults(role)

    def test_what_has_no_default_is_required(self, role: Path) -> None:
        for name, option in specification(role).items():
            assert ("default" in option) != bool(option.get("required")), name

    def test_every_variable_carries_the_roles_name(self, role: Path) -> None:
        assert all(name.startswith(f"{role.name}_") for name in specification(role))
        internal = role / "vars/main.yml"
        assert all(name.startswith(f"__{role.name}_") for name in load(internal))

    def test_every_default_has_a_comment_above_it(self, role: Path) -> None:
        lines = (role / "defaults/main.yml").read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\w+:", line):
                assert lines[number - 1].startswith("#"), line

    def test_there_are_at_most_twenty_defaults(self, role: Path) -> None:
        assert len(public_defaults(role)) <= 20

    def test_every_default_is_used(self, role: Path) -> None:
        text = "".join(
            path.read_text()
            for path in [*role.rglob("*.yml"), *role.rglob("*.j2"), *(ROOT / "templates").iterdir()]
            if path.name not in ("argument_specs.yml",) and path.parent.name != "defaults"
        )
        unused = [name for name in specification(role) if not re.search(rf"\b{name}\b", text)]
        assert unused == []

    def test_the_readme_explains_every_variable(self, role: Path) -> None:
        readme = (role / "README.md").read_text()
        missing = [name for name in specification(role) if f"`{name}`" not in readme]
        assert missing == []
        strangers = set(re.findall(rf"`({role.name}_\w+)`", readme)) - set(specification(role))
        assert strangers == set()

    def test_every_handler_is_notified(self, role: Path) -> None:
        handlers = role / "handlers/main.yml"
        names = [handler["name"] for handler in load(handlers)] if handlers.exists() else []
        tasks = "".join(path.read_text() for path in (role / "tasks").iterdir())
        assert [name for name in names if not re.search(rf"notify:.*{name}", tasks)] == []

    def test_a_role_reads_no_other_roles_variables(self, role: Path) -> None:
        others = [other.name for other in ROLES if other != role]
        for path in [*role.glob("tasks/*.yml"), *role.glob("vars/*.yml"), *role.glob("templates/*")]:
            found = [name for name in others if re.search(rf"(?<![\w.-])(__)?{name}_\w+", path.read_text())]
            assert found == [] or path.name in ("preflight.yml", "variables.yml"), (path, found)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_a_task_file_fits_on_a_screen(path: Path) -> None:
    limit = 30 if path.name == "main.yml" else 60
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", sorted((ROOT / "templates").iterdir()), ids=lambda path: path.name)
def test_a_template_is_short_and_has_hardly_any_logic(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert sum("{%" in line for line in lines) <= len(lines) * 0.25


def test_playbooks_hold_no_logic() -> None:
    for path in (ROOT / "playbooks").glob("*.yml"):
        assert "set_fact" not in path.read_text(), path


def test_locks_are_hashed_and_name_no_index() -> None:
    locks = [*ROOT.glob("requirements/*.txt"), *ROOT.glob("*/requirements.lock"), *ROOT.glob("molecule/*/*.lock")]
    assert len(locks) >= 5
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text, lock
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
        assert all("--hash=sha256:" in entry for entry in entries), lock


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
