"""`check --soak`: gunicorn for real on a private socket, watched for a while; and `schema`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.runtime.conftest import APPLICATION, runtime, write_secrets

CONFIGURATION = "worker_class = 'bareforge_runtime.worker.Worker'\naccesslog = '-'\n"
LOOK = "see its last lines above, fix it and deploy again"


def trial(
    directory: Path, source: str, soak: str = "2", configuration: str = CONFIGURATION, **settings: str
) -> tuple[int, str, str]:
    (directory / "service.py").write_text(source)
    (directory / "gunicorn.conf.py").write_text(configuration)
    done = runtime(
        "check", "--app", "service:app", "--chdir", str(directory),
        "--gunicorn-config", str(directory / "gunicorn.conf.py"), "--timeout", "8", "--soak", soak,
        cwd=directory, **settings,
    )  # fmt: skip
    left = subprocess.run(
        ["pgrep", "-f", f"gunicorn --config {directory}"], capture_output=True, text=True, check=False
    )
    assert left.stdout == "", "the trial leaves no process"
    return done.returncode, done.stdout, done.stderr


def last(stderr: str) -> str:
    return stderr.strip().splitlines()[-1].removeprefix("bareforge-runtime: ")


def test_a_good_release_becomes_ready_and_stays_so(tmp_path: Path) -> None:
    code, out, err = trial(tmp_path, APPLICATION)
    assert code == 0, err
    assert out.splitlines() == [
        "ok: service:app is ready",
        "ok: service:app became ready on a private socket and stayed so for 2 s",
    ]


def test_a_release_that_crashes_a_moment_later_is_refused(tmp_path: Path) -> None:
    crash = "import threading\nthreading.Timer(1.5, lambda: os._exit(9)).start()\n"
    code, _, err = trial(tmp_path, APPLICATION.replace("async def app", f"{crash}\nasync def app"), soak="4")
    assert code == 1
    assert last(err).startswith("the application became ready and ended ")
    assert last(err).endswith(f" exited with code 9; {LOOK}")


def test_a_release_that_stops_being_ready_is_refused(tmp_path: Path) -> None:
    aging = APPLICATION.replace("async def app", "import time\nborn = time.monotonic()\n\nasync def app").replace(
        '"status": 200', '"status": 200 if time.monotonic() - born < 1.5 else 503'
    )
    code, _, err = trial(tmp_path, aging, soak="4")
    assert code == 1
    assert last(err).startswith("the application became ready and after ")
    assert last(err).endswith(f" s GET /ready answered 503; {LOOK}")


def test_a_hook_that_fails_in_the_master_is_refused(tmp_path: Path) -> None:
    hook = f"{CONFIGURATION}def on_starting(server):\n    raise RuntimeError('fails for real')\n"
    code, _, err = trial(tmp_path, APPLICATION, configuration=hook)
    assert code == 1
    assert last(err).startswith("gunicorn did not start on a private socket: ")
    assert "fails for real" in err


def test_no_secret_is_shown(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "secrets", kv={"APP_SECRET_KEY": "correct-horse-battery"})
    talkative = (
        f"{APPLICATION}\nimport sys, threading\nprint('key', os.environ['APP_SECRET_KEY'], file=sys.stderr)\n"
        "threading.Timer(1.2, lambda: os._exit(9)).start()\n"
    )
    code, out, err = trial(tmp_path, talkative, soak="4", BAREFORGE_SECRETS=str(directory))
    assert code == 1
    assert "key ***" in err
    assert "correct-horse-battery" not in out + err


def distribution(directory: Path, entries: str) -> None:
    """Something installed that declares entry points."""
    info = directory / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bareforge]\n{entries}")
    (directory / "shop.py").write_text(
        "import os\ndef head():\n    assert 'APP_SECRET_KEY' not in os.environ\n    return '0002'\n"
        "def blocks(older):\n    return '' if older == '0002' else os.environ['APP_SECRET_KEY'][:4]\n"
        "def broken():\n    raise RuntimeError('no migrations here')\n"
    )


def test_schema_of_a_release(tmp_path: Path) -> None:
    from tests.runtime.conftest import SOURCES

    distribution(tmp_path, "schema-head = shop:head\nschema-blocks = shop:blocks\n")
    secrets = write_secrets(tmp_path / "secrets", kv={"APP_SECRET_KEY": "0002-and-more"})
    settings = {"PYTHONPATH": f"{SOURCES}:{tmp_path}", "BAREFORGE_SECRETS": str(secrets)}
    assert runtime("schema", cwd=tmp_path, **settings).stdout == "0002\n"
    assert runtime("schema", "--older", "0002", cwd=tmp_path, **settings).stdout == "\n"
    assert runtime("schema", "--older", "0001", cwd=tmp_path, **settings).stdout == "0002\n"


def test_schema_of_a_release_that_declares_none(tmp_path: Path) -> None:
    assert runtime("schema", cwd=tmp_path).stdout == "\n"


def test_schema_that_fails_names_the_entry_point(tmp_path: Path) -> None:
    from tests.runtime.conftest import SOURCES

    distribution(tmp_path, "schema-head = shop:broken\n")
    done = runtime("schema", cwd=tmp_path, PYTHONPATH=f"{SOURCES}:{tmp_path}")
    assert done.returncode == 1
    assert last(done.stderr) == (
        "the entry point schema-head (shop:broken) failed: no migrations here; correct it in the application"
    )
