#!/usr/bin/python
"""Put immutable releases on a host: dependency layer, virtual environment, source tree, manifest.

Standard library only. The action plugin of the same name builds the bundles on the controller, asks this module what
the host has (state=probe) and hands over what is missing (state=present).
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: bareforge_release
short_description: Build a release on the controller once and install it on the host, without touching what serves
description:
  - The release goes to C(root)/releases/ID, its dependencies to C(root)/layers/HASH, shared by releases with one lock.
  - Nothing is switched; C(root)/current is not touched.
options:
  root: {description: Directory of the application on the host., type: path, required: true}
  source: {description: "Directory on the controller, git+URL@ref, wheel file, or NAME==VERSION.", type: str}
  lock: {description: "Hashed lock file, absolute or relative to the source.", type: str, default: requirements.lock}
  extras:
    description: Further source directories on the controller whose wheels belong to the release.
    type: list
    elements: str
    default: []
  server: {description: Whether the lock must pin the application server., type: bool, default: false}
  python: {description: Interpreter of the host., type: path, default: /usr/bin/python3}
  keep: {description: "How many releases to keep; the current one is always kept.", type: int, default: 5}
  cache: {description: Bundle cache on the controller., type: path, default: ~/.cache/bareforge}
  state: {description: Set by the action plugin., type: str, choices: [probe, present], default: present}
  release_id: {description: Set by the action plugin., type: str}
  layer: {description: Set by the action plugin., type: str}
  layer_archive: {description: Set by the action plugin., type: path}
  release_archive: {description: Set by the action plugin., type: path}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Build and install the release
  bareforge_release:
    root: /srv/forge
    source: "{{ playbook_dir }}/../app"
  register: release
"""

RETURN = r"""
id: {description: The release id., type: str, returned: always}
path: {description: Directory of the release on the host., type: str, returned: always}
version: {description: Version of the source., type: str, returned: always}
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import lzma
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARGIN = 8 << 20
"""Bytes that an installation leaves free, for logs and records of the host."""


class ReleaseError(Exception):
    """The release cannot be installed; the message names the cause and the cure in one line."""


def probe(root: Path, python: str) -> dict[str, Any]:
    """What the action plugin must know of this host before it builds.

    Returns python_version (full), machine, libc_version, and the complete releases and layers under root.
    """
    program = "import platform as p, json; print(json.dumps([p.python_version(), p.libc_ver()[1], p.machine()]))"
    try:
        output = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ReleaseError(
            f"there is no working Python at {python} on this host; "
            "install one and name it in the role's python variable"
        ) from None
    version, libc_version, machine = json.loads(output)
    return {
        "python_version": version,
        "libc_version": libc_version or platform.libc_ver()[1],
        "machine": machine,
        "releases": [item.name for item in complete(root / "releases", "release.json") if _fits(item, version)],
        "layers": [item.name for item in complete(root / "layers", "layer.json")],
    }


def complete(directory: Path, marker: str) -> list[Path]:
    """The entries of a directory whose marker was written, oldest first."""
    if not directory.is_dir():
        return []
    found = [item for item in directory.iterdir() if (item / marker).is_file()]
    return sorted(found, key=lambda item: (item / marker).stat().st_mtime)


def _fits(release: Path, python_version: str) -> bool:
    """An upgrade of the system's Python to another minor version breaks every virtual environment made before."""
    made_with = str(json.loads((release / "release.json").read_text())["python_version"])
    return made_with.split(".")[:2] == python_version.split(".")[:2]


