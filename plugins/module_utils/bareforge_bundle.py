"""Turns an application's source and lock into bundles that a host can install without a package index.

Runs on the controller. A bundle is content-addressed: the same source and lock give the same release id, and the same
lock on the same Python gives the same layer; what is in the cache is not built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

FORMAT = "1"  # part of every hash: raise it when the layout of a bundle changes
SERVER_PACKAGES = ("gunicorn", "uvicorn", "uvicorn-worker")
# never part of a source; where git does not say what is, environments and build products are left out too
CACHES = {".git", "__pycache__"}
ENVIRONMENTS = {".venv", "venv", "node_modules", ".tox", ".nox"}
BUILD_PRODUCTS = {"build", "dist"}
# wheels carry the time of their files; a fixed one makes the same source build the same wheel (1980: zip's first year)
SOURCE_DATE_EPOCH = "315619200"


class BundleError(Exception):
    """The input cannot become a bundle; the message names the cause and the cure in one line."""


@dataclass(frozen=True)
class Target:
    """What the host runs: full Python version (3.11.2), machine (x86_64), glibc version (2.36)."""

    python_version: str
    machine: str
    libc_version: str

    @property
    def python_minor(self) -> str:
        """Major and minor version, as in 3.11."""
        return ".".join(self.python_version.split(".")[:2])

    def marker_environment(self) -> dict[str, str]:
        """The environment in which PEP 508 markers of the lock are evaluated for this host."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python_version,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python_version,
            "python_version": self.python_minor,
            "sys_platform": "linux",
            "extra": "",
        }

    def platforms(self) -> list[str]:
        """Platform tags whose wheels run on the host, newest first (PEP 600)."""
        newest = int(self.libc_version.split(".")[1])
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"manylinux2010_{self.machine}", f"linux_{self.machine}"]


@dataclass(frozen=True)
class Source:
    """An application as it stands on the controller.

    tree is the directory that is shipped (None for wheels and requirements), files its files; wheel a ready wheel.
    """

    version: str
    digest: str
    tree: Path | None = None
    files: tuple[str, ...] = ()
    wheel: Path | None = None
    requirement: str = ""
    git_revision: str = ""
    requires_python: str = ""

    @property
    def is_package(self) -> bool:
        """Whether the tree builds into a wheel; a plain directory of modules is shipped as it is."""
        return self.tree is not None and any(name in self.files for name in ("pyproject.toml", "setup.py"))


@dataclass(frozen=True)
class Plan:
    """Everything that identifies a release before anything is built."""

    release_id: str
    layer: str
    source: Source
    extras: tuple[Source, ...]
    lock: str
    target: Target


def _run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "error", "fatal"))] or lines[-1:]
        raise BundleError(" ".join(errors[-2:]) or f"{command[0]} ended with status {done.returncode}")
    return done.stdout


def _files(tree: Path) -> tuple[str, ...]:
    """Relative paths of the files that belong to a source tree: no caches, no environments, no .env with secrets."""
    by_git = _inside_git(tree)
    if by_git:
        listed = _run(["git", "-C", str(tree), "ls-files", "-z", "-co", "--exclude-standard"]).split("\0")
    else:
        listed = [str(path.relative_to(tree)) for path in tree.rglob("*")]

    def belongs(name: str) -> bool:
        parts = PurePosixPath(name).parts
        if not parts or CACHES & set(parts) or name.endswith(".pyc"):
            return False
        stray = ENVIRONMENTS & set(parts) or parts[0] in BUILD_PRODUCTS
        if not by_git and (stray or any(part.endswith((".egg-info", "_cache")) for part in parts)):
            return False
        secret = parts[-1] == ".env" or (parts[-1].startswith(".env.") and parts[-1] != ".env.example")
        return not secret and (tree / name).is_file()

    return tuple(sorted(name for name in listed if belongs(name)))


def _inside_git(tree: Path) -> bool:
    # a host that converges by itself has none
    if shutil.which("git") is None:
        return False
    probe = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "--is-inside-work-tree"],  # noqa: S607
        capture_output=True,
        text=True,
    )
    return probe.stdout.strip() == "true"


