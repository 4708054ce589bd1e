"""The candidate check: each refusal by its last line, and what it must not do."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.runtime.conftest import APPLICATION, runtime, write_secrets

SECRET = "correct-horse-battery-staple"
FIX = "fix the named setting or the application and deploy again"


def write(directory: Path, source: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "service.py").write_text(source)
    return directory


def check(
    directory: Path, app: str = "service:app", *options: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    arguments = ("check", "--app", app, "--chdir", str(directory), *options)
    return runtime(*arguments, cwd=Path("/"), **settings)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    prefix = "bareforge-runtime: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


def test_ready(tmp_path: Path) -> None:
    done = check(write(tmp_path, APPLICATION))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok: service:app is ready\n", "")


def test_factory_with_argument(tmp_path: Path) -> None:
    source = APPLICATION + "\ndef create(name='x'):\n    assert name == 'y'\n    return app\n"
    done = check(write(tmp_path, source), "service:create(name='y')")
    assert done.stdout == "ok: service:create(name='y') is ready\n", done.stderr


def test_application_without_lifespan(tmp_path: Path) -> None:
    source = APPLICATION.replace('if scope["type"] == "lifespan":', "assert scope['type'] == 'http'\n    if 0:")
    assert check(write(tmp_path, source)).stdout == "ok: service:app is ready\n"


def test_imports_only_does_not_start(tmp_path: Path) -> None:
    done = check(write(tmp_path, "async def app(*_): raise SystemExit(9)\n"), "service:app", "--imports-only")
    assert done.stdout == "ok: service:app imports\n", done.stderr


def test_lifespan_state_and_host_reach_the_ready_path(tmp_path: Path) -> None:
    source = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["pool"] = "open"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shut down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert scope["state"]["pool"] == "open"
    assert (scope["path"], scope["query_string"]) == ("/healthy", b"deep=1")
    assert dict(scope["headers"])[b"host"] == b"app.example"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
"""
    done = check(write(tmp_path, source), "service:app", "--ready-path", "/healthy?deep=1", "--host", "app.example")
    assert done.stdout == "shut down\nok: service:app is ready\n", done.stderr


def test_module_not_found(tmp_path: Path) -> None:
    (tmp_path / "forge_app").mkdir()
    (tmp_path / "forge_app/__init__.py").touch()
    assert refusal(check(tmp_path, "forge_app.wrong:app")) == (
        "cannot import module 'forge_app.wrong': No module named 'forge_app.wrong'; "
        "check asgi_app_module ('forge_app.wrong:app')"
    )
    assert refusal(check(tmp_path, "absent.main:app")) == (
        "cannot import module 'absent.main': No module named 'absent'; check asgi_app_module ('absent.main:app')"
    )


def test_dependency_not_found_is_not_blamed_on_the_module_setting(tmp_path: Path) -> None:
    done = check(write(tmp_path, "import nothing_like_it\n"))
    assert refusal(done) == f"the application refuses to start: No module named 'nothing_like_it'; {FIX}"
    assert "service.py" in done.stderr


def test_attribute_missing(tmp_path: Path) -> None:
    write(tmp_path, APPLICATION)
    assert refusal(check(tmp_path, "service:application")) == (
        "module 'service' has no attribute 'application'; check asgi_app_module ('service:application')"
    )
    assert refusal(check(tmp_path, "service:create()")) == (
        "module 'service' has no attribute 'create'; check asgi_app_module ('service:create()')"
    )


def test_not_callable(tmp_path: Path) -> None:
    assert refusal(check(write(tmp_path, "app = 7\n"))) == (
        "Application object must be callable.; check asgi_app_module ('service:app')"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('APP_POOL_SIZE must be\\n  a number')", "APP_POOL_SIZE must be a number"),
        ("raise RuntimeError", "RuntimeError"),
        ("import os; os.environ['APP_KEY']", "KeyError: 'APP_KEY'"),
        ("raise SystemExit('APP_KEY is not set')", "APP_KEY is not set"),
        ("def app(:", "invalid syntax (service.py, line 1)"),
    ],
)
def test_import_raises(tmp_path: Path, source: str, message: str) -> None:
    done = check(write(tmp_path, source))
    assert refusal(done) == f"the application refuses to start: {message}; {FIX}"
    assert "Traceback" in done.stderr


