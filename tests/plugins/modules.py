"""Runs a module's main in this process, as Ansible runs it on a host."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic

ROOT = Path(__file__).parents[2]


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    arguments: dict[str, Any],
    check: bool = False,
) -> dict[str, Any]:
    """Return what the module of that name prints: its result, or failed and msg."""
    specification = importlib.util.spec_from_file_location(module, ROOT / f"plugins/modules/{module}.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(given).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        loaded.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result