def unpack(archive: Path, into: Path) -> dict[str, Any]:
    """Unpack a bundle and check every file against its manifest; returns the manifest."""
    try:
        _unpack(archive, into)
    except (tarfile.TarError, lzma.LZMAError, EOFError):
        raise ReleaseError("the bundle is no whole archive; delete the controller's cache and run again") from None
    manifest: dict[str, Any] = json.loads((into / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        if hashlib.sha256((into / name).read_bytes()).hexdigest() != expected:
            raise ReleaseError(
                f"{name} in the bundle is damaged (SHA-256 differs); delete the controller's cache and run again"
            )
    return manifest


def _unpack(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            # Debian 12's Python has no extraction filters
            if not (member.isfile() or member.isdir()) or member.name.startswith("/") or ".." in member.name.split("/"):
                raise ReleaseError(f"{member.name!r} does not belong into a bundle; delete the controller's cache")
        tar.extractall(into)  # noqa: S202


def refuse_without_room(root: Path, bundle: Path) -> None:
    """Raise ReleaseError where the disk has not half as much again as the unpacked packages take.

    Half: byte code (an installed layer of 71 MB of packages took 89 MB) and what lives beside.
    """
    packages = sum(info.file_size for wheel in bundle.rglob("*.whl") for info in zipfile.ZipFile(wheel).infolist())
    files = sum(item.stat().st_size for item in bundle.rglob("*") if item.suffix != ".whl")
    needed, free = round(1.5 * (packages + files)) + MARGIN, shutil.disk_usage(root).free
    if free < needed:
        raise ReleaseError(
            f"{root} has {free / 1e6:.0f} MB left and the installation takes up to {needed / 1e6:.0f} MB; "
            "free space, or keep fewer releases, and run again"
        )


@contextmanager
def _whole(destination: Path) -> Iterator[None]:
    """A directory that is whole or not there: on a full disk, what is left would keep the next one from its room."""
    shutil.rmtree(destination, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise


def install_layer(root: Path, archive: Path, python: str, layer: str) -> None:
    """Create root/layers/HASH, a virtual environment with the locked dependencies, byte-compiled.

    The environment is built at its final path, since scripts and byte code carry paths, and counts only once
    layer.json is there; what an interrupted run left is built again.
    """
    destination = root / "layers" / layer
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch, _whole(destination):
        bundle = Path(scratch)
        manifest = unpack(archive, bundle)
        refuse_without_room(root, bundle)
        _run([python, "-m", "venv", "--without-pip", str(destination)], "creating the virtual environment")
        pip = next(bundle.glob("pip-*.whl")) / "pip"
        command = [python, "-I", str(pip), "--python", str(destination / "bin/python"), "--disable-pip-version-check"]
        command += ["install", "--quiet", "--no-cache-dir", "--no-index", "--no-deps", "--require-hashes"]
        command += ["--find-links", str(bundle / "wheels"), "-r", str(bundle / "lock.txt")]
        _run(command, "installing the locked dependencies")
        # unpacked and compiled once: from its wheel, pip is compiled at each start, which takes longer than its work
        with zipfile.ZipFile(next(bundle.glob("pip-*.whl"))) as packed:
            packed.extractall(destination / "pip")  # noqa: S202 (its hash was checked)
        _run([str(destination / "bin/python"), "-m", "compileall", "-q", str(destination / "pip")], "compiling pip")
        finish(destination / "layer.json", {"layer": layer, "python_version": manifest["python_version"]})


def install_release(root: Path, archive: Path, layer: str, python_version: str) -> None:
    """Create root/releases/ID: a copy of the layer by hard links, the application's wheels, tree and release.json."""
    with tempfile.TemporaryDirectory(dir=root) as scratch, contextlib.ExitStack() as stack:
        bundle = Path(scratch)
        manifest = unpack(archive, bundle)
        refuse_without_room(root, bundle)
        destination = root / "releases" / manifest["id"]
        stack.enter_context(_whole(destination))
        destination.mkdir(parents=True)
        base, venv = root / "layers" / layer, destination / "venv"
        link_environment(base, venv)
        wheels = sorted(str(item) for item in (bundle / "wheels").glob("*.whl"))
        pip = _pip_of(base)
        # by the environment's own interpreter: with --python, pip would start twice
        run_pip = [str(venv / "bin/python"), "-I", str(pip), "--disable-pip-version-check"]
        if wheels:
            install = ["install", "--quiet", "--no-cache-dir", "--no-index", "--no-deps", *wheels]
            _run(run_pip + install, "installing the application")
        requires = requirements([Path(wheel) for wheel in wheels])
        if not _is_checked(root, layer, requires):
            _run(
                [*run_pip, "check"],
                "checking the dependencies (the lock may be older than the application: scripts/lock)",
            )
        shutil.copytree(bundle / "app", destination / "app")
        _run(
            [str(venv / "bin/python"), "-m", "compileall", "-q", str(destination / "app")], "compiling the application"
        )
        facts = {key: manifest[key] for key in ("id", "version", "git_revision", "layer")}
        facts["content"] = content(destination, [Path(wheel).name for wheel in wheels])
        facts |= {"wheels": [Path(wheel).name for wheel in wheels], "requires": requires}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        finish(destination / "release.json", {**facts, "python_version": python_version, "created": created})


def _pip_of(layer: Path) -> Path:
    """What to start as pip; layers of an earlier version of this file keep its wheel."""
    unpacked = layer / "pip/pip"
    return unpacked if unpacked.is_dir() else next(layer.glob("pip-*.whl")) / "pip"


def requirements(wheels: list[Path]) -> str:
    """SHA-256 of what these wheels are and require: with one layer, all that `pip check` judges by."""
    total = hashlib.sha256()
    for wheel in sorted(wheels):
        with zipfile.ZipFile(wheel) as packed:
            name = next(item for item in packed.namelist() if item.endswith(".dist-info/METADATA"))
            lines = packed.read(name).decode().partition("\n\n")[0].splitlines()
        total.update("\n".join(line for line in lines if line.startswith(("Name:", "Version:", "Requires-"))).encode())
    return total.hexdigest()


def _is_checked(root: Path, layer: str, requires: str) -> bool:
    """Whether a release with this layer and these requirements has passed the check on this host."""
    releases = [json.loads((item / "release.json").read_text()) for item in complete(root / "releases", "release.json")]
    return any((facts["layer"], facts.get("requires")) == (layer, requires) for facts in releases)


def content(release: Path, wheels: list[str]) -> str:
    """SHA-256 of what is a release's own: its tree, and the installed files of its wheels, without byte code."""
    files = [item for item in (release / "app").rglob("*") if item.is_file()]
    for wheel in wheels:
        distribution = "-".join(wheel.split("-")[:2])
        for record in (release / "venv/lib").glob(f"python*/site-packages/{distribution}.dist-info/RECORD"):
            with record.open(newline="") as lines:
                files += [record.parents[1] / row[0] for row in csv.reader(lines)]
    total = hashlib.sha256()
    for item in sorted({Path(os.path.normpath(item)) for item in files if item.suffix != ".pyc"}):
        read = item.read_bytes() if item.is_file() else b"gone"
        total.update(f"{item.relative_to(release)}\0{hashlib.sha256(read).hexdigest()}\n".encode())
    return total.hexdigest()


def refuse_altered(release: Path) -> None:
    """Raise ReleaseError where an installed release is not as it was installed: its id would say what is not so."""
    facts = json.loads((release / "release.json").read_text())
    # releases of an earlier version of this file did not say
    if "content" in facts and content(release, facts["wheels"]) != facts["content"]:
        raise ReleaseError(
            f"release {release.name} on {os.uname().nodename} is not as it was installed (SHA-256 differs); see who "
            f"changes {release}, then remove it, or where it serves, deploy another release first, and run again"
        )


def link_environment(base: Path, venv: Path) -> None:
    """Copy a virtual environment: libraries as hard links (both are immutable), scripts with their own interpreter."""
    shutil.copytree(base / "lib", venv / "lib", copy_function=os.link, symlinks=True)
    shutil.copy(base / "pyvenv.cfg", venv)
    (venv / "bin").mkdir()
    old, new = f"#!{base}/bin/".encode(), f"#!{venv}/bin/".encode()
    for item in (base / "bin").iterdir():
        if item.is_symlink():
            (venv / "bin" / item.name).symlink_to(item.readlink())
        elif item.name not in ("Activate.ps1",) and not item.name.startswith("activate"):
            content = item.read_bytes()
            (venv / "bin" / item.name).write_bytes(content.replace(old, new, 1) if content.startswith(old) else content)
            (venv / "bin" / item.name).chmod(0o755)


def prune(root: Path, keep: int, wanted: str) -> list[str]:
    """Remove the oldest releases beyond keep and unused layers; never the current, the previous or the wanted one."""
    links = [root / "current", root / "previous"]
    protected_names = {wanted, *(link.resolve().name for link in links if link.exists())}
    releases = complete(root / "releases", "release.json")
    candidates = [item for item in releases if item.name not in protected_names]
    protected = len(releases) - len(candidates)
    removed = candidates[: max(0, len(candidates) - max(0, keep - protected))]
    for item in removed:
        shutil.rmtree(item)
    used = {
        json.loads((item / "release.json").read_text())["layer"] for item in complete(root / "releases", "release.json")
    }
    for item in complete(root / "layers", "layer.json"):
        if item.name not in used:
            shutil.rmtree(item)
    return [item.name for item in removed]


def _run(command: list[str], doing: str) -> None:
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        raise ReleaseError(f"{doing} failed: {lines[-1] if lines else f'status {done.returncode}'}")


def finish(marker: Path, content: dict[str, Any]) -> None:
    """Write the marker that makes a directory count, after everything in it has reached the disk."""
    os.sync()
    partial = marker.with_suffix(".partial")
    with partial.open("w") as handle:
        json.dump(content, handle, indent=1, sort_keys=True)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(marker)
    os.sync()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One installation per application and host at a time; the kernel frees the lock when the process dies."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(
                f"another deploy is installing into {root} right now; wait until it has ended and run again"
            ) from None
        yield


def clear(root: Path, *scratch: str) -> None:
    """Remove what installations that were killed have left: scratch directories by pattern, and what is not whole."""
    with _locked(root):
        _clear(root, *scratch)


def _clear(root: Path, *scratch: str) -> None:
    stale = [item for pattern in scratch for item in root.glob(pattern)]
    for directory, marker in (("releases", "release.json"), ("layers", "layer.json")):
        stale += [item for item in root.glob(f"{directory}/*") if not (item / marker).is_file()]
    for item in stale:
        shutil.rmtree(item)


def present(
    root: Path, python: str, keep: int, release_id: str, layer: str, layer_archive: str | None, release_archive: str
) -> dict[str, Any]:
    """Install what is missing; returns changed, id, path and the names of pruned releases."""
    os.umask(0o022)
    with _locked(root):
        _clear(root, "tmp*")
        facts = probe(root, python)
        if layer_archive and layer not in facts["layers"]:
            install_layer(root, Path(layer_archive), python, layer)
        install_release(root, Path(release_archive), layer, facts["python_version"])
        removed = prune(root, keep, release_id)
    return {"changed": True, "removed": removed}


def main() -> None:
    """Entry point of the module."""
    # on a host the engine imports this file, and there is no Ansible
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "source": {"type": "str"},
            "lock": {"type": "str", "default": "requirements.lock"},
            "extras": {"type": "list", "elements": "str", "default": []},
            "server": {"type": "bool", "default": False},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "keep": {"type": "int", "default": 5},
            "cache": {"type": "path", "default": "~/.cache/bareforge"},
            "state": {"type": "str", "choices": ["probe", "present"], "default": "present"},
            "release_id": {"type": "str"},
            "layer": {"type": "str"},
            "layer_archive": {"type": "path"},
            "release_archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    root = Path(given["root"])
    try:
        if given["state"] == "probe":
            result = {"changed": False, **probe(root, given["python"])}
        else:
            result = present(
                root, given["python"], given["keep"], given["release_id"], given["layer"],
                given["layer_archive"], given["release_archive"],
            )  # fmt: skip
    except ReleaseError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.strerror} at {error.filename or root}; free space or correct the path and run again"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
