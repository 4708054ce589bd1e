"""A run that reaches no host is no success."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTS = (
    *("audit.yml", "deploy.yml", "history.yml", "reload.yml", "rollback.yml", "unlock.yml"),
    *("rotate_database.yml", "rotate_secret_id.yml", "rotate_setting.yml"),
)


@pytest.mark.parametrize("playbook", HOSTS)
def test_a_run_without_the_group_app_is_refused(playbook: str, tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text("[web]\nweb1\n")
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("-i", str(tmp_path / "inventory"), str(ROOT / "playbooks" / playbook)),
        ],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert run.returncode != 0
    assert "[ERROR]: Could not match supplied host pattern, ignoring: app" in run.stderr
