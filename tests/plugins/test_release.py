"""The host's half of a release, run for real in a directory: environment, layer, manifest, pruning."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from plugins.module_utils.bareforge_bundle import Plan, Target, build_layer, build_release, compressed, make_plan
from plugins.modules import bareforge_release
from plugins.modules.bareforge_release import ReleaseError, complete, present, probe, prune

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plan(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plain directory with the agent's small lock, for the very Python that runs the tests."""
    tree = tmp_path_factory.mktemp("tree")
    (tree / "main.py").write_text("import hvac\n")
    (tree / "requirements.lock").write_text((ROOT / "agent/requirements.lock").read_text())
    target = Target(platform.python_version(), platform.machine(), platform.libc_ver()[1])
    return make_plan(str(tree), "requirements.lock", [str(ROOT / "agent")], target, cache, server=False)


def install(root: Path, plan: Plan, cache: Path, keep: int = 5) -> Path:
    layer, release = build_layer(plan, cache), build_release(plan, cache)
    present(root, sys.executable, keep, plan.release_id, plan.layer, str(layer), str(release))
    return root / "releases" / plan.release_id


def test_a_release_is_whole_self_describing_and_runs(tmp_path: Path, plan: Plan, cache: Path) -> None:
    release = install(tmp_path, plan, cache)
    facts = json.loads((release / "release.json").read_text())
    assert facts["id"] == plan.release_id
    assert facts["layer"] == plan.layer
    python = release / "venv/bin/python"
    program = "import bareforge_agent, hvac, sys; print(hvac.__file__, sys.prefix)"
    where, prefix = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert where.startswith(f"{release}/venv/lib/")
    assert prefix == str(release / "venv")
    # byte code was compiled once: the service's user cannot write it
    assert list((release / "venv/lib").rglob("hvac/__pycache__/*.pyc"))
    # libraries are shared with the layer, scripts are not
    inode = Path(where).stat().st_ino
    assert inode in {path.stat().st_ino for path in (tmp_path / "layers" / plan.layer).rglob("hvac/__init__.py")}
    for script in (release / "venv/bin").iterdir():
        if not script.is_symlink() and script.read_bytes().startswith(b"#!"):
            assert script.read_text().splitlines()[0].startswith(f"#!{release}/venv/bin/python")


def test_an_interrupted_installation_does_not_count_and_is_repaired(tmp_path: Path, plan: Plan, cache: Path) -> None:
    release = install(tmp_path, plan, cache)
    (release / "release.json").unlink()
    (tmp_path / "layers" / plan.layer / "layer.json").unlink()
    facts = probe(tmp_path, sys.executable)
    assert facts["releases"] == facts["layers"] == []
    assert install(tmp_path, plan, cache) == release
    assert probe(tmp_path, sys.executable)["releases"] == [plan.release_id]


def test_a_full_disk_is_refused_before_anything_is_installed(
    tmp_path: Path, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a disk that is really full: molecule/zero_loss/tests/test_failures.py."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9_000_000))
    with pytest.raises(ReleaseError) as refused:
        install(tmp_path, plan, cache)
    assert re.fullmatch(
        rf"{tmp_path} has 9 MB left and the installation takes up to 2\d MB; "
        "free space, or keep fewer releases, and run again",
        str(refused.value),
    )
    assert [*(tmp_path / "layers").iterdir()] == []


def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bareforge_release._run

    def fail(command: list[str], doing: str) -> None:
        if doing == "compiling the application":
            raise ReleaseError("no space left")
        run(command, doing)

    with monkeypatch.context() as broken:
        broken.setattr(bareforge_release, "_run", fail)
        with pytest.raises(ReleaseError, match="no space left"):
            install(tmp_path, plan, cache)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "layers", "releases"]
    assert [*(tmp_path / "releases").iterdir()] == []
    assert probe(tmp_path, sys.executable)["layers"] == [plan.layer]
    assert install(tmp_path, plan, cache).is_dir()


