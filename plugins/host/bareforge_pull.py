#!/usr/bin/python3
"""Lets a host converge by itself: fetches the signed bundle of its fleet, verifies it, runs its deploy.yml here.

    bareforge_pull.py [--config FILE] [--verify]

Standard library only, and ssh-keygen for the signature. Nothing of a bundle is looked at, let alone run, before its
manifest is signed by a key of the configuration and its hash is the manifest's. docs/pull.md
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import http.client
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

FORMAT = 1
NAMESPACE = "bareforge"
"""Of the signature: a key that signs other things too cannot be led to sign a bundle."""
SIGNER = "publisher"
TIMEOUT = 60
"""Seconds in which a store has to send something."""
MANIFEST = 1 << 20
"""The most bytes that a manifest may have: it has some thousand."""
PIECE = 1 << 20
KEEP = 2
"""Bundles whose playbooks stay on the host: the one that serves and the one before."""
PYTHON = "/usr/bin/python3"
CONFIG = Path("/etc/bareforge-pull/config.json")


class PullError(Exception):
    """The host cannot converge; the message names the cause and the cure in one line."""


class BusyError(PullError):
    """It converges already: what that run says of itself stays."""


@dataclass(frozen=True)
class Paths:
    """Where things are, below `base` (tests have another one than /)."""

    base: Path = Path("/")

    @property
    def root(self) -> Path:
        """Where bundles are installed, in the layout of /srv/NAME."""
        return self.base / "var/lib/bareforge-pull"

    @property
    def blobs(self) -> Path:
        """What was fetched, by SHA-256."""
        return self.root / "blobs"

    @property
    def home(self) -> Path:
        """HOME of the playbook's run: its cache holds what it would have to build."""
        return self.root / "home"

    @property
    def state(self) -> Path:
        """Which bundle was the last good one."""
        return self.root / "state.json"

    @property
    def status(self) -> Path:
        """What this host says of itself; gone after a reboot."""
        return self.base / "run/bareforge-pull/status.json"


@dataclass(frozen=True)
class Config:
    """What the host was given with its user data.

    store: directory, http(s):// or s3:// URL. keys: public keys (one line each) of which one has to have signed.
    environment: for the playbook's run, such as VAULT_ADDR. after: a command for the first time that the host is ready.
    since: the sequence of the oldest bundle that a new host may take.
    """

    name: str
    store: str
    keys: tuple[str, ...]
    environment: dict[str, str]
    after: tuple[str, ...]
    since: int = 0


def read_config(file: Path) -> Config:
    """Raises PullError for anything that cannot be meant."""
    try:
        given = json.loads(file.read_text())
    except OSError as error:
        raise PullError(f"{file} cannot be read ({error.strerror}); write it as docs/pull.md says") from None
    except ValueError as error:
        raise PullError(f"{file} is not JSON ({error}); correct it") from None
    known = {"name": str, "store": str, "keys": list, "environment": dict, "after": list, "since": int}
    if not isinstance(given, dict) or (unknown := sorted(set(given) - set(known))):
        named = ", ".join(unknown) if isinstance(given, dict) else "no settings"
        raise PullError(f"{file} holds {named}; there are {', '.join(known)}")
    for key, kind in known.items():
        if not isinstance(given.get(key, kind()), kind):
            raise PullError(f"{key} in {file} is not a {kind.__name__}; correct it")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", given.get("name", "")):
        raise PullError(f"name in {file} is {given.get('name')!r}; write the application's asgi_app_name")
    if not re.match(r"/|https?://|s3://", given.get("store", "")):
        raise PullError(f"store in {file} is {given.get('store')!r}; write a path or an http://, https:// or s3:// URL")
    keys = [str(key) for key in given.get("keys", [])]
    if not keys or not all(re.fullmatch(r"(ssh|sk-ssh|ecdsa|sk-ecdsa)-\S+ \S+( [^\n]*)?", key) for key in keys):
        raise PullError(f"keys in {file} has to be a list of public SSH keys, one line each; correct it")
    environment = {str(key): str(value) for key, value in given.get("environment", {}).items()}
    after = tuple(str(word) for word in given.get("after", []))
    return Config(given["name"], given["store"].rstrip("/"), tuple(keys), environment, after, given.get("since", 0))


# --------------------------------------------------------------------------------------------------------- the store


