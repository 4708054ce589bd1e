"""`schema`: what the application declares about its database."""

import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import runtime, write_secrets

CURE = "correct it in the application"


def declare(directory: Path, source: str, package: str = "shop", **entries: str) -> Path:
    """Write an installed package with these entry points ("schema_head") and its module of the same name."""
    information = directory / f"{package}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in entries.items()]
    (information / "entry_points.txt").write_text("\n".join(["[bareforge]", *lines, ""]))
    (directory / f"{package}.py").write_text(source)
    return directory


def schema(directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return runtime("schema", "--chdir", str(directory), *arguments, cwd=Path("/"), **settings)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr.splitlines()[-1].removeprefix("bareforge-runtime: ")


def test_head(tmp_path: Path) -> None:
    declare(tmp_path, "def head():\n    print('loading')\n    return '0007'\n", schema_head="shop:head")
    done = schema(tmp_path, BAREFORGE_SECRETS="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0007\n", "loading\n")


def test_nothing_declared(tmp_path: Path) -> None:
    for arguments in ((), ("--older", "0006")):
        done = schema(tmp_path, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    done = runtime("schema", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_older_is_asked_with_the_secrets(tmp_path: Path) -> None:
    source = """
import os, sys
def blocks(older):
    print(os.environ["APP_URL"], file=sys.stderr)
    return "0007" if older == "0006" else ""
"""
    declare(tmp_path / "app", source, schema_blocks="shop:blocks")
    secrets = write_secrets(tmp_path / "secrets", db={"APP_URL": "postgresql://hidden-value"})
    done = schema(tmp_path / "app", "--older", "0006", BAREFORGE_SECRETS=str(secrets))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0007\n", "***\n")
    done = schema(tmp_path / "app", "--older", "0007", BAREFORGE_SECRETS=str(secrets))
    assert (done.returncode, done.stdout) == (0, "\n")
    assert schema(tmp_path / "app", "--older", "0006", BAREFORGE_SECRETS="/nowhere").stderr.startswith(
        "bareforge-runtime: the secrets directory /nowhere does not exist; "
    )


def test_threads_do_not_keep_it_alive(tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nhead = lambda: '1'\n"
    assert schema(declare(tmp_path, source, schema_head="shop:head")).stdout == "1\n"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import absent_like_it", "failed: No module named 'absent_like_it'"),
        ("def other(): ...", "failed: module 'shop' has no attribute 'head'"),
        ("raise SystemExit('no setting')", "failed: no setting"),
        ("def head(): raise ValueError('two\\nheads')", "failed: two heads"),
        ("def head(): raise SystemExit", "failed: SystemExit"),
        ("def head(): return None", "failed: it did not return one line of text"),
        ("def head(): return '1\\n2'", "failed: it did not return one line of text"),
        ("async def head(): return '1'", "failed: it did not return one line of text"),
    ],
)
def test_wrong_entry_point(tmp_path: Path, source: str, cause: str) -> None:
    done = schema(declare(tmp_path, source, schema_head="shop:head"))
    assert refusal(done) == f"the entry point schema-head (shop:head) {cause}; {CURE}"


def test_failure_shows_no_secret(tmp_path: Path) -> None:
    source = "import os\ndef blocks(older): raise OSError('cannot reach ' + os.environ['APP_URL'])\n"
    declare(tmp_path / "app", source, schema_blocks="shop:blocks")
    secrets = write_secrets(tmp_path / "secrets", db={"APP_URL": "postgresql://hidden-value"})
    done = schema(tmp_path / "app", "--older", "0006", BAREFORGE_SECRETS=str(secrets))
    assert refusal(done) == f"the entry point schema-blocks (shop:blocks) failed: cannot reach ***; {CURE}"
    assert "Traceback" in done.stderr
    assert "hidden-value" not in done.stderr


def test_declared_twice(tmp_path: Path) -> None:
    declare(tmp_path, "", schema_head="shop:head")
    declare(tmp_path, "", package="stall", schema_head="stall:head")
    assert refusal(schema(tmp_path)) == (
        "several packages declare the entry point schema-head (shop:head, stall:head); only the application may"
    )


def test_directory_missing(tmp_path: Path) -> None:
    assert refusal(schema(tmp_path / "gone")) == (
        f"cannot change to {tmp_path / 'gone'}: no such file or directory; check --chdir"
    )
