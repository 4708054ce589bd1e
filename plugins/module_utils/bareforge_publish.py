"""Publishes a fleet's bundle, signed, for hosts that converge without a controller (plugins/host/bareforge_pull.py).

A bundle is the controller as it stands: playbooks with their Ansible, inventory, application, and what it would build.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.bareforge_bundle import (
    BundleError,
    Plan,
    Target,
    build_layer,
    build_release,
    copy_tree,
    make_plan,
    resolve_source,
    without,
)

FORMAT = 1
NAMESPACE = "bareforge"
PROJECT = ("agent", "playbooks", "plugins", "roles", "runtime", "templates")
"""What a host needs of this checkout to run deploy.yml on itself."""
# builds nothing there, so what builds is not shipped
NOT_SHIPPED = ("uv",)
UNIT = """[Unit]
Description=Converge this host from the signed bundle of its fleet
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I /usr/local/lib/bareforge/bareforge_pull.py
TimeoutStartSec=1800
Restart=on-failure
RestartSec=30

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Publication:
    """What to publish. source and lock as for make_plan; agent: whether the inventory has its secrets from Vault.

    store: a directory on the controller; url: how hosts reach it. key: a private SSH key, or a public one whose private
    half an ssh-agent has. by: who publishes.
    """

    name: str
    store: Path
    url: str
    key: Path
    source: str
    lock: str
    inventories: tuple[Path, ...]
    agent: bool
    target: Target
    by: str


def publish(wanted: Publication, checkout: Path, cache: Path) -> dict[str, Any]:
    """Build, sign, store; returns changed, release (the application's) and manifest (its path). Raises BundleError."""
    public = public_key(wanted.key)
    if not wanted.store.is_dir():
        raise BundleError(f"the store {wanted.store} is no directory on the controller; make it, or correct the path")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        facts = stage(wanted, checkout, tree, cache)
        plans = _plans(wanted, tree, facts["source"], cache)
        archives = [checkout / "plugins/modules/bareforge_release.py"]
        for plan in plans:
            archives += [build_layer(plan, cache), build_release(plan, cache)]
    application, controller = plans[0], plans[-1]
    content = {
        "format": FORMAT,
        "name": wanted.name,
        "target": asdict(wanted.target),
        "release": application.release_id,
        "controller": {"release": controller.release_id, "layer": controller.layer},
        "blobs": {file.name: _facts(file) for file in archives},
        **facts,
    }
    return _store(wanted, content, archives, public, checkout)


def stage(wanted: Publication, checkout: Path, tree: Path, cache: Path) -> dict[str, Any]:
    """Copy all that is shipped into `tree`, outside of git as on the host; returns source and inventories."""
    for name in PROJECT:
        copy_tree(resolve_source(str(checkout / name), cache), tree / name)
    shutil.copy(checkout / "ansible.cfg", tree)
    lock = (checkout / "requirements/controller.txt").read_text()
    (tree / "controller.lock").write_text(without(lock, NOT_SHIPPED))
    inventories = [_stage_inventory(item, tree, number) for number, item in enumerate(wanted.inventories, 1)]
    return {"source": _stage_source(wanted, tree, cache), "inventories": inventories}


def _stage_inventory(inventory: Path, tree: Path, number: int) -> str:
    """Copy what Ansible reads of one inventory, whatever git knows of it; returns where it is in the tree."""
    name, ignored = f"inventory/{number}", shutil.ignore_patterns(".*", "__pycache__")
    if inventory.is_dir():
        shutil.copytree(inventory, tree / name, ignore=ignored)
        return name
    if not inventory.is_file():
        raise BundleError(f"the inventory {inventory} is no file or directory; publish with one that is: -i PATH")
    (tree / name).mkdir(parents=True)
    shutil.copy(inventory, tree / name)
    for beside in ("group_vars", "host_vars"):
        if (inventory.parent / beside).is_dir():
            shutil.copytree(inventory.parent / beside, tree / name / beside, ignore=ignored)
    return f"{name}/{inventory.name}"


def _stage_source(wanted: Publication, tree: Path, cache: Path) -> str:
    source = resolve_source(wanted.source, cache)
    lock = Path(wanted.lock).expanduser()
    if not lock.is_absolute() and source.tree is not None:
        lock = source.tree / lock
    if not lock.is_file():
        raise BundleError(f"there is no lock file {lock}; write it with: scripts/lock {wanted.source} > {lock}")
    shutil.copy(lock, tree / "application.lock")
    if source.tree is not None:
        copy_tree(source, tree / "application")
        lost = sorted({*source.files} - {*resolve_source(str(tree / "application"), cache).files})
        if lost:
            raise BundleError(
                f"git tracks {lost[0]} of {source.tree}, which outside of git is taken for a product of a build; "
                "rename it, or take it out of the repository"
            )
        return "application"
    if source.wheel is not None:
        (tree / "application").mkdir()
        shutil.copy(source.wheel, tree / "application")
        return f"application/{source.wheel.name}"
    return wanted.source


