"""The scanner of scripts/check and of the commit hook finds what must not be committed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = {
    "AWS Access Key": "key = 'AKIA" + "IOSFODNN7EXAMPLF'",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Secret Keyword": "pass" + "word = 'correct-horse-battery'",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_secret_is_found(tmp_path: Path, kind: str) -> None:
    baseline = tmp_path / "baseline"
    shutil.copy(ROOT / ".secrets.baseline", baseline)
    planted = tmp_path / "settings.py"
    planted.write_text(KINDS[kind] + "\n")
    hook = [str(Path(sys.executable).with_name("detect-secrets-hook")), "--baseline", str(baseline), str(planted)]
    run = subprocess.run(hook, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 1
    assert kind in run.stdout
    planted.write_text("name = 'value'\n")
    assert subprocess.run(hook, capture_output=True, cwd=ROOT).returncode == 0
