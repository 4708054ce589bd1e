"""A power cut right after a switch: a real ext4 file system, copied while it is mounted, and mounted again.

What the kernel has not written to the image is lost, as in a power cut. Killing a container or a process shows
nothing: the page cache outlives both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Row
from benchmarks.session import Session
from plugins.modules.bareforge import Paths, plan_files, point_active, stage
from plugins.modules.bareforge_release import finish

SIZE = 64 * 2**20  # bytes of the file system
FILES = 100  # of a release
CONTENT = os.urandom(2**14)
# What the role's __asgi_app_facts give the engine, as strings as Ansible does
SETTINGS = {
    "module": "service:app",
    "workers": "2",
    "ready_path": "/ready",
    "ready_host": "localhost",
    "start_timeout": "10",
    "graceful_timeout": "4",
}


def root_command(*command: str) -> list[str]:
    """A command that only root may run; a user other than root needs sudo without a password."""
    return [*([] if os.geteuid() == 0 else ["sudo", "-n"]), *command]


def as_root(*command: str) -> None:
    """Run a command that only root may run; raises where it fails."""
    subprocess.run(root_command(*command), check=True, capture_output=True, text=True)


@contextlib.contextmanager
def mounted(image: Path, directory: Path) -> Iterator[Path]:
    """The file system in an image."""
    directory.mkdir()
    as_root("mount", "-o", "loop", str(image), str(directory))
    try:
        as_root("chown", str(os.getuid()), str(directory))
        yield directory
    finally:
        as_root("umount", str(directory))
        directory.rmdir()


@dataclass
class Disk:
    """A mounted file system whose power can be cut."""

    image: Path
    root: Path
    cuts: int = 0

    def journal(self) -> None:
        """Another process of the host syncs a file of its own: the journal of everything is written."""
        with (self.root / "unrelated").open("a") as handle:
            handle.write("x")
            handle.flush()
            os.fsync(handle.fileno())

    @contextlib.contextmanager
    def after_power_cut(self) -> Iterator[Path]:
        """What is found after a power cut at this moment."""
        self.cuts += 1
        copy = self.image.with_name(f"cut{self.cuts}.ext4")
        shutil.copyfile(self.image, copy)
        with mounted(copy, self.root.with_name(f"cut{self.cuts}")) as found:
            yield found
        copy.unlink()


@contextlib.contextmanager
def ext4(directory: Path) -> Iterator[Disk]:
    """A new file system, mounted below a directory."""
    image = directory / "disk.ext4"
    with image.open("wb") as handle:
        handle.truncate(SIZE)
    as_root("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    with mounted(image, directory / "disk") as root:
        yield Disk(image, root)


@contextlib.contextmanager
def no_systemd(directory: Path) -> Iterator[None]:
    """The engine tells systemd to read its units again; this machine's own has nothing to do with them."""
    (directory / "bin").mkdir()
    (directory / "bin/systemctl").symlink_to("/bin/true")
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{directory}/bin:{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file, and the target of every link, by path."""
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was there before and is not, or is another, after."""
    return sorted(name for name, content in before.items() if after.get(name) != content)


def power(session: Session) -> list[Row]:
    """The engine's switch, and beside it a flip of a link as deploy tools do it, each followed by power cuts."""
    directory = session.directory / "power"
    directory.mkdir()
    cuts = max(1, session.repetitions // 2)
    with no_systemd(directory):
        with ext4(directory) as disk:
            problems, compared = _switches(disk, cuts)
        session.say(f"power cut: {len(problems)} of {compared} files lost")
        (directory / "disk.ext4").unlink()
        with ext4(directory) as disk:
            lost = _unsynced(disk)
    note = f"{len(problems)} of {compared} files and links lost or different"
    beside = f"{lost} of {FILES} files empty or different behind a link that points to them"
    return [
        Row("power cut after a switch", cuts, holds=not problems, note=note, problems=problems[:5]),
        Row("power cut after a flip without sync", 1, ours=False, note=beside),
    ]


def _switches(disk: Disk, cuts: int) -> tuple[list[str], int]:
    """Install, stage and switch to a release, cut the power, `cuts` times; returns what was lost, of how much."""
    paths = Paths("shop", disk.root / "host")
    for place in (paths.releases, paths.state, paths.runtime, paths.units):
        place.mkdir(parents=True)
    problems: list[str] = []
    compared = 0
    for number in range(cuts):
        release = f"r{number}"
        (paths.releases / release).mkdir()
        for file in range(FILES):
            (paths.releases / release / f"{file}.py").write_bytes(CONTENT[file:])
        finish(paths.releases / release / "release.json", {"id": release})
        files = {name: f"# {name} {number}\n" for name in paths.files()}
        point_active(paths, stage(paths, plan_files(paths, release, files, SETTINGS)))
        before = tree(disk.root)
        with disk.after_power_cut() as found:
            problems += [f"cut {number + 1}: {name}" for name in differing(before, tree(found))]
        compared += len(before)
        shutil.rmtree(paths.releases / release)
    return problems, compared


def _unsynced(disk: Disk) -> int:
    """Write a release and flip a link to it, as most tools do; returns how many of its files a power cut takes."""
    release = disk.root / "releases/1"
    release.mkdir(parents=True)
    os.sync()
    for file in range(FILES):
        (release / f"{file}.py").write_bytes(CONTENT[file:])
    (disk.root / "new").symlink_to("releases/1")
    (disk.root / "new").rename(disk.root / "current")
    disk.journal()
    before = tree(disk.root)
    with disk.after_power_cut() as found:
        return len([name for name in differing(before, tree(found)) if name.startswith("releases/1/")])
