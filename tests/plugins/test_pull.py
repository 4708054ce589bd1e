"""A host that converges by itself: what it takes from a store, and what it refuses. molecule/pull does it on a host."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "plugins/host/bareforge_pull.py"
TARGET = {"python_version": "3.13.5", "machine": "x86_64", "libc_version": "2.41"}


@pytest.fixture(scope="module")
def pull() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bareforge_pull", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["bareforge_pull"] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "publish"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "publish key", "-f", str(file)], check=True)
    return file


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


def envelope(key: Path, manifest: dict[str, Any], namespace: str = "bareforge") -> bytes:
    text = json.dumps(manifest).encode()
    command = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", namespace]
    signed = subprocess.run(command, input=text, capture_output=True, check=True).stdout.decode()
    return json.dumps({"manifest": base64.b64encode(text).decode(), "signature": signed}).encode()


def manifest_of(**changes: Any) -> dict[str, Any]:
    return {"format": 1, "name": "shop", "target": TARGET, "sequence": 5, "by": "me@here", "blobs": {}, **changes}


# ----------------------------------------------------------------------------------------------------- configuration


def write(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "config.json"
    given = {"name": "shop", "store": "https://store.example/fleet/", "keys": ["ssh-ed25519 AAAA me"], **changes}
    file.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    return file


def test_a_configuration_is_read(pull: ModuleType, tmp_path: Path) -> None:
    config = pull.read_config(write(tmp_path, environment={"VAULT_ADDR": "https://vault:8200"}, after=["/bin/true"]))
    assert config.store == "https://store.example/fleet"
    assert config.keys == ("ssh-ed25519 AAAA me",)
    assert config.environment == {"VAULT_ADDR": "https://vault:8200"}
    assert config.after == ("/bin/true",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Shop"}, "name in FILE is 'Shop'; write the application's asgi_app_name"),
        ({"name": None}, "name in FILE is None; write the application's asgi_app_name"),
        (
            {"store": "ftp://x"},
            "store in FILE is 'ftp://x'; write a path or an http://, https:// or s3:// URL",
        ),
        ({"keys": []}, "keys in FILE has to be a list of public SSH keys, one line each; correct it"),
        (
            {"keys": ["ssh-ed25519 AAAA me\nssh-ed25519 BBBB you"]},
            "keys in FILE has to be a list of public SSH keys, one line each; correct it",
        ),
        ({"keys": "ssh-ed25519 AAAA"}, "keys in FILE is not a list; correct it"),
        ({"kez": 1}, "FILE holds kez; there are name, store, keys, environment, after, since"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    pull: ModuleType, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(pull.PullError) as error:
        pull.read_config(file)
    assert str(error.value) == message.replace("FILE", str(file))


def test_a_file_that_is_none_is_refused(pull: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(pull.PullError, match=r"cannot be read \(No such file or directory\); write it as docs/pull.md"):
        pull.read_config(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(pull.PullError, match="is not JSON"):
        pull.read_config(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(pull.PullError, match="holds no settings; there are name, store"):
        pull.read_config(tmp_path / "list.json")


# --------------------------------------------------------------------------------------------------------- signature


def test_a_signed_manifest_is_believed(pull: ModuleType, key: Path) -> None:
    assert pull.verify(envelope(key, manifest_of()), ("ssh-ed25519 AAAAother", public(key))) == manifest_of()


def test_what_is_not_signed_for_this_is_refused(pull: ModuleType, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    good = json.loads(envelope(key, manifest_of()))
    changed = {**good, "manifest": base64.b64encode(json.dumps(manifest_of(sequence=6)).encode()).decode()}
    for bad in (
        envelope(other, manifest_of()),
        envelope(key, manifest_of(), namespace="git"),
        json.dumps(changed).encode(),
    ):
        with pytest.raises(pull.PullError, match="not signed by a key of this host's configuration"):
            pull.verify(bad, (public(key),))
    for damaged in (b"", b"{}", b"[]", json.dumps({**good, "manifest": "%"}).encode()):
        with pytest.raises(pull.PullError, match="the manifest in the store is damaged; publish the bundle again"):
            pull.verify(damaged, (public(key),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "the bundle has format 2 and this host's bareforge_pull.py knows 1; start hosts with the user"),
        ({"name": "blog"}, "the bundle is of blog and this host serves shop; correct the store"),
        (
            {"target": {**TARGET, "python_version": "3.11.2"}},
            "the bundle is for python3.11.2-x86_64-glibc2.41; publish one for python3.13.5-x86_64-glibc2.41",
        ),
        (
            {"sequence": 4},
            "the bundle in the store (sequence 4) is older than the one this host had, or was started with (5)",
        ),
    ],
)
def test_a_bundle_that_is_not_for_this_host_is_refused(pull: ModuleType, changes: dict[str, Any], message: str) -> None:
    config = pull.Config("shop", "/store", ("key",), {}, ())
    pull.check(manifest_of(), config, TARGET, 5)
    with pytest.raises(pull.PullError) as error:
        pull.check(manifest_of(**changes), config, TARGET, 5)
    assert str(error.value).startswith(message)


# ------------------------------------------------------------------------------------------------------------- store


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the URL by which a real server on loopback serves it."""
    directory = tmp_path / "served"
    (directory / "shop/blobs").mkdir(parents=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def do_GET(self) -> None:
            if "forbidden" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *_arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield directory, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_blobs_come_from_a_directory_or_a_server(
    pull: ModuleType, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    directory, url = served
    content = b"x" * 100_000
    digest = sha256(content).hexdigest()
    (directory / f"shop/blobs/{digest}").write_bytes(content)
    manifest = manifest_of(blobs={"layer.tar": {"sha256": digest, "size": len(content)}})
    for number, store in enumerate((str(directory), url)):
        found = pull.bring(manifest, store, tmp_path / f"blobs-{number}")
        assert found["layer.tar"].read_bytes() == content
    # what is there is not asked for again, what is torn is
    (directory / f"shop/blobs/{digest}").rename(directory / "away")
    assert pull.bring(manifest, url, tmp_path / "blobs-1") == found
    found["layer.tar"].write_bytes(content[:-1])
    with pytest.raises(
        pull.PullError, match=r"the store has not got layer.tar of its own manifest; publish the bundle"
    ):
        pull.bring(manifest, url, tmp_path / "blobs-1")
    (directory / f"shop/blobs/{digest}").write_bytes(content[:-1] + b"y")
    with pytest.raises(pull.PullError, match=r"layer.tar in the store is damaged \(SHA-256 differs\)"):
        pull.bring(manifest, url, tmp_path / "blobs-1")


def test_a_store_that_cannot_be_read_is_named(
    pull: ModuleType, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _, url = served
    into = tmp_path / "into"
    with pytest.raises(FileNotFoundError):
        pull.fetch(url, "shop/none.json", into, 1000)
    with pytest.raises(pull.PullError, match="answers 403; see whether this host may read the store"):
        pull.fetch(url, "forbidden", into, 1000)
    with pytest.raises(pull.PullError, match=r"does not answer .*; it is tried again"):
        pull.fetch("http://127.0.0.1:1", "x", into, 1000)
    with pytest.raises(FileNotFoundError):
        pull.fetch(str(tmp_path), "none.json", into, 1000)
    with pytest.raises(pull.PullError, match="is not there; mount it, or correct the configuration"):
        pull.fetch("/nowhere/store", "x", into, 1000)


def test_a_store_in_s3_is_asked_by_the_aws_command(
    pull: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pull.PullError, match="a store in S3 needs the command aws; install awscli in the image"):
        pull.fetch("s3://bucket/fleet", "shop/x", tmp_path / "into", 1000)
    aws = tmp_path / "aws"
    aws.write_text(
        '#!/bin/sh\ncase $4 in *none) echo "fatal error: An error occurred (404)" >&2; exit 1;; '
        '*secret) echo "fatal error: Access Denied" >&2; exit 1;; esac\necho "$*"\n'
    )
    aws.chmod(0o755)
    pull.fetch("s3://bucket/fleet", "shop/x", tmp_path / "into", 1000)
    assert (tmp_path / "into").read_text() == "s3 cp --only-show-errors s3://bucket/fleet/shop/x -\n"
    with pytest.raises(FileNotFoundError):
        pull.fetch("s3://bucket/fleet", "none", tmp_path / "into", 1000)
    with pytest.raises(pull.PullError, match="cannot be fetched: fatal error: Access Denied; see whether this host's"):
        pull.fetch("s3://bucket/fleet", "secret", tmp_path / "into", 1000)


def test_who_can_write_to_a_store_fills_no_disk_and_reads_no_file(
    pull: ModuleType, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    directory, url = served
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 50)
    blobs, into = tmp_path / "blobs", directory / "shop/blobs"
    manifest = manifest_of(blobs={"layer.tar": {"sha256": "0" * 64, "size": 50}})
    (into / ("0" * 64)).write_bytes(b"x" * 51)
    for store in (str(directory), url):
        with pytest.raises(pull.PullError, match="is larger than the 50 bytes it may have; publish the bundle again"):
            pull.bring(manifest, store, blobs)
    (into / ("0" * 64)).unlink()
    (into / ("0" * 64)).symlink_to(secret)
    with pytest.raises(pull.PullError, match=r"cannot be read \(Too many levels of symbolic links\); publish the"):
        pull.bring(manifest, str(directory), blobs)
    with pytest.raises(pull.PullError, match="is damaged"):
        pull.bring(manifest, url, blobs)
    (into / ("0" * 64)).unlink()
    (into / ("0" * 64)).mkdir()
    with pytest.raises(pull.PullError, match="is no file; publish the bundle again"):
        pull.bring(manifest, str(directory), blobs)
    assert list(blobs.iterdir()) == []
    assert blobs.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_is_seen_before_it_is_full(pull: ModuleType, tmp_path: Path) -> None:
    manifest = manifest_of(blobs={"layer.tar": {"sha256": "0" * 64, "size": 10**18}})
    with pytest.raises(pull.PullError, match=r"MB left and the bundle takes 1000000000000 MB; free space"):
        pull.bring(manifest, str(tmp_path), tmp_path / "blobs")


# ---------------------------------------------------------------------------------------------------------- playbook


def test_the_playbook_runs_for_this_host_alone_and_migrates_nothing(pull: ModuleType) -> None:
    manifest = manifest_of(inventories=["inventory/1"], source="application")
    command = pull.command(manifest, Path("/r"), Path("/hosts.json"))
    variables = json.loads(command[command.index("--extra-vars") + 1])
    assert command[:2] == ["/r/venv/bin/python", "/r/venv/bin/ansible-playbook"]
    assert command[2:6] == ["-i", "/r/app/inventory/1", "-i", "/hosts.json"]
    assert command[-1] == "/r/app/playbooks/deploy.yml"
    assert variables["asgi_app_migrate"] == []
    assert variables["asgi_app_source"] == "/r/app/application"
    pinned = pull.command(manifest_of(inventories=[], source="shop==1.0"), Path("/r"), Path("/h"))
    assert json.loads(pinned[pinned.index("--extra-vars") + 1])["asgi_app_source"] == "shop==1.0"


def test_the_playbook_has_nothing_of_who_started_it(pull: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "other")
    config = pull.Config("shop", "/store", ("key",), {"VAULT_ADDR": "https://vault"}, ())
    found = pull.environment(config, Path("/r"), Path("/home"))
    assert found["VAULT_ADDR"] == "https://vault"
    assert found["HOME"] == "/home"
    assert "ANSIBLE_STDOUT_CALLBACK" not in found