def _digest_of(tree: Path, files: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for name in files:
        mode = "x" if os.access(tree / name, os.X_OK) else "-"
        total.update(f"{name}\0{mode}\0{hashlib.sha256((tree / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _directory(tree: Path, git_revision: str = "") -> Source:
    files = _files(tree)
    if not files:
        raise BundleError(f"the source {tree} holds no files; check the path")
    version, requires_python = "0", ""
    if "pyproject.toml" in files:
        try:
            project = tomllib.loads((tree / "pyproject.toml").read_text()).get("project", {})
        except tomllib.TOMLDecodeError as error:
            raise BundleError(f"{tree}/pyproject.toml is not valid TOML: {error}; correct the file") from None
        version, requires_python = str(project.get("version", "0")), str(project.get("requires-python", ""))
    if not git_revision and _inside_git(tree):
        head = subprocess.run(
            ["git", "-C", str(tree), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
        )
        git_revision = head.stdout.strip() if head.returncode == 0 else ""
    return Source(
        version, _digest_of(tree, files), tree, files, git_revision=git_revision, requires_python=requires_python
    )


def split_git(source: str) -> tuple[str, str, str]:
    """URL, reference and subdirectory of git+URL@REFERENCE#subdirectory=DIRECTORY; the reference defaults to HEAD."""
    address, _, fragment = source.removeprefix("git+").partition("#")
    scheme, separator, rest = address.partition("://")
    server, slash, path = rest.partition("/")
    path, _, reference = path.partition("@")
    subdirectory = dict(part.partition("=")[::2] for part in fragment.split("&")).get("subdirectory", "")
    return f"{scheme}{separator}{server}{slash}{path}", reference or "HEAD", subdirectory


def _git(source: str, cache: Path) -> Source:
    url, reference, subdirectory = split_git(source)
    clone = cache / "git" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if re.search(r"://[^/@]*:[^/@]*@", url):
        raise BundleError(
            "the git source carries a password in its URL, which would show in process lists and logs; "
            "use SSH or a git credential helper on the controller"
        )
    with _locked(cache):
        try:
            if not (clone / ".git").exists():
                clone.mkdir(parents=True, exist_ok=True)
                _run(["git", "init", "-q", str(clone)])
            git = ["git", "-C", str(clone)]
            _run([*git, "fetch", "-q", "--depth", "1", "--", url, reference], env={"GIT_TERMINAL_PROMPT": "0"})
            _run([*git, "checkout", "-q", "--force", "FETCH_HEAD"])
            _run([*git, "clean", "-qfdx"])
            revision = _run([*git, "rev-parse", "HEAD"]).strip()
        except BundleError as error:
            raise BundleError(
                f"cannot fetch {reference!r} from {url}: {error}; check the URL, the ref and your access"
            ) from None
        tree = clone / subdirectory
        if not tree.is_dir():
            raise BundleError(f"{url} at {reference} has no directory {subdirectory!r}; correct #subdirectory=")
        return _directory(tree, revision)


def wheel_metadata(wheel: Path) -> dict[str, str]:
    """Name, Version and Requires-Python from a wheel's METADATA file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(archive.read(name).decode())
    except (zipfile.BadZipFile, StopIteration, OSError):
        raise BundleError(f"{wheel} is not a readable wheel; build it again") from None
    return {key: headers.get(key, "") for key in ("Name", "Version", "Requires-Python")}


def resolve_source(source: str, cache: Path) -> Source:
    """Recognise the four kinds of source: git+URL@ref, a wheel, a local directory, or a pinned PyPI requirement.

    Raises BundleError where it is none of them or cannot be read.
    """
    if source.startswith("git+"):
        return _git(source, cache)
    path = Path(source).expanduser()
    if source.endswith(".whl"):
        if not path.is_file():
            raise BundleError(f"the wheel {source} does not exist on the controller; build it or correct the path")
        metadata = wheel_metadata(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Source(metadata["Version"], digest, wheel=path, requires_python=metadata["Requires-Python"])
    if path.is_dir():
        return _directory(path.resolve())
    try:
        requirement = Requirement(source)
    except InvalidRequirement:
        raise BundleError(
            f"the source {source!r} is neither a directory, a wheel, git+URL@ref nor NAME==VERSION; correct it"
        ) from None
    pins = [item.version for item in requirement.specifier if item.operator == "=="]
    if len(pins) != 1 or len(requirement.specifier) != 1:
        raise BundleError(
            f"the source {source!r} is not a directory on the controller and, as a PyPI requirement, not pinned; "
            f"write {requirement.name}==VERSION"
        )
    digest = hashlib.sha256(source.encode()).hexdigest()
    return Source(pins[0], digest, requirement=canonicalize_name(requirement.name))


def flatten_lock(text: str, where: str, target: Target) -> dict[str, str]:
    """The lock's lines that apply to a target, as {canonical name: line with version and hashes, without marker}.

    Markers are evaluated for the target's full Python version, never for the controller's: a dependency that is
    needed below 3.11.3 only would otherwise be missing on a host with 3.11.2. Raises BundleError for any line that is
    not pinned by == and hashed.
    """
    chosen: dict[str, str] = {}
    for number, line in _logical_lines(text):
        specification, *hashes = re.split(r"\s+--hash[= ]", line)
        try:
            requirement = Requirement(specification.strip())
            pinned = [item.operator for item in requirement.specifier] == ["=="] and bool(hashes)
        except InvalidRequirement:
            pinned = False
        if not pinned:
            raise BundleError(
                f"line {number} of {where} is not pinned with == and --hash; write the lock with: scripts/lock"
            )
        if requirement.marker is None or requirement.marker.evaluate(target.marker_environment()):
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            name = canonicalize_name(requirement.name)
            joined = " ".join(f"--hash={item.strip()}" for item in sorted(hashes))
            chosen[name] = f"{name}{extras}{requirement.specifier} {joined}"
    return chosen


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if not pending:
            start = number
        pending += " " + line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if pending.strip():
            yield start, pending.strip()
        pending = ""


def without(lock: str, names: Collection[str]) -> str:
    """A lock without some packages, their hashes included."""
    kept, keep = [], True
    for line in lock.splitlines(keepends=True):
        if named := re.match(r"([A-Za-z0-9._-]+)==", line):
            keep = named[1] not in names
        if keep:
            kept.append(line)
    return "".join(kept)


def _read_lock(source: Source, lock: str, named: str) -> tuple[str, str]:
    path = Path(lock).expanduser()
    if not path.is_absolute() and source.tree is not None:
        path = source.tree / path
    if not path.is_file():
        raise BundleError(f"there is no lock file {path}; write it with: scripts/lock {named} > {path}")
    return path.read_text(), str(path)


def make_plan(source: str, lock: str, extras: list[str], target: Target, cache: Path, server: bool) -> Plan:
    """Identify the release: resolve the source, check it against the target, hash everything; builds nothing.

    server says whether the lock must hold the application server's packages. Raises BundleError.
    """
    main = resolve_source(source, cache)
    if main.requires_python and target.python_version not in SpecifierSet(main.requires_python):
        raise BundleError(
            f"Python {target.python_version} of this host does not satisfy the source's requires-python "
            f"{main.requires_python}; install a fitting Python and name it in the role's python variable, "
            f"or deploy a version that supports {target.python_minor}"
        )
    text, where = _read_lock(main, lock, source)
    lines = flatten_lock(text, where, target)
    missing = [name for name in SERVER_PACKAGES if name not in lines] if server else []
    if missing:
        raise BundleError(
            f"{where} does not pin {', '.join(missing)}; write the lock with: scripts/lock {source} > {where}"
        )
    if main.requirement and not lines.get(main.requirement, "").startswith(f"{main.requirement}=={main.version} "):
        raise BundleError(f"{where} does not pin {source}; write the lock with: scripts/lock '{source}' > {where}")
    more = tuple(_directory(Path(item).resolve()) for item in extras)
    flat = "".join(f"{lines[name]}\n" for name in sorted(lines))
    parts = [FORMAT, main.version, main.digest, text, *(item.digest for item in more)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    label = re.sub(r"[^A-Za-z0-9.]+", ".", main.version)
    layer_parts = [FORMAT, flat, target.python_version, target.machine, target.libc_version]
    layer = hashlib.sha256("\0".join(layer_parts).encode()).hexdigest()[:16]
    return Plan(f"{label}-{digest}", layer, main, more, flat, target)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One build at a time per cache: hosts of the same play share the result instead of building it twice."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _uv() -> str:
    spec = importlib.util.find_spec("uv")
    if spec is None:
        raise BundleError(f"uv is not installed for {sys.executable}; run scripts/setup")
    from uv import find_uv_bin  # type: ignore[import-not-found, unused-ignore]

    return str(find_uv_bin())


def _wheel_of(source: Source, cache: Path) -> Path:
    """The tree's wheel, built from a copy of exactly the files that were hashed, once for all targets and releases."""
    assert source.tree is not None
    kept = cache / f"wheel-{hashlib.sha256(f'{FORMAT}{source.digest}'.encode()).hexdigest()[:16]}"
    if kept.exists():
        return next(kept.glob("*.whl"))
    # not below the cache: build tools heed the settings and ignore files of the directories above
    with tempfile.TemporaryDirectory() as tree, tempfile.TemporaryDirectory(dir=cache) as scratch:
        copy_tree(source, Path(tree))
        out = Path(scratch) / "out"
        try:
            _run(
                [_uv(), "build", "--quiet", "--wheel", "--out-dir", str(out), tree],
                # a Python that fits has to be here: fetching one from somewhere is not for a deploy to do; a mirror of
                # packages may have a certificate that only this system knows
                env={
                    "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH,
                    "UV_PYTHON_DOWNLOADS": "never",
                    "UV_SYSTEM_CERTS": os.environ.get("UV_SYSTEM_CERTS", "true"),
                },
            )
        except BundleError as error:
            raise BundleError(
                f"building a wheel from {source.tree} failed: {error}; try: uv build {source.tree}"
            ) from None
        out.rename(kept)
    return next(kept.glob("*.whl"))


def copy_tree(source: Source, out: Path) -> None:
    """Copy exactly the files that were hashed."""
    assert source.tree is not None
    for name in source.files:
        destination = out / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source.tree / name, destination)


def _pack(directory: Path, archive: Path) -> None:
    """Write a tar with sorted names and fixed owners and times, atomically."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = int(SOURCE_DATE_EPOCH)
        info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info

    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, arcname=path.name, filter=plain)
    partial.rename(archive)


def build_layer(plan: Plan, cache: Path) -> Path:
    """Fetch every locked wheel for the target and pack them; returns the archive. Raises BundleError."""
    with _locked(cache):
        archive = cache / f"layer-{plan.layer}.tar"
        if archive.exists():
            return archive
        target = plan.target
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheels = Path(scratch) / "wheels"
            wheels.mkdir()
            (Path(scratch) / "lock.txt").write_text(plan.lock)
            abi = "cp" + target.python_minor.replace(".", "")
            choice = ["--implementation", "cp", "--python-version", target.python_version]
            for tag in (abi, "abi3", "none"):
                choice += ["--abi", tag]
            for platform in target.platforms():
                choice += ["--platform", platform]
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
            try:
                _run(
                    [
                        *pip,
                        "--only-binary=:all:",
                        "--require-hashes",
                        *choice,
                        "-d",
                        str(wheels),
                        "-r",
                        f"{scratch}/lock.txt",
                    ]
                )
                _run([*pip, "--only-binary=:all:", "-d", scratch, f"pip=={_pip_version()}"])
            except BundleError as error:
                raise BundleError(
                    f"cannot fetch the locked wheels for Python {target.python_version} on {target.machine} "
                    f"(glibc {target.libc_version}): {error}; check the lock and the way to the package index"
                ) from None
            _write_manifest(Path(scratch), plan)
            _pack(Path(scratch), archive)
        return archive


def _pip_version() -> str:
    from importlib.metadata import version

    return version("pip")


def build_release(plan: Plan, cache: Path) -> Path:
    """Build the application's own wheels and tree and pack them; returns the archive. Raises BundleError."""
    with _locked(cache):
        archive = cache / f"release-{plan.release_id}-{plan.layer}.tar"
        if archive.exists():
            return archive
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wheels, tree = Path(scratch) / "wheels", Path(scratch) / "app"
            wheels.mkdir()
            tree.mkdir()
            for source in (plan.source, *plan.extras):
                if source.is_package:
                    shutil.copy2(_wheel_of(source, cache), wheels)
            if plan.source.wheel is not None:
                shutil.copy2(plan.source.wheel, wheels)
            if plan.source.tree is not None:
                copy_tree(plan.source, tree)
            for wheel in wheels.glob("*.whl"):
                parse_wheel_filename(wheel.name)
            _write_manifest(Path(scratch), plan)
            _pack(Path(scratch), archive)
        return archive


def compressed(archive: Path) -> Path:
    """The same archive for a slow way to the host, made once. Python's tarfile knows it by its first bytes."""
    small = archive.with_suffix(".tar.xz")
    if not small.exists():
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            partial = Path(scratch) / small.name
            with partial.open("wb") as handle:
                handle.write(lzma.compress(archive.read_bytes()))
                handle.flush()
                os.fsync(handle.fileno())
            partial.rename(small)
    return small


def _write_manifest(directory: Path, plan: Plan) -> None:
    """Say what is in the bundle, with the SHA-256 of every wheel, so that the host can check before it installs."""
    wheels = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*.whl"))
    }
    manifest = {
        "id": plan.release_id,
        "version": plan.source.version,
        "git_revision": plan.source.git_revision,
        "layer": plan.layer,
        "python_version": plan.target.python_version,
        "files": wheels,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