def fetch(store: str, path: str, into: Path, limit: int) -> None:
    """Copy one file of the store to `into`, at most `limit` bytes: who can write to a store must not fill this disk.

    Raises PullError, FileNotFoundError where the store has none.
    """
    if store.startswith(("http://", "https://")):
        _fetch_http(f"{store}/{path}", into, limit)
    elif store.startswith("s3://"):
        _fetch_s3(f"{store}/{path}", into, limit)
    else:
        _fetch_file(Path(store), path, into, limit)


def _copy(source: IO[bytes], into: Path, limit: int, what: str) -> None:
    left = limit + 1
    with into.open("wb") as file:
        while left and (piece := source.read(min(left, PIECE))):
            file.write(piece)
            left -= len(piece)
    if not left:
        raise PullError(f"{what} is larger than the {limit} bytes it may have; publish the bundle again")


def _fetch_file(store: Path, path: str, into: Path, limit: int) -> None:
    try:
        # a link of the store would lead to whatever this program may read
        descriptor = os.open(store / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if not store.is_dir():
            raise PullError(f"the store {store} is not there; mount it, or correct the configuration") from None
        raise
    except OSError as error:
        raise PullError(f"{store / path} cannot be read ({error.strerror}); publish the bundle again") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PullError(f"{store / path} is no file; publish the bundle again")
        with os.fdopen(descriptor, "rb", closefd=False) as source:
            _copy(source, into, limit, str(store / path))
    finally:
        os.close(descriptor)


def _fetch_http(url: str, into: Path, limit: int) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 (read_config)
            _copy(answer, into, limit, url)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(url) from None
        raise PullError(f"{url} answers {error.code}; see whether this host may read the store") from None
    except (OSError, http.client.HTTPException) as error:
        raise PullError(f"{url} does not answer ({error}); it is tried again") from None


def _fetch_s3(url: str, into: Path, limit: int) -> None:
    try:
        with subprocess.Popen(
            ["aws", "s3", "cp", "--only-show-errors", url, "-"],  # noqa: S607 (awscli's place differs)
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as client:
            assert client.stdout is not None
            assert client.stderr is not None
            try:
                _copy(client.stdout, into, limit, url)
            except PullError:
                client.kill()
                raise
            errors = client.stderr.read().decode(errors="replace")
    except FileNotFoundError:
        raise PullError("a store in S3 needs the command aws; install awscli in the image") from None
    if client.returncode:
        if "404" in errors or "NoSuchKey" in errors:
            raise FileNotFoundError(url)
        said = errors.strip().splitlines() or ["no reason given"]
        raise PullError(f"{url} cannot be fetched: {said[-1]}; see whether this host's role may read the bucket")


# ------------------------------------------------------------------------------------------------------ the manifest


def own_target() -> dict[str, str]:
    """What this host runs, as bundles are built for it."""
    program = "import platform as p, json; print(json.dumps([p.python_version(), p.machine(), p.libc_ver()[1]]))"
    said = subprocess.run([PYTHON, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    python_version, machine, libc_version = json.loads(said)
    return {"python_version": python_version, "machine": machine, "libc_version": libc_version}


def target_name(target: Mapping[str, str]) -> str:
    """The name of a target's manifest in the store, without its ending."""
    return f"python{target['python_version']}-{target['machine']}-glibc{target['libc_version']}"


def verify(envelope: bytes, keys: tuple[str, ...]) -> dict[str, Any]:
    """The manifest, once its signature is proven. Raises PullError."""
    try:
        packed = json.loads(envelope)
        manifest, signature = base64.b64decode(packed["manifest"], validate=True), str(packed["signature"])
    except (ValueError, KeyError, TypeError):
        raise PullError("the manifest in the store is damaged; publish the bundle again") from None
    with tempfile.TemporaryDirectory() as scratch:
        signers, signed = Path(scratch) / "signers", Path(scratch) / "signature"
        signers.write_text("".join(f'{SIGNER} namespaces="{NAMESPACE}" {key}\n' for key in keys))
        signed.write_text(signature)
        command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", SIGNER, "-n", NAMESPACE, "-s", str(signed)]
        done = subprocess.run(command, input=manifest, capture_output=True)
    if done.returncode:
        raise PullError(
            "the manifest in the store is not signed by a key of this host's configuration; publish it with the right "
            "key, or see who else can write to the store"
        )
    content: dict[str, Any] = json.loads(manifest)
    return content


def check(manifest: Mapping[str, Any], config: Config, target: Mapping[str, str], last: int) -> None:
    """Raise PullError where a signed manifest is not for this host, or older than what it had."""
    if manifest.get("format") != FORMAT:
        raise PullError(
            f"the bundle has format {manifest.get('format')} and this host's bareforge_pull.py knows {FORMAT}; "
            "start hosts with the user data that was published with it"
        )
    if manifest["name"] != config.name:
        raise PullError(f"the bundle is of {manifest['name']} and this host serves {config.name}; correct the store")
    if dict(manifest["target"]) != dict(target):
        raise PullError(f"the bundle is for {target_name(manifest['target'])}; publish one for {target_name(target)}")
    if manifest["sequence"] < last:
        raise PullError(
            f"the bundle in the store (sequence {manifest['sequence']}) is older than the one this host had, or was "
            f"started with ({last}); to go back, publish the older source again"
        )


# --------------------------------------------------------------------------------------------------------- the blobs


def bring(manifest: Mapping[str, Any], store: str, blobs: Path) -> dict[str, Path]:
    """Fetch what this host has not, and check all of it; returns each blob's path by name. Raises PullError."""
    blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = {
        name: facts for name, facts in manifest["blobs"].items() if _digest(blobs / facts["sha256"]) != facts["sha256"]
    }
    needed, free = sum(facts["size"] for facts in missing.values()), shutil.disk_usage(blobs).free
    if free < needed:
        raise PullError(f"{blobs} has {free / 1e6:.0f} MB left and the bundle takes {needed / 1e6:.0f} MB; free space")
    for name, facts in missing.items():
        _bring_one(name, facts, store, str(manifest["name"]), blobs)
    return {name: blobs / facts["sha256"] for name, facts in manifest["blobs"].items()}


def _bring_one(name: str, facts: Mapping[str, Any], store: str, fleet: str, blobs: Path) -> None:
    partial = blobs / "partial"
    try:
        fetch(store, f"{fleet}/blobs/{facts['sha256']}", partial, facts["size"])
        if _digest(partial) != facts["sha256"]:
            raise PullError(f"{name} in the store is damaged (SHA-256 differs); publish the bundle again")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(blobs / facts["sha256"])
    except FileNotFoundError:
        raise PullError(f"the store has not got {name} of its own manifest; publish the bundle again") from None
    finally:
        # what is not what the manifest names stays nowhere
        partial.unlink(missing_ok=True)


def _digest(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def install(manifest: Mapping[str, Any], blobs: Mapping[str, Path], root: Path) -> Path:
    """Install the bundle's own playbooks with their Ansible as a release of this host; returns its directory."""
    engine = _load("bareforge_release", blobs["bareforge_release.py"])
    controller = manifest["controller"]
    release, layer = controller["release"], controller["layer"]
    archives = str(blobs[f"layer-{layer}.tar"]), str(blobs[f"release-{release}-{layer}.tar"])
    try:
        # not one of another Python: an upgrade of the system breaks its environment
        if release not in engine.probe(root, PYTHON)["releases"]:
            engine.present(root, PYTHON, KEEP, release, layer, *archives)
    except engine.ReleaseError as error:
        raise PullError(str(error)) from None
    return root / "releases" / str(release)


def _load(name: str, file: Path) -> ModuleType:
    # its byte code would lie among the blobs
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def lay_out(blobs: Mapping[str, Path], cache: Path) -> None:
    """The archives where the playbook looks for what it would build, and no others."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    for name, blob in blobs.items():
        os.link(blob, cache / name)


# ------------------------------------------------------------------------------------------------------- the playbook


def command(manifest: Mapping[str, Any], release: Path, hosts: Path) -> list[str]:
    """deploy.yml on this host alone: no migration, which the fleet has had, no load balancer of another host."""
    tree, venv = release / "app", release / "venv"
    variables = {
        "ansible_become": False,
        "asgi_app_source": _in(tree, manifest["source"]),
        "asgi_app_lock": str(tree / "application.lock"),
        "asgi_app_migrate": [],
        "deploy_drain": "",
        "deploy_undrain": "",
        "deploy_wait": 600,
        "deploy_witness": "",
    }
    # interpreter and script by path: a shebang holds 127 characters
    run = [str(venv / "bin/python"), str(venv / "bin/ansible-playbook")]
    for inventory in manifest["inventories"]:
        run += ["-i", str(tree / inventory)]
    run += ["-i", str(hosts), "--limit", socket.gethostname(), "--extra-vars", json.dumps(variables)]
    return [*run, str(tree / "playbooks/deploy.yml")]


def _in(tree: Path, source: str) -> str:
    return str(tree / source) if source.partition("/")[0] == "application" else source


def environment(config: Config, release: Path, home: Path) -> dict[str, str]:
    """Of the playbook's run: this host's, and nothing of whoever started it."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": str(home),
        "ANSIBLE_CONFIG": str(release / "app/ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        **config.environment,
    }


def say(status: Path, state: str, **facts: Any) -> None:
    """Write this host's status for whoever asks (0644)."""
    status.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    _write(status, {"state": state, "at": at, **facts})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w") as handle:
        json.dump(content, handle)
        handle.flush()
        os.fsync(handle.fileno())
    partial.rename(file)


def _read(state: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(state.read_text()) if state.is_file() else {}
    return content


def last_sequence(state: Path) -> int:
    """Of the newest bundle that this host had; 0 for a new host."""
    return int(_read(state).get("sequence", 0))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "pull.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("this host converges already; see: journalctl -fu bareforge-pull") from None
        yield


def find(config: Config, paths: Paths) -> dict[str, Any]:
    """The manifest that the store has for this host, verified. Raises PullError."""
    target = own_target()
    with tempfile.NamedTemporaryFile() as envelope:
        try:
            fetch(config.store, f"{config.name}/{target_name(target)}.json", Path(envelope.name), MANIFEST)
        except FileNotFoundError:
            raise PullError(
                f"the store has no bundle of {config.name} for {target_name(target)}; publish one: "
                f"ansible-playbook playbooks/publish.yml --extra-vars '{json.dumps({'publish_target': target})}'"
            ) from None
        manifest = verify(Path(envelope.name).read_bytes(), config.keys)
    check(manifest, config, target, max(config.since, last_sequence(paths.state)))
    return manifest


def pull(config: Config, paths: Paths) -> dict[str, Any]:
    """Converge; returns the manifest. Raises PullError."""
    manifest = find(config, paths)
    facts = {"release": manifest["release"], "sequence": manifest["sequence"]}
    say(paths.status, "converging", **facts)
    print(f"bundle {manifest['sequence']} of {manifest['by']}: release {manifest['release']}", flush=True)
    blobs = bring(manifest, config.store, paths.blobs)
    release = install(manifest, blobs, paths.root)
    lay_out(blobs, paths.home / ".cache/bareforge")
    hosts = paths.root / "hosts.json"
    # Ansible would say the directory of the file that names this host
    own = {"ansible_connection": "local", "inventory_dir": str(release / "app" / manifest["inventories"][0])}
    _write(hosts, {"app": {"hosts": {socket.gethostname(): own}}})
    run = subprocess.run(
        command(manifest, release, hosts), env=environment(config, release, paths.home), stdin=subprocess.DEVNULL
    )
    if run.returncode:
        raise PullError("deploy.yml failed; its reason is above, what served before serves on")
    # the first time only: what is told completes this host's start
    told = bool(_read(paths.state).get("told"))
    _write(paths.state, {**facts, "told": told})
    for blob in set(paths.blobs.glob("[0-9a-f]*")) - set(blobs.values()):
        blob.unlink()
    if config.after and not told:
        if status := subprocess.run(config.after, stdin=subprocess.DEVNULL).returncode:
            raise PullError(f"the host is ready, but {config.after[0]} ended with status {status}; see above")
        _write(paths.state, {**facts, "told": True})
    say(paths.status, "ready", **facts)
    return manifest


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Converge this host from the signed bundle of its fleet.")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help=f"default {CONFIG}")
    parser.add_argument("--verify", action="store_true", help="only say which bundle there is for this host")
    given = parser.parse_args(arguments)
    paths = Paths()
    os.umask(0o022)
    try:
        config = read_config(given.config)
        if given.verify:
            manifest = find(config, paths)
            print(f"bundle {manifest['sequence']} of {manifest['by']}: release {manifest['release']}")
            return 0
        with _alone(paths.root):
            manifest = pull(config, paths)
    except (PullError, OSError, ValueError) as error:
        message = str(error) if isinstance(error, PullError) else f"{type(error).__name__}: {error}; it is tried again"
        print(f"bareforge-pull: {message}", file=sys.stderr)
        if not given.verify and not isinstance(error, BusyError):
            say(paths.status, "failed", message=message)
        return 1
    print(f"ready: {platform.node()} serves release {manifest['release']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
