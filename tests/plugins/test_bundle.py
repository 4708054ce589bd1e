"""The controller's half of a release: what is recognised, refused, hashed and built."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from plugins.module_utils import bareforge_bundle
from plugins.module_utils.bareforge_bundle import (
    BundleError,
    Target,
    build_layer,
    build_release,
    flatten_lock,
    make_plan,
    resolve_source,
    split_git,
)

TARGET = Target("3.11.2", "x86_64", "2.36")
HASH = "--hash=sha256:" + "0" * 64
SERVER = "".join(f"{name}==1.0 \\\n    {HASH}\n" for name in ("gunicorn", "uvicorn", "uvicorn-worker"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tree = tmp_path / "project"
    (tree / "shop").mkdir(parents=True)
    (tree / "shop/__init__.py").write_text("")
    (tree / "shop/main.py").write_text("async def app(scope, receive, send): ...\n")
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "shop"\nversion = "1.2"\nrequires-python = ">=3.11"\n'
    )
    (tree / "requirements.lock").write_text(SERVER)
    return tree


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def plan_of(project: Path, cache: Path, target: Target = TARGET) -> str:
    return make_plan(str(project), "requirements.lock", [], target, cache, server=True).release_id


def test_the_release_id_follows_content_and_nothing_else(project: Path, cache: Path) -> None:
    first = plan_of(project, cache)
    assert first.startswith("1.2-")
    (project / "shop/main.py").touch()
    (project / "shop/__pycache__").mkdir()
    (project / "shop/__pycache__/main.pyc").write_bytes(b"x")
    assert plan_of(project, cache) == first
    (project / "shop/main.py").write_text("changed = True\n")
    assert plan_of(project, cache) != first


def test_hosts_with_different_pythons_get_one_release_id_and_two_layers(project: Path, cache: Path) -> None:
    plans = [
        make_plan(str(project), "requirements.lock", [], target, cache, server=True)
        for target in (TARGET, Target("3.13.5", "x86_64", "2.41"))
    ]
    assert plans[0].release_id == plans[1].release_id
    assert plans[0].layer != plans[1].layer


def test_secrets_in_env_files_are_never_shipped(project: Path, cache: Path) -> None:
    for name in (".env", ".env.production", ".env.example"):
        (project / name).write_text("SECRET=1\n")
    files = resolve_source(str(project), cache).files
    assert ".env.example" in files
    assert not {".env", ".env.production"} & set(files)


def test_file_names_of_any_language_are_shipped(project: Path, cache: Path) -> None:
    subprocess.run(["git", "-C", str(project), "init", "-q"], check=True)
    (project / "größer.txt").write_text("x")
    assert "größer.txt" in resolve_source(str(project), cache).files


def test_what_git_tracks_is_shipped_even_if_it_looks_like_a_build_product(project: Path, cache: Path) -> None:
    (project / "shop/static/dist").mkdir(parents=True)
    (project / "shop/static/dist/site.css").write_text("x")
    (project / "dist").mkdir()
    (project / "dist/shop.whl").write_text("x")
    files = resolve_source(str(project), cache).files
    assert "shop/static/dist/site.css" in files
    assert "dist/shop.whl" not in files


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("git+https://host/a.git", ("https://host/a.git", "HEAD", "")),
        ("git+https://host/a.git@v1", ("https://host/a.git", "v1", "")),
        ("git+https://host/a.git@feature/x", ("https://host/a.git", "feature/x", "")),
        ("git+https://user:token@host/a.git@v1", ("https://user:token@host/a.git", "v1", "")),
        ("git+ssh://git@host/a.git", ("ssh://git@host/a.git", "HEAD", "")),
        ("git+file:///srv/a.git@v1#subdirectory=app", ("file:///srv/a.git", "v1", "app")),
    ],
)
def test_git_sources_are_read(source: str, expected: tuple[str, str, str]) -> None:
    assert split_git(source) == expected


def test_a_password_in_a_git_url_is_refused_and_not_repeated(cache: Path) -> None:
    with pytest.raises(BundleError) as refusal:
        resolve_source("git+http://user:canary-token@127.0.0.1:1/a.git@v1", cache)
    assert str(refusal.value) == (
        "the git source carries a password in its URL, which would show in process lists and logs; "
        "use SSH or a git credential helper on the controller"
    )


def test_git_sources_are_fetched_by_reference(project: Path, cache: Path) -> None:
    git = ["git", "-C", str(project), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (project / "shop/main.py").write_text("uncommitted = True\n")
    found = resolve_source(f"git+file://{project}@v1", cache)
    assert found.git_revision == head
    assert found.version == "1.2"
    assert found.digest != resolve_source(str(project), cache).digest
    with pytest.raises(BundleError, match=r"cannot fetch 'v9' from file://.*; check the URL, the ref and your access"):
        resolve_source(f"git+file://{project}@v9", cache)


def test_a_marker_is_evaluated_for_the_host_and_not_for_the_controller() -> None:
    lock = f"old==1 ; python_full_version < '3.11.3' {HASH}\nnew==1 ; python_full_version >= '3.11.3' {HASH}\n"
    assert list(flatten_lock(lock, "x", Target("3.11.2", "x86_64", "2.36"))) == ["old"]
    assert list(flatten_lock(lock, "x", Target("3.11.9", "x86_64", "2.36"))) == ["new"]
    arm = f"only==1 ; platform_machine == 'aarch64' {HASH}\n"
    assert flatten_lock(arm, "x", TARGET) == {}


def test_lines_over_several_rows_and_comments_are_read() -> None:
    lock = f"# made by\nthing[b,a]==1.0 \\\n    {HASH} \\\n    {HASH.replace('0', '1')}\n    # via x\n"
    assert flatten_lock(lock, "x", TARGET) == {"thing": f"thing[a,b]==1.0 {HASH} {HASH.replace('0', '1')}"}


@pytest.mark.parametrize("line", [f"thing>=1 {HASH}", "thing==1", "-e .", "--index-url http://x", f"thing {HASH}"])
def test_lines_that_are_not_pinned_and_hashed_are_refused(line: str) -> None:
    with pytest.raises(BundleError) as refusal:
        flatten_lock(f"# head\n{line}\n", "requirements.lock", TARGET)
    assert str(refusal.value) == (
        "line 2 of requirements.lock is not pinned with == and --hash; write the lock with: scripts/lock"
    )


def test_a_python_that_the_source_does_not_support_is_refused(project: Path, cache: Path) -> None:
    with pytest.raises(BundleError) as refusal:
        plan_of(project, cache, Target("3.10.12", "x86_64", "2.35"))
    assert str(refusal.value) == (
        "Python 3.10.12 of this host does not satisfy the source's requires-python >=3.11; install a fitting Python "
        "and name it in the role's python variable, or deploy a version that supports 3.10"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "shop>=1",
            "the source 'shop>=1' is not a directory on the controller and, as a PyPI requirement, not pinned; "
            "write shop==VERSION",
        ),
        (
            "/no/such/dir",
            "the source '/no/such/dir' is neither a directory, a wheel, git+URL@ref nor NAME==VERSION; correct it",
        ),
        (
            "/no/such-1-py3-none-any.whl",
            "the wheel /no/such-1-py3-none-any.whl does not exist on the controller; build it or correct the path",
        ),
    ],
)
def test_sources_that_cannot_be_read_are_refused(source: str, message: str, cache: Path) -> None:
    with pytest.raises(BundleError) as refusal:
        resolve_source(source, cache)
    assert str(refusal.value) == message


def test_a_missing_lock_names_the_command_that_writes_it(project: Path, cache: Path) -> None:
    lock = project / "requirements.lock"
    lock.unlink()
    with pytest.raises(BundleError) as refusal:
        plan_of(project, cache)
    assert str(refusal.value) == f"there is no lock file {lock}; write it with: scripts/lock {project} > {lock}"


def test_a_lock_without_the_server_is_refused(project: Path, cache: Path) -> None:
    lock = project / "requirements.lock"
    lock.write_text(f"gunicorn==1.0 {HASH}\n")
    with pytest.raises(BundleError) as refusal:
        plan_of(project, cache)
    assert str(refusal.value) == (
        f"{lock} does not pin uvicorn, uvicorn-worker; write the lock with: scripts/lock {project} > {lock}"
    )


def test_a_requirement_has_to_be_in_its_lock(project: Path, cache: Path) -> None:
    lock = project / "requirements.lock"
    with pytest.raises(BundleError) as refusal:
        make_plan("shop==2", str(lock), [], TARGET, cache, server=True)
    assert str(refusal.value) == f"{lock} does not pin shop==2; write the lock with: scripts/lock 'shop==2' > {lock}"


def test_a_hash_that_no_wheel_has_is_refused(project: Path, cache: Path) -> None:
    (project / "requirements.lock").write_text(SERVER + f"idna==3.10 {HASH}\n")
    plan = make_plan(str(project), "requirements.lock", [], TARGET, cache, server=True)
    with pytest.raises(BundleError) as refusal:
        build_layer(plan, cache)
    assert str(refusal.value).startswith(
        "cannot fetch the locked wheels for Python 3.11.2 on x86_64 (glibc 2.36): ERROR: "
    )
    assert not list(cache.glob("layer-*.tar"))


def test_a_wheel_is_shipped_as_it_is(project: Path, tmp_path: Path, cache: Path) -> None:
    built = make_plan(str(project), "requirements.lock", [], TARGET, cache, server=True)
    with tarfile.open(build_release(built, cache)) as tar:
        content = tar.extractfile("wheels/shop-1.2-py3-none-any.whl").read()  # type: ignore[union-attr]
    wheel = tmp_path / "shop-1.2-py3-none-any.whl"
    wheel.write_bytes(content)
    plan = make_plan(str(wheel), str(project / "requirements.lock"), [], TARGET, cache, server=True)
    assert plan.source.requires_python == ">=3.11"
    assert plan.release_id.startswith("1.2-")
    with tarfile.open(build_release(plan, cache)) as tar:
        assert tar.extractfile("wheels/shop-1.2-py3-none-any.whl").read() == content  # type: ignore[union-attr]
        assert [name for name in tar.getnames() if name.startswith("app/")] == []


def test_the_same_source_builds_the_same_bytes(project: Path, tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        plan = make_plan(str(project), "requirements.lock", [], TARGET, tmp_path / name, server=True)
        archives.append(build_release(plan, tmp_path / name))
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert "app/shop/main.py" in names
    assert list(manifest["files"]) == ["wheels/shop-1.2-py3-none-any.whl"]
    assert manifest["id"] == plan.release_id


def test_a_wheel_is_built_once_for_all_targets(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor again for a release with another lock."""
    first = make_plan(str(project), "requirements.lock", [], TARGET, tmp_path / "cache", server=True)
    build_release(first, tmp_path / "cache")
    monkeypatch.setattr(bareforge_bundle, "_uv", lambda: pytest.fail("built again"))
    newer = Target("3.13.5", "x86_64", "2.41")
    second = make_plan(str(project), "requirements.lock", [], newer, tmp_path / "cache", server=True)
    assert second.release_id == first.release_id
    assert second.layer != first.layer
    with tarfile.open(build_release(second, tmp_path / "cache")) as tar:
        assert "wheels/shop-1.2-py3-none-any.whl" in tar.getnames()
