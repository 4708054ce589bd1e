"""The release of a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bareforge_runtime import release

from tests.runtime.conftest import environment


def test_development_without_file(tmp_path: Path) -> None:
    assert release.read(tmp_path / "venv") == release.Release(id="development")


def test_read(tmp_path: Path) -> None:
    document = {"id": "r7", "version": "1.2", "git_revision": None, "created": "2026-01-01", "lock": "x"}
    (tmp_path / "release.json").write_text(json.dumps(document))
    assert release.read(tmp_path / "venv") == release.Release("r7", "1.2", "", "2026-01-01")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "{file} does not name a release id; deploy this release again"),
        ("[]", "{file} does not name a release id; deploy this release again"),
    ],
)
def test_malformed(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "release.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="release") as caught:
        release.read(tmp_path / "venv")
    assert str(caught.value) == message.format(file=file)


def test_not_json(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text("{")
    with pytest.raises(ValueError, match=r"release.json is not JSON \(.*\); deploy this release again"):
        release.read(tmp_path / "venv")


def test_process_keeps_its_release_when_current_moves(tmp_path: Path) -> None:
    """A real virtual environment, run through a `current` link that is moved while the process runs."""
    for name in ("r1", "r2"):
        home = tmp_path / name
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
        (home / "release.json").write_text(json.dumps({"id": name}))
    current = tmp_path / "current"
    current.symlink_to("r1")
    program = (
        "from bareforge_runtime import release\nprint(release.current().id, flush=True)\ninput()\n"
        "print(release.current().id, flush=True)"
    )
    with subprocess.Popen(
        [current / "venv/bin/python", "-c", program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "r1\n"
        (tmp_path / "new").symlink_to("r2")
        (tmp_path / "new").replace(current)
        after, _ = process.communicate("\n", timeout=10)
    assert after == "r1\n"