def test_factory_raises(tmp_path: Path) -> None:
    done = check(write(tmp_path, "def create():\n    raise ValueError('no APP_KEY')\n"), "service:create()")
    assert refusal(done) == f"the application refuses to start: no APP_KEY; {FIX}"


def test_settings_of_pydantic_are_named_and_not_shown(tmp_path: Path) -> None:
    source = """
import os
from pydantic_settings import BaseSettings
class Settings(BaseSettings):
    app_secret_key: int
    app_name: str
Settings()
"""
    directory = write_secrets(tmp_path / "secrets", kv={"APP_SECRET_KEY": SECRET * 5})
    done = check(write(tmp_path / "app", source), BAREFORGE_SECRETS=str(directory))
    assert refusal(done) == (
        "the application refuses to start: app_secret_key: Input should be a valid integer, unable to parse "
        f"string as an integer, app_name: Field required; {FIX}"
    )
    assert "correct-horse" not in done.stderr


FASTAPI = """
import os
from contextlib import asynccontextmanager
from fastapi import FastAPI

@asynccontextmanager
async def lifespan(app):
    {startup}
    yield
    {shutdown}

app = FastAPI(lifespan=lifespan)

@app.get("/ready")
def ready():
    {ready}
"""


def fastapi(startup: str = "pass", shutdown: str = "pass", ready: str = "return {}") -> str:
    return FASTAPI.format(startup=startup, shutdown=shutdown, ready=ready)


def test_startup_fails(tmp_path: Path) -> None:
    done = check(write(tmp_path, fastapi(startup="raise OSError('database db:5432:\\n refused')")))
    assert refusal(done) == f"the application failed at startup: database db:5432: refused; {FIX}"
    assert "service.py" in done.stderr


def test_startup_fails_by_message_alone(tmp_path: Path) -> None:
    source = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "some\\nno cache"})
"""
    assert refusal(check(write(tmp_path, source))) == f"the application failed at startup: no cache; {FIX}"


def test_shutdown_failure_is_shown_but_no_refusal(tmp_path: Path) -> None:
    done = check(write(tmp_path, fastapi(shutdown="raise OSError('late')")))
    assert done.stdout == "ok: service:app is ready\n"
    assert "warning: the application failed at shutdown:" in done.stderr
    assert "OSError: late" in done.stderr


def test_not_ready(tmp_path: Path) -> None:
    ready = "from fastapi import Response; return Response('no migration 7', status_code=503)"
    done = check(write(tmp_path, fastapi(ready=ready)))
    assert refusal(done) == (
        "the application is not ready: GET /ready answered 503; its answer above names what is missing"
    )
    assert "no migration 7" in done.stderr


def test_ready_raises(tmp_path: Path) -> None:
    done = check(write(tmp_path, fastapi(ready="raise ValueError('no table')")))
    assert refusal(done) == (
        "the application is not ready: GET /ready raised ValueError: no table; "
        "fix what the traceback names and deploy again"
    )


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(60)  # here",
        "import time\ntry:\n    time.sleep(60)  # here\nexcept BaseException:\n    time.sleep(60)",
        fastapi(startup="import asyncio; await asyncio.sleep(60)  # here"),
        fastapi(startup="import time; time.sleep(60)  # here"),
        fastapi(ready="import time; time.sleep(60)  # here"),
    ],
)
def test_hangs(tmp_path: Path, source: str) -> None:
    started = time.monotonic()
    done = check(write(tmp_path, source), "service:app", "--timeout", "1.5")
    assert time.monotonic() - started < 6
    assert refusal(done) == (
        "the application did not become ready within 1.5 s; the traceback above shows where it waits"
    )
    assert "sleep(60)  # here" in done.stderr


def test_threads_do_not_keep_the_check_alive(tmp_path: Path) -> None:
    source = APPLICATION + "\nimport threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    started = time.monotonic()
    assert check(write(tmp_path, source)).stdout == "ok: service:app is ready\n"
    assert time.monotonic() - started < 10


def test_opens_no_listening_socket(tmp_path: Path) -> None:
    source = """
import sys
def watch(event, arguments):
    if event == "socket.bind":
        raise RuntimeError(f"bound {arguments}")
sys.addaudithook(watch)
""" + fastapi()
    (tmp_path / "g.conf.py").write_text(f"bind = 'unix:{tmp_path}/app.sock'\nworkers = 2\n")
    done = check(write(tmp_path, source), "service:app", "--gunicorn-config", str(tmp_path / "g.conf.py"))
    assert done.stdout == "ok: service:app is ready\n", done.stderr
    assert not (tmp_path / "app.sock").exists()


def test_secrets_reach_the_application_and_no_output(tmp_path: Path) -> None:
    url = "postgresql://app:p%40ssword@db/app"
    directory = write_secrets(tmp_path / "secrets", kv={"APP_KEY": SECRET}, db={"APP_URL": url})
    source = """
