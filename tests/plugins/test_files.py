"""Module bareforge_files: several paths in one execution, each as declared, nothing rewritten that is."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modules import run

Write = Callable[..., dict[str, Any]]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Write:
    owner = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}

    def call(check: bool = False, **arguments: Any) -> dict[str, Any]:
        return run(monkeypatch, capsys, "bareforge_files", {**owner, **arguments}, check)

    return call


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def declared(directory: Path) -> dict[str, Any]:
    return {
        "directories": [str(directory / "etc/staged")],
        "files": [
            {"path": str(directory / "etc/config.json"), "content": '{"a": 1}\n'},
            {"path": str(directory / "etc/staged/tool"), "content": "#!/bin/sh\n", "mode": "0755"},
        ],
        "links": {str(directory / "current"): "releases/one"},
    }


def test_everything_is_there_after_the_first_run_and_untouched_by_the_second(
    write: Write, narrow_umask: None, tmp_path: Path
) -> None:
    paths = [str(tmp_path / path) for path in ("etc/staged", "etc/config.json", "etc/staged/tool", "current")]
    first = write(**declared(tmp_path))
    assert (first["changed"], first["paths"]) == (True, paths)
    assert (tmp_path / "etc/config.json").read_text() == '{"a": 1}\n'
    modes = {path: (tmp_path / path).stat().st_mode & 0o777 for path in ("etc", "etc/staged", "etc/config.json")}
    assert modes == {"etc": 0o755, "etc/staged": 0o755, "etc/config.json": 0o644}
    assert os.access(tmp_path / "etc/staged/tool", os.X_OK)
    assert (tmp_path / "current").readlink() == Path("releases/one")
    before = {path: os.lstat(path) for path in paths}
    second = write(**declared(tmp_path))
    assert (second["changed"], second["paths"], second["diff"]) == (False, [], [])
    assert {path: os.lstat(path) for path in paths} == before
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["config.json", "staged"]


def test_check_mode_says_the_same_and_writes_nothing(write: Write, tmp_path: Path) -> None:
    predicted = write(check=True, **declared(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert predicted["paths"] == write(**declared(tmp_path))["paths"]


def test_only_what_differs_changes_and_the_diff_shows_it(write: Write, tmp_path: Path) -> None:
    write(**declared(tmp_path))
    changed = declared(tmp_path)
    changed["files"][0]["content"] = '{"a": 2}\n'
    changed["links"] = {str(tmp_path / "current"): "releases/two"}
    result = write(**changed)
    assert result["diff"] == [
        {"before_header": path, "before": before, "after_header": path, "after": after}
        for path, before, after in (
            (str(tmp_path / "etc/config.json"), '{"a": 1}\n', '{"a": 2}\n'),
            (str(tmp_path / "current"), "releases/one\n", "releases/two\n"),
        )
    ]
    assert (tmp_path / "current").readlink() == Path("releases/two")


def test_a_mode_that_somebody_changed_is_corrected(write: Write, tmp_path: Path) -> None:
    write(**declared(tmp_path))
    (tmp_path / "etc/config.json").chmod(0o666)
    assert write(check=True, **declared(tmp_path))["changed"]
    assert (tmp_path / "etc/config.json").stat().st_mode & 0o777 == 0o666
    assert write(**declared(tmp_path))["paths"] == [str(tmp_path / "etc/config.json")]
    assert (tmp_path / "etc/config.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_in_the_place_of_a_link_is_refused_and_kept(kind: str, write: Write, tmp_path: Path) -> None:
    path = tmp_path / "current"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    assert write(links={str(path): "releases/one"})["msg"] == (
        f"{path} is to be a link to releases/one but is a {kind}; move it away and run again"
    )
    assert path.exists()
    assert not path.is_symlink()


def test_a_path_that_cannot_be_written_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = write(directories=[str(tmp_path / "file/below")])
    assert result["msg"] == f"cannot write {tmp_path}/file: File exists; correct it on the host and run again"
