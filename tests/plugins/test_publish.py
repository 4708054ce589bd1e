"""What a fleet's bundle holds, how it is signed, and what is refused. molecule/pull starts a host from one."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT / "plugins/module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))
from ansible.module_utils import bareforge_publish  # noqa: E402
from ansible.module_utils.bareforge_bundle import BundleError, Plan, Target  # noqa: E402
from ansible.module_utils.bareforge_publish import Publication, publish, stage, user_data, without  # noqa: E402

TARGET = Target("3.13.5", "x86_64", "2.41")
HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """A publication of a tiny application; its layers are not fetched from the index."""

    def layer(plan: Plan, cache: Path) -> Path:
        cache.mkdir(exist_ok=True)
        file = cache / f"layer-{plan.layer}.tar"
        file.write_text(plan.lock)
        return file

    monkeypatch.setattr(bareforge_publish, "build_layer", layer)
    source, store, inventory = tmp_path / "shop", tmp_path / "store", tmp_path / "inventory"
    for directory in (source, store, inventory / "group_vars"):
        directory.mkdir(parents=True)
    (source / "main.py").write_text("async def app(scope, receive, send): ...\n")
    lock = "".join(f"{name}==1.0 \\\n    {HASH}\n" for name in ("gunicorn", "uvicorn", "uvicorn-worker"))
    (source / "requirements.lock").write_text(lock)
    (inventory / "group_vars/all.yml").write_text("asgi_app_name: shop\n")
    key = tmp_path / "publish"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return Publication(
        name="shop",
        store=store,
        url="https://store.example",
        key=key,
        source=str(source),
        lock="requirements.lock",
        inventories=(inventory,),
        agent=True,
        target=TARGET,
        by="me@here",
    )


def manifest_of(result: dict[str, Any]) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(
        base64.b64decode(json.loads(Path(result["manifest"]).read_text())["manifest"])
    )
    return manifest


def test_a_bundle_names_all_that_a_host_needs_by_its_hash(wanted: Publication, tmp_path: Path) -> None:
    result = publish(wanted, ROOT, tmp_path / "cache")
    manifest = manifest_of(result)
    assert result["changed"]
    assert result["manifest"] == f"{wanted.store}/shop/python3.13.5-x86_64-glibc2.41.json"
    assert manifest["release"] == result["release"]
    names = sorted(manifest["blobs"])
    assert names[0] == "bareforge_release.py"
    # of the application, of the agent, of the playbooks
    assert len([name for name in names if name.startswith("layer-")]) == 3
    assert len([name for name in names if name.startswith("release-")]) == 3
    for facts in manifest["blobs"].values():
        content = (wanted.store / "shop/blobs" / facts["sha256"]).read_bytes()
        assert sha256(content).hexdigest() == facts["sha256"]
        assert len(content) == facts["size"]


def test_the_same_input_is_the_same_bundle_and_another_one_is_newer(wanted: Publication, tmp_path: Path) -> None:
    first = publish(wanted, ROOT, tmp_path / "cache")
    before = Path(first["manifest"]).read_bytes()
    again = publish(wanted, ROOT, tmp_path / "cache")
    assert again == {**first, "changed": False}
    assert Path(first["manifest"]).read_bytes() == before
    Path(wanted.source, "main.py").write_text("changed = True\n")
    third = publish(wanted, ROOT, tmp_path / "cache")
    assert third["changed"]
    assert third["release"] != first["release"]
    assert third["sequence"] > first["sequence"]


def test_a_changed_inventory_is_another_bundle_of_the_same_release(wanted: Publication, tmp_path: Path) -> None:
    first = publish(wanted, ROOT, tmp_path / "cache")
    (wanted.inventories[0] / "group_vars/all.yml").write_text("asgi_app_name: shop\nasgi_app_workers: 4\n")
    second = publish(wanted, ROOT, tmp_path / "cache")
    assert second["changed"]
    assert second["release"] == first["release"]


def test_publishing_again_mends_what_is_damaged_and_believes_no_manifest_that_is_not_signed(
    wanted: Publication, tmp_path: Path
) -> None:
    first = publish(wanted, ROOT, tmp_path / "cache")
    manifest, good = Path(first["manifest"]), Path(first["manifest"]).read_bytes()
    [blob, *_] = (wanted.store / "shop/blobs").iterdir()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    assert publish(wanted, ROOT, tmp_path / "cache")["changed"]
    assert blob.read_bytes() == content
    assert manifest.read_bytes() == good
    # the number of somebody who can only write: hosts would take nothing else afterwards
    forged = json.dumps({**manifest_of(first), "sequence": 10**18}).encode()
    manifest.write_text(json.dumps({**json.loads(good), "manifest": base64.b64encode(forged).decode()}))
    assert publish(wanted, ROOT, tmp_path / "cache")["sequence"] < 10**12


def test_an_inventory_that_is_a_file_comes_with_its_variables(wanted: Publication, tmp_path: Path) -> None:
    [directory] = wanted.inventories
    (directory / "hosts.yml").write_text("app: {hosts: {web1: }}\n")
    tree = tmp_path / "tree"
    one = replace(wanted, inventories=(directory / "hosts.yml",))
    assert stage(one, ROOT, tree, tmp_path / "cache")["inventories"] == ["inventory/1/hosts.yml"]
    assert (tree / "inventory/1/group_vars/all.yml").is_file()


def test_what_git_tracks_and_a_host_would_not_see_is_refused(wanted: Publication, tmp_path: Path) -> None:
    source = Path(wanted.source)
    (source / "dist").mkdir()
    (source / "dist/page.html").write_text("")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(source), *command], check=True)
    with pytest.raises(BundleError, match=r"^git tracks dist/page.html of .*; rename it, or take it out of the repo"):
        publish(wanted, ROOT, tmp_path / "cache")


def test_user_data_fits_and_says_whom_to_trust(wanted: Publication) -> None:
    text = user_data(wanted, "ssh-ed25519 AAAA me", 7, ROOT)
    # the most that EC2 takes
    assert len(text) < 16384
    head, _, data = text.partition("\n")
    assert head == "#cloud-config"
    files = {file["path"]: file for file in json.loads(data)["write_files"]}
    config = json.loads(files["/etc/bareforge-pull/config.json"]["content"])
    assert config["keys"] == ["ssh-ed25519 AAAA me"]
    assert config["store"] == "https://store.example"
    assert config["since"] == 7
    program = base64.b64decode(files["/usr/local/lib/bareforge/bareforge_pull.py"]["content"])
    assert gzip.decompress(program) == (ROOT / "plugins/host/bareforge_pull.py").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": Path("/nowhere")}, "the store /nowhere is no directory on the controller; make it, or correct the"),
        ({"key": Path("/nowhere/key")}, "there is no public key /nowhere/key.pub; make a pair: ssh-keygen -t ed25519"),
        ({"lock": "none.lock"}, "there is no lock file "),
        ({"inventories": (Path("/nowhere"),)}, "the inventory /nowhere is no file or directory; publish with one that"),
    ],
)
def test_what_cannot_be_published_is_refused(
    wanted: Publication, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError) as error:
        publish(replace(wanted, **changes), ROOT, tmp_path / "cache")
    assert str(error.value).startswith(message)
    assert list(wanted.store.iterdir()) == []


def test_a_key_that_cannot_sign_leaves_the_store_without_a_manifest(wanted: Publication, tmp_path: Path) -> None:
    wanted.key.write_text("no key\n")
    with pytest.raises(BundleError, match=r"ssh-keygen cannot sign with .*; a key with a passphrase belongs into"):
        publish(wanted, ROOT, tmp_path / "cache")
    assert list((wanted.store / "shop").glob("python*.json")) == []


def test_a_lock_without_a_package_has_nothing_of_it() -> None:
    lock = f"a==1 \\\n    {HASH}\nuv==2 \\\n    {HASH} \\\n    {HASH}\nuvicorn==3 \\\n    {HASH}\n"
    assert without(lock, ["uv"]) == f"a==1 \\\n    {HASH}\nuvicorn==3 \\\n    {HASH}\n"