import os, sys, logging
print("print", os.environ["APP_KEY"])
logging.error("log %s", os.environ["APP_URL"])
os.write(1, b"")
raise ValueError("bad " + os.environ["APP_KEY"] + " or p@ssword")
"""
    done = check(write(tmp_path / "app", source), BAREFORGE_SECRETS=str(directory))
    assert done.returncode == 1
    assert done.stdout == "print ***\n"
    assert "log ***" in done.stderr
    assert "ValueError: bad *** or ***" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"bareforge-runtime: the application refuses to start: bad *** or ***; {FIX}"
    )


def test_answer_of_ready_is_redacted_before_it_is_cut(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "secrets", kv={"APP_KEY": SECRET})
    ready = "from fastapi import Response\n    return Response('x' * 1990 + os.environ['APP_KEY'], status_code=503)"
    done = check(write(tmp_path / "app", fastapi(ready=ready)), BAREFORGE_SECRETS=str(directory))
    assert "answered 503" in refusal(done)
    assert "x***\n" in done.stderr
    assert "corr" not in done.stderr


def test_secrets_missing(tmp_path: Path) -> None:
    done = check(write(tmp_path, APPLICATION), BAREFORGE_SECRETS="/nowhere")
    assert refusal(done) == (
        "the secrets directory /nowhere does not exist; is the agent running? see: journalctl -u bareforge-agent"
    )


def test_directory_missing(tmp_path: Path) -> None:
    assert refusal(check(tmp_path / "gone")) == (
        f"cannot change to {tmp_path / 'gone'}: no such file or directory; check --chdir"
    )


def test_code_of_the_start_directory_is_not_imported(tmp_path: Path) -> None:
    """An engine that happens to stand in the old release must not have it checked in place of the new one."""
    old, new = write(tmp_path / "old", APPLICATION), tmp_path / "new"
    new.mkdir()
    done = runtime("check", "--app", "service:app", "--chdir", str(new), cwd=old)
    assert refusal(done) == (
        "cannot import module 'service': No module named 'service'; check asgi_app_module ('service:app')"
    )


def check_with(configuration: str, tmp_path: Path, source: str = APPLICATION) -> tuple[Path, object]:
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(configuration)
    return file, check(write(tmp_path / "app", source), "service:app", "--gunicorn-config", str(file))


def test_gunicorn_environment_reaches_the_application_and_chdir_does_not_win(tmp_path: Path) -> None:
    write(tmp_path / "old", "raise RuntimeError('the old release')")
    source = "import os\nassert os.environ['APP_MODE'] == 'x'\n" + APPLICATION
    configuration = (
        f"chdir = '{tmp_path}/old'\nraw_env = ['APP_MODE=x']\nworker_class = 'bareforge_runtime.worker.Worker'\n"
    )
    _, done = check_with(configuration, tmp_path, source)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.stdout == "ok: service:app is ready\n", done.stderr


@pytest.mark.parametrize(
    ("configuration", "cause"),
    [
        ("workers = 'many'", "invalid literal for int() with base 0: 'many'"),
        ("workers = (", "SyntaxError: '(' was never closed"),
        ("raise ValueError('odd')", "ValueError: odd"),
        ("worker_class = 'nothing.Worker'", None),
    ],
)
def test_gunicorn_configuration_refused(tmp_path: Path, configuration: str, cause: str | None) -> None:
    file, done = check_with(configuration, tmp_path)
    assert isinstance(done, subprocess.CompletedProcess)
    line = refusal(done)
    assert line.startswith(f"gunicorn refuses its configuration {file}: {cause or ''}")
    assert line.endswith("; correct that setting and deploy again")
    if cause is None:
        assert "nothing" in line
    else:
        assert cause in line


def test_gunicorn_configuration_missing(tmp_path: Path) -> None:
    done = check(write(tmp_path, APPLICATION), "service:app", "--gunicorn-config", "/nowhere.py")
    assert refusal(done) == (
        "gunicorn refuses its configuration /nowhere.py: '/nowhere.py' doesn't exist; "
        "correct that setting and deploy again"
    )
