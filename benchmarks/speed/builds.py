"""Builds of the application that is shipped: sources with a number and a lock, and the bundle of the peers."""

from __future__ import annotations

import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import ROOT
from plugins.module_utils.bareforge_bundle import Target, build_layer, build_release, compressed, make_plan, without

APPLICATION = Path(__file__).with_name("app")
LOCK = ROOT / "app/requirements.lock"
# Packages of the lock that the application does without: each selection of them is another lock. After the last one
# comes the first again, whose layer the hosts have removed by then.
OPTIONAL = ("alembic", "asyncpg", "fastapi-offline")


@dataclass(frozen=True)
class Build:
    """One build: its number, its source with the lock beside it, the peers' bundle, the bytes of its wheel."""

    number: int
    source: Path
    bundle: Path
    wheel_bytes: int


def select(lock: str, selection: int) -> str:
    """The lock without the optional packages whose bit is set in `selection` (0 for all of them)."""
    left_out = {name for bit, name in enumerate(OPTIONAL) if selection >> bit & 1}
    return without(lock, left_out)


class Builder:
    """Makes builds before anything is measured, as a pipeline does: whichever tool ships one, it waits for none."""

    def __init__(self, directory: Path, target: Target) -> None:
        self._directory = directory
        self._target = target
        self._number = 0
        self._selection = 0

    def make(self, other_lock: bool = False) -> Build:
        """The next build; other_lock: with dependencies that none of the last builds had. Raises BundleError."""
        if other_lock:
            self._selection = (self._selection + 1) % (1 << len(OPTIONAL))
        self._number += 1
        directory = self._directory / f"build-{self._number}"
        source = directory / "source"
        shutil.copytree(APPLICATION, source, ignore=shutil.ignore_patterns("__pycache__"))
        module = source / "speed_app/__init__.py"
        module.write_text(re.sub(r"^BUILD = 0$", f"BUILD = {self._number}", module.read_text(), flags=re.MULTILINE))
        (source / "requirements.lock").write_text(select(LOCK.read_text(), self._selection))
        return self._bundle(directory, source)

    def _bundle(self, directory: Path, source: Path) -> Build:
        cache = Path("~/.cache/bareforge").expanduser()
        runtime = str(ROOT / "runtime")
        plan = make_plan(str(source), "requirements.lock", [runtime], self._target, cache, server=True)
        layer, release = build_layer(plan, cache), build_release(plan, cache)
        compressed(release)
        bundle = directory / "bundle.tar"
        with tarfile.open(bundle, "w") as packed:
            with tarfile.open(layer) as tar:
                _take(tar, packed, r"wheels(/.*)?|lock\.txt", "")
            with tarfile.open(release) as tar:
                sizes = _take(tar, packed, r"wheels/speed_app-.*", "wheels/")
        return Build(self._number, source, bundle, sum(sizes))


def _take(source: tarfile.TarFile, into: tarfile.TarFile, pattern: str, prefix: str) -> list[int]:
    """Copy the members whose name matches, without the prefix; returns their sizes."""
    sizes = []
    for member in source.getmembers():
        if re.fullmatch(pattern, member.name):
            content = source.extractfile(member)
            member.name = member.name.removeprefix(prefix)
            into.addfile(member, content)
            sizes.append(member.size)
    return sizes