def asked_to_check(root: Path, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Install; whether pip was asked to check the dependencies."""
    run, asked = bareforge_release._run, []

    def note(command: list[str], doing: str) -> None:
        asked.append(command[-1])
        run(command, doing)

    with monkeypatch.context() as noting:
        noting.setattr(bareforge_release, "_run", note)
        install(root, plan, cache)
    return "check" in asked


def test_dependencies_are_checked_once_for_each_layer_and_requirements(
    tmp_path: Path, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked_to_check(tmp_path, plan, cache, monkeypatch)
    tree = tmp_path / "next"
    tree.mkdir()
    (tree / "main.py").write_text("import hvac, json\n")
    (tree / "requirements.lock").write_text((ROOT / "agent/requirements.lock").read_text())
    following = make_plan(str(tree), "requirements.lock", [str(ROOT / "agent")], plan.target, cache, server=False)
    assert (following.layer, following.release_id != plan.release_id) == (plan.layer, True)
    assert not asked_to_check(tmp_path, following, cache, monkeypatch)
    # of a release that is not whole nobody knows whether it has passed
    for release in (tmp_path / "releases").iterdir():
        (release / "release.json").unlink()
    assert asked_to_check(tmp_path, following, cache, monkeypatch)


def test_what_the_lock_lacks_is_refused_although_another_release_has_passed(
    tmp_path: Path, plan: Plan, cache: Path
) -> None:
    install(tmp_path, plan, cache)
    tree = tmp_path / "next"
    tree.mkdir()
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "next"\nversion = "1"\ndependencies = ["flask"]\n[tool.setuptools]\npy-modules = []\n'
    )
    (tree / "requirements.lock").write_text((ROOT / "agent/requirements.lock").read_text())
    following = make_plan(str(tree), "requirements.lock", [str(ROOT / "agent")], plan.target, cache, server=False)
    assert following.layer == plan.layer
    with pytest.raises(ReleaseError, match=r"checking the dependencies .* failed: next 1 requires flask, which is not"):
        install(tmp_path, following, cache)


def test_a_layer_of_an_earlier_version_is_used_with_its_wheel_of_pip(tmp_path: Path, plan: Plan, cache: Path) -> None:
    release = install(tmp_path, plan, cache)
    layer = tmp_path / "layers" / plan.layer
    assert list((layer / "pip/pip").glob("__pycache__/*.pyc"))
    shutil.rmtree(layer / "pip")
    with tarfile.open(build_layer(plan, cache)) as bundle:
        name = next(item for item in bundle.getnames() if item.startswith("pip-"))
        bundle.extract(name, layer)
    shutil.rmtree(release)
    assert install(tmp_path, plan, cache).is_dir()


def test_a_damaged_bundle_is_refused(tmp_path: Path, plan: Plan, cache: Path) -> None:
    archive = tmp_path / "release.tar"
    content = build_release(plan, cache).read_bytes()
    position = content.index(b"PK\x03\x04") + 40
    archive.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    layer = str(build_layer(plan, cache))
    with pytest.raises(ReleaseError, match=r"in the bundle is damaged \(SHA-256 differs\)"):
        present(tmp_path / "srv", sys.executable, 5, plan.release_id, plan.layer, layer, str(archive))
    assert probe(tmp_path / "srv", sys.executable)["releases"] == []


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError) as refusal:
        probe(tmp_path, "/usr/bin/python9")
    assert str(refusal.value) == (
        "there is no working Python at /usr/bin/python9 on this host; "
        "install one and name it in the role's python variable"
    )


def test_two_installations_at_once_are_refused(tmp_path: Path, plan: Plan, cache: Path) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(
            ReleaseError, match=r"another deploy is installing into .*; wait until it has ended and run again"
        ):
            install(tmp_path, plan, cache)


def release_of(root: Path, name: str, layer: str, age: int) -> None:
    for directory, marker in ((root / "releases" / name, "release.json"), (root / "layers" / layer, "layer.json")):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / marker).write_text(json.dumps({"layer": layer, "python_version": platform.python_version()}))
        os.utime(directory / marker, (age, age))


def test_pruning_spares_the_current_and_the_wanted_release_and_their_layers(tmp_path: Path) -> None:
    for number in range(5):
        release_of(tmp_path, f"r{number}", f"l{number // 2}", number)
    (tmp_path / "current").symlink_to("releases/r0")
    assert prune(tmp_path, 2, "r4") == ["r1", "r2", "r3"]
    assert [item.name for item in complete(tmp_path / "releases", "release.json")] == ["r0", "r4"]
    assert [item.name for item in complete(tmp_path / "layers", "layer.json")] == ["l0", "l2"]
    assert prune(tmp_path, 2, "r4") == []


def test_a_release_that_somebody_changed_is_not_taken_for_what_its_id_says(
    tmp_path: Path, plan: Plan, cache: Path
) -> None:
    release = install(tmp_path, plan, cache)
    bareforge_release.refuse_altered(release)
    package = next((release / "venv/lib").glob("python*/site-packages/bareforge_agent"))
    # byte code comes and goes
    for file in package.rglob("*.pyc"):
        file.unlink()
    bareforge_release.refuse_altered(release)
    for file in (release / "app/main.py", package / "__init__.py"):
        before = file.read_text()
        file.write_text(f"{before}\nimport os\n")
        with pytest.raises(ReleaseError) as refused:
            bareforge_release.refuse_altered(release)
        assert str(refused.value) == (
            f"release {release.name} on {os.uname().nodename} is not as it was installed (SHA-256 differs); see who "
            f"changes {release}, then remove it, or where it serves, deploy another release first, and run again"
        )
        file.write_text(before)
    (package / "__init__.py").unlink()
    with pytest.raises(ReleaseError, match="is not as it was installed"):
        bareforge_release.refuse_altered(release)


def test_what_killed_installations_left_is_cleared_and_what_is_whole_stays(
    tmp_path: Path, plan: Plan, cache: Path
) -> None:
    release = install(tmp_path, plan, cache)
    half = [tmp_path / "releases/half", tmp_path / "layers/half", tmp_path / "tmpx", tmp_path / ".received-x"]
    for directory in half:
        (directory / "deep").mkdir(parents=True)
    bareforge_release.clear(tmp_path, "tmp*", ".received-*")
    assert not any(directory.exists() for directory in half)
    assert (release / "release.json").is_file()
    assert probe(tmp_path, sys.executable)["layers"] == [plan.layer]


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_torn_archive_of_the_cache_is_named_so(tmp_path: Path, plan: Plan, cache: Path, kept: int) -> None:
    small = compressed(build_release(plan, cache))
    torn = tmp_path / "torn.tar"
    torn.write_bytes(small.read_bytes()[:kept])
    said = "^the bundle is no whole archive; delete the controller's cache and run again$"
    with pytest.raises(ReleaseError, match=said):
        bareforge_release.unpack(torn, tmp_path / "into")
    unpacked = bareforge_release.unpack(small, tmp_path / "whole")
    assert unpacked["id"] == plan.release_id