def _plans(wanted: Publication, tree: Path, source: str, cache: Path) -> list[Plan]:
    """Of the application, of the agent where there is one, and of the bundle's own playbooks."""
    at = str(tree / source) if source.partition("/")[0] == "application" else source
    lock, target = str(tree / "application.lock"), wanted.target
    plan = make_plan(at, lock, [str(tree / "runtime")], target, cache, server=True)
    # as it was before it was copied: the archive stays in the cache for every deploy
    revision = resolve_source(wanted.source, cache).git_revision
    plans = [replace(plan, source=replace(plan.source, git_revision=revision))]
    if wanted.agent:
        plans.append(make_plan(str(tree / "agent"), "requirements.lock", [], target, cache, server=False))
    return [*plans, make_plan(str(tree), "controller.lock", [], target, cache, server=False)]


def _facts(file: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}


# --------------------------------------------------------------------------------------------------- key and store


def public_key(key: Path) -> str:
    """The public half of a key, one line. Raises BundleError."""
    beside = key if key.suffix == ".pub" else key.with_name(f"{key.name}.pub")
    if beside.is_file():
        return beside.read_text().strip()
    raise BundleError(
        f"there is no public key {beside}; make a pair: ssh-keygen -t ed25519 -f {beside.with_suffix('')}"
    )


def sign(manifest: bytes, key: Path) -> str:
    """The armoured signature. Raises BundleError."""
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE],  # noqa: S607 (where it is differs)
        input=manifest,
        capture_output=True,
        env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise BundleError(
            f"ssh-keygen cannot sign with {key}: {said[-1]}; a key with a passphrase belongs into ssh-agent, "
            "then name its public half"
        )
    return done.stdout.decode()


def target_name(target: Target) -> str:
    """The name of a target's manifest in the store, without its ending: what hosts ask for."""
    return f"python{target.python_version}-{target.machine}-glibc{target.libc_version}"


def _store(
    wanted: Publication, content: Mapping[str, Any], archives: Sequence[Path], public: str, checkout: Path
) -> dict[str, Any]:
    """Blobs first, the manifest that names them last and at once: whoever fetches meanwhile has one whole bundle."""
    directory = wanted.store / wanted.name
    file = directory / f"{target_name(wanted.target)}.json"
    before = _published(file, public)
    # also what is there already: whoever publishes again does so because something of it is damaged
    names = {archive: content["blobs"][archive.name]["sha256"] for archive in archives}
    changed = [_put(directory / "blobs" / digest, archive.read_bytes()) for archive, digest in names.items()]
    sequence = int(before.get("sequence", 0))
    # times do not make another bundle
    if {key: before.get(key) for key in content} != content:
        sequence = max(int(time.time()), sequence + 1)
        manifest = json.dumps({**content, "sequence": sequence, "by": wanted.by}, sort_keys=True).encode()
        envelope = {"manifest": base64.b64encode(manifest).decode(), "signature": sign(manifest, wanted.key)}
        changed.append(_put(file, json.dumps(envelope).encode()))
    changed.append(_put(directory / "user-data.yml", user_data(wanted, public, sequence, checkout).encode()))
    return {"changed": any(changed), "release": content["release"], "manifest": str(file), "sequence": sequence}


def _published(file: Path, public: str) -> dict[str, Any]:
    """The manifest that is in the store, {} where there is none that this key has signed."""
    try:
        packed = json.loads(file.read_text())
        manifest, signature = base64.b64decode(packed["manifest"]), str(packed["signature"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        signers, signed = Path(scratch) / "signers", Path(scratch) / "signature"
        signers.write_text(f"publisher {public}\n")
        signed.write_text(signature)
        command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "publisher", "-n", NAMESPACE]
        done = subprocess.run([*command, "-s", str(signed)], input=manifest, capture_output=True)
    content: dict[str, Any] = {} if done.returncode else json.loads(manifest)
    return content


def _put(file: Path, content: bytes) -> bool:
    """Write a file at once; returns whether it was another."""
    if file.is_file() and file.read_bytes() == content:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
        partial.write(content)
        partial.flush()
        os.fsync(partial.fileno())
    Path(partial.name).chmod(0o644)
    Path(partial.name).rename(file)
    return True


def user_data(wanted: Publication, public: str, sequence: int, checkout: Path) -> str:
    """What a new host is started with (cloud-init). It decides whom the host trusts, so it comes from who starts it."""
    program = gzip.compress((checkout / "plugins/host/bareforge_pull.py").read_bytes(), mtime=0)
    config = {"name": wanted.name, "store": wanted.url, "keys": [public], "since": sequence}
    files = [
        {"path": "/etc/bareforge-pull/config.json", "permissions": "0644", "content": json.dumps(config, indent=1)},
        {
            "path": "/usr/local/lib/bareforge/bareforge_pull.py",
            "permissions": "0755",
            "encoding": "gz+b64",
            "content": base64.b64encode(program).decode(),
        },
        {"path": "/etc/systemd/system/bareforge-pull.service", "permissions": "0644", "content": UNIT},
    ]
    start = ["systemctl", "enable", "--now", "--no-block", "bareforge-pull.service"]
    # JSON is YAML
    data = {"write_files": files, "runcmd": [["systemctl", "daemon-reload"], start]}
    return f"#cloud-config\n{json.dumps(data, indent=1)}\n"
