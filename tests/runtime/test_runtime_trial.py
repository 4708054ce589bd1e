"""The trial: the candidate under the real gunicorn on a private socket."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bareforge_runtime import gunicorn_process, trial, watching
from bareforge_runtime.candidate import Candidate, CheckError
from bareforge_runtime.redact import Redactor
from bareforge_runtime.waiting import alive

from tests.runtime.conftest import environment, write_secrets

SECRET = "correct-horse-battery-staple"
LOOK = "see its last lines above, fix it and deploy again"

# STARTED runs when a worker of gunicorn has started it, not in the check's own process; READY answers then.
SOURCE = """
import asyncio, json, os, sys, threading, time
WITH_GUNICORN = os.path.basename(sys.argv[0]) == "gunicorn"
asked = 0

async def app(scope, receive, send):
    global asked
    if scope["type"] == "lifespan":
        await receive()
        if WITH_GUNICORN:
            with open("seen", "a") as seen:
                start = dict(line.partition("=")[::2] for line in open("/proc/self/environ").read().split("\\0"))
                words = open(f"/proc/{os.getppid()}/cmdline").read().split("\\0")
                seen.write(json.dumps({"pids": [os.getppid(), os.getpid()], "environment": start, "words": words}))
                seen.write("\\n")
            try:
                started()
            except ValueError as error:
                await send({"type": "lifespan.startup.failed", "message": f"Traceback\\nValueError: {error}"})
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    status, body = 200, b""
    if WITH_GUNICORN:
        asked += 1
        status, body = await ready(asked)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})

def started():
    STARTED

async def ready(asked):
    READY
    return 200, b""
"""
CONFIGURATION = """
worker_class = "bareforge_runtime.worker.Worker"
bind = "unix:/nowhere/app.sock"
pidfile = "/nowhere/gunicorn.pid"
control_socket = "/nowhere/control.sock"
accesslog = "-"
workers = 3
graceful_timeout = 30
"""


def good(soak: str) -> str:
    """What is said of a good candidate: by the check, then by the trial."""
    return f"ok: service:app is ready\nok: service:app became ready on a private socket and stayed so for {soak} s\n"


class Checked:
    """A candidate in a directory, and its check."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.app = directory / "app"
        self.app.mkdir()
        # the path of a unix socket holds 107 characters, which a test's own directory may use up
        self.temporary = Path(tempfile.mkdtemp(prefix="trial-", dir="/tmp"))
        self.settings: dict[str, str] = {"TMPDIR": str(self.temporary)}

    def write(self, started: str = "pass", ready: str = "pass", configuration: str = "") -> None:
        source = SOURCE.replace("STARTED", started).replace("READY", ready)
        (self.app / "service.py").write_text(source)
        (self.directory / "gunicorn.conf.py").write_text(CONFIGURATION + configuration)

    def start(self, *options: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "bareforge_runtime", "check", "--app", "service:app"]
        command += ["--chdir", str(self.app), "--gunicorn-config", str(self.directory / "gunicorn.conf.py"), *options]
        return subprocess.Popen(
            command,
            env=environment(**self.settings),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, *options: str) -> tuple[int, str, str]:
        process = self.start(*options)
        output, errors = process.communicate(timeout=40)
        return process.returncode, output, errors

    def refusal(self, *options: str) -> tuple[list[str], str]:
        """Return what is shown above, and the last line."""
        code, output, errors = self.check(*options)
        *shown, line = errors.splitlines()
        assert code == 1, errors
        assert output in ("", "ok: service:app is ready\n")
        assert line.startswith("bareforge-runtime: ")
        return shown, line.removeprefix("bareforge-runtime: ")

    def seen(self) -> list[dict[str, object]]:
        """What each worker of gunicorn saw of itself."""
        file = self.app / "seen"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def left(self) -> list[object]:
        """Processes and files that are still there."""
        pids = [pid for worker in self.seen() for pid in worker["pids"] if alive(pid)]  # type: ignore[attr-defined]
        return [*pids, *self.temporary.iterdir()]


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Checked]:
    candidate = Checked(tmp_path)
    candidate.write()
    yield candidate
    left = candidate.left()
    for pid in left:
        if isinstance(pid, int):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(candidate.temporary, ignore_errors=True)
    assert left == []


def test_good_candidate_is_tried_as_the_service_but_apart_from_it(checked: Checked) -> None:
    checked.settings |= {
        "BAREFORGE_SECRETS": str(write_secrets(checked.directory / "secrets", kv={"APP_KEY": SECRET})),
        "BAREFORGE_MARKERS": str(checked.directory / "markers"),
        "LISTEN_FDS": "1",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "APP_PLAIN": "kept",
    }
    checked.write(started=f"assert os.environ['APP_KEY'] == {SECRET!r}")
    started = time.monotonic()
    assert checked.check("--soak", "1.2") == (
        0,
        good("1.2"),
        "",
    )
    assert 1.2 < time.monotonic() - started < 12
    (worker,) = checked.seen()
    start, words = worker["environment"], worker["words"]
    assert isinstance(start, dict)
    assert isinstance(words, list)
    assert start["APP_PLAIN"] == "kept"
    assert not {"APP_KEY", "LISTEN_FDS", "NOTIFY_SOCKET"} & start.keys(), "no secret in a started process either"
    assert start["BAREFORGE_MARKERS"].startswith(str(checked.temporary))
    assert words[:2] == [sys.executable, str(Path(sys.executable).parent / "gunicorn")]
    assert SECRET not in " ".join(words)
    assert not (checked.directory / "markers").exists(), "neither check writes markers where the service's are"


def test_socket_of_ones_own(checked: Checked) -> None:
    path = checked.directory / "private.sock"
    # what the configuration itself sets must not lead the trial astray
    elsewhere = checked.directory / "elsewhere"
    raw_env = ["APP_MODE=x", f"BAREFORGE_MARKERS={elsewhere}", "BAREFORGE_RELEASE_HEADER=X-Other"]
    checked.write(
        started=f"assert os.path.exists({str(path)!r}) and os.environ['APP_MODE'] == 'x'",
        configuration=f"raw_env = {raw_env}\n",
    )
    assert checked.check("--socket", str(path), "--ready-path", "/other?deep=1") == (
        0,
        good("0"),
        "",
    )
    assert not path.exists()
    assert not elsewhere.exists()


def test_a_socket_that_is_there_is_left_alone(checked: Checked) -> None:
    path = checked.directory / "app.sock"
    path.write_text("somebody's")
    _, line = checked.refusal("--socket", str(path))
    assert line == f"the private socket {path} exists already; name a path that is free with --socket"
    assert path.read_text() == "somebody's"
    assert checked.seen() == []


def test_what_the_check_itself_finds_is_said_by_it(checked: Checked) -> None:
    (checked.app / "service.py").write_text("raise ValueError('no APP_KEY')\n")
    _, line = checked.refusal("--soak", "1")
    assert line == (
        "the application refuses to start: no APP_KEY; fix the named setting or the application and deploy again"
    )
    assert checked.seen() == []


def test_imports_only_cannot_be_watched(checked: Checked) -> None:
    _, line = checked.refusal("--soak", "1", "--imports-only")
    assert line == "--imports-only starts nothing that could be watched; leave out --soak and --socket"


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os._exit(1)", "worker ended with exit code 1"),
        ("os._exit(0)", "worker ended"),
        ("os.kill(os.getpid(), 9)", "worker was ended by SIGKILL"),
    ],
)
def test_worker_ends_after_it_was_ready(checked: Checked, end: str, how: str) -> None:
    checked.write(started=f"threading.Timer(1.3, lambda: (print('the last words', flush=True), {end})).start()")
    shown, line = checked.refusal("--soak", "5")
    assert re.fullmatch(rf"the application became ready and ended [12] s later: {how}; {LOOK}", line), line
    assert "the last words" in shown


def test_worker_ends_and_the_next_one_does_not_come_up(checked: Checked) -> None:
    checked.write(
        started="""
    if len(open("seen").readlines()) > 1:
        time.sleep(60)
    threading.Timer(1.3, os._exit, (1,)).start()"""
    )
    _, line = checked.refusal("--soak", "5")
    assert re.fullmatch(
        rf"the application became ready and ended [12] s later: worker ended with exit code 1; {LOOK}", line
    ), line


def test_an_application_that_ends_its_process_does_not_end_the_check(checked: Checked) -> None:
    """It does so wherever it runs: in the check's own process too, if that were still there."""
    checked.write()
    source = (checked.app / "service.py").read_text()
    (checked.app / "service.py").write_text(f"{source}\nthreading.Timer(1.6, os._exit, (7,)).start()\n")
    _, line = checked.refusal("--soak", "5")
    assert re.fullmatch(
        rf"the application became ready and ended [12] s later: worker ended with exit code 7; {LOOK}", line
    ), line


def test_master_ends_after_it_was_ready(checked: Checked) -> None:
    checked.write(started="threading.Timer(1.3, os.kill, (os.getppid(), 9)).start()")
    path = checked.directory / "private.sock"
    _, line = checked.refusal("--soak", "5", "--socket", str(path))
    assert re.fullmatch(rf"the application became ready and ended [12] s later: it gave no reason; {LOOK}", line), line
    assert not path.exists()


def test_not_ready_any_more(checked: Checked) -> None:
    secrets = write_secrets(checked.directory / "secrets", kv={"APP_KEY": SECRET})
    checked.settings["BAREFORGE_SECRETS"] = str(secrets)
    checked.write(ready="if asked > 4: return 503, b'x' * 1990 + os.environ['APP_KEY'].encode()")
    shown, line = checked.refusal("--soak", "5")
    assert re.fullmatch(
        "the application became ready and answered GET /ready with 503 after [12] s; "
        "its answer above names what is missing",
        line,
    ), line
    assert shown[-1].endswith("x***")
    assert "corr" not in "".join(shown)
    assert not any('"method"' in line for line in shown), "the access log is not shown"


def test_not_ready_any_more_without_a_reason(checked: Checked) -> None:
    checked.write(ready="if asked > 3: return 500, b''")
    _, line = checked.refusal("--soak", "5")
    assert re.fullmatch(rf"the application became ready and answered GET /ready with 500 after [12] s; {LOOK}", line), (
        line
    )


def test_no_answer_any_more_and_no_end_on_demand(checked: Checked) -> None:
    """A worker that hangs hears no TERM: it is killed."""
    checked.write(ready="if asked > 3: time.sleep(60)")
    started = time.monotonic()
    _, line = checked.refusal("--soak", "3")
    assert re.fullmatch(
        rf"the application became ready and [12] s later GET /ready gave no answer within 5 s; {LOOK}", line
    ), line
    assert time.monotonic() - started < 20


def test_startup_fails_under_gunicorn_only(checked: Checked) -> None:
    secrets = write_secrets(checked.directory / "secrets", kv={"APP_KEY": SECRET})
    checked.settings["BAREFORGE_SECRETS"] = str(secrets)
    checked.write(started="print(os.environ['APP_KEY'], flush=True); raise ValueError('no ' + os.environ['APP_KEY'])")
    shown, line = checked.refusal("--soak", "1")
    assert line == f"gunicorn did not start on a private socket: ValueError: no ***; {LOOK}"
    assert "***" in shown
    assert "horse" not in "".join(shown)


def test_worker_ends_before_it_is_ready(checked: Checked) -> None:
    checked.write(started="os._exit(7)")
    _, line = checked.refusal("--soak", "1")
    assert line == f"gunicorn did not start on a private socket: worker ended with exit code 7; {LOOK}"


def test_cause_and_cure_of_the_worker_itself_are_kept(checked: Checked) -> None:
    hook = "def post_fork(server, worker):\n    os.environ['BAREFORGE_DRAIN_SECONDS'] = 'soon'\n"
    checked.write(configuration=f"import os\n{hook}")
    _, line = checked.refusal("--soak", "1")
    assert line == (
        "gunicorn did not start on a private socket: BAREFORGE_DRAIN_SECONDS is 'soon'; "
        "set it to a number of seconds, such as 0.25"
    )


def test_a_drain_that_is_no_number_is_found_although_the_trial_has_none(checked: Checked) -> None:
    checked.settings["BAREFORGE_DRAIN_SECONDS"] = "soon"
    _, line = checked.refusal("--soak", "1")
    assert line == "BAREFORGE_DRAIN_SECONDS is 'soon'; set it to a number of seconds, such as 0.25"


def test_the_trial_ends_without_a_drain(checked: Checked) -> None:
    checked.settings["BAREFORGE_DRAIN_SECONDS"] = "60"
    checked.write()
    code, _, errors = checked.check("--soak", "0.1")
    assert code == 0, errors
    [seen] = checked.seen()
    assert dict(seen["environment"])["BAREFORGE_DRAIN_SECONDS"] == "0"  # type: ignore[call-overload]


def test_a_hook_that_fails(checked: Checked) -> None:
    checked.write(configuration="def on_starting(server):\n    raise RuntimeError('no hook')\n")
    _, line = checked.refusal("--soak", "1")
    assert line == f"gunicorn did not start on a private socket: Error: no hook; {LOOK}"


@pytest.mark.parametrize(
    ("ready", "last"),
    [
        ("return 503, b''", "GET /ready answered 503"),
        ("await asyncio.sleep(60)", "connected, but no answer"),
    ],
)
def test_not_ready_under_gunicorn(checked: Checked, ready: str, last: str) -> None:
    checked.write(ready=ready)
    started = time.monotonic()
    _, line = checked.refusal("--soak", "1", "--timeout", "3")
    assert line == f"the application did not become ready on a private socket within 3 s ({last}); {LOOK}"
    assert time.monotonic() - started < 12


def test_another_worker_class_names_no_release(checked: Checked) -> None:
    checked.write(configuration="worker_class = 'uvicorn_worker.UvicornWorker'\n")
    _, line = checked.refusal("--soak", "1")
    assert line == (
        "no release id came with the answer on the private socket (header X-Release); "
        'set worker_class = "bareforge_runtime.worker.Worker" in the gunicorn configuration'
    )


def test_another_release(checked: Checked) -> None:
    checked.write(
        configuration="import os\nfrom bareforge_runtime import release\n"
        "if 'BAREFORGE_MARKERS' in os.environ:\n    release._CURRENT = release.Release('r6')\n"
    )
    _, line = checked.refusal("--soak", "1")
    assert line == (
        "release r6 answered instead of development on the private socket; "
        "the gunicorn configuration leads to another release, correct it and deploy again"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_meanwhile(checked: Checked, number: signal.Signals) -> None:
    process = checked.start("--soak", "20")
    deadline = time.monotonic() + 15
    while not checked.seen() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    output, errors = process.communicate(timeout=15)
    assert (process.returncode, output) == (1, "ok: service:app is ready\n")
    assert errors.splitlines()[-1] == f"bareforge-runtime: the check was stopped by {number.name}; run it again"


def test_relative_paths_and_no_configuration(checked: Checked) -> None:
    def run(*options: str) -> str:
        command = [sys.executable, "-m", "bareforge_runtime", "check", "--app", "service:app", "--chdir", "app"]
        done = subprocess.run(
            [*command, "--soak", "0.1", "--socket", "a.sock", *options],
            env=environment(**checked.settings),
            cwd=checked.directory,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout + done.stderr

    # a module of the candidate that is named as one of the runtime's, or of Python's
    (checked.app / "argparse.py").write_text("raise RuntimeError")
    assert run() == good("0.1")
    assert run("--gunicorn-config", "gunicorn.conf.py") == good("0.1")


def test_trial_alone(checked: Checked) -> None:
    command = [sys.executable, "-m", "bareforge_runtime", "trial", "--app", "service:app", "--chdir", str(checked.app)]
    done = subprocess.run(
        command, env=environment(**checked.settings), cwd="/", capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "ok: service:app became ready on a private socket and stayed so for 0 s\n",
        "",
    )


def test_no_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(CheckError) as caught:
        trial.prove(trial.Trial(Candidate("a:b"), 0, {}, time.monotonic()), {}, Redactor())
    assert str(caught.value) == (
        "cannot make a temporary directory for the trial: no such file or directory; "
        "is there a /tmp that this user can write?"
    )


def log(*lines: str) -> list[str]:
    return [f"[2026-01-01 10:00:00 +0000] [7] [INFO] {line}" for line in lines]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], ("it gave no reason", "")),
        (log("Booting worker with pid: 7", "Worker exiting (pid: 7)"), ("it gave no reason", "")),
        (
            [*log("Booting worker with pid: 7"), "ValueError: no", *log("Application startup failed. Exiting.")],
            ("ValueError: no", ""),
        ),
        (
            ["an earlier one", *log("Booting worker with pid: 7", "Worker (pid:7) exited with code 1.")],
            ("worker ended with exit code 1", ""),
        ),
        (log("bareforge-runtime: no x; set y", "Shutting down: Master"), ("no x", "set y")),
    ],
)
def test_why_it_ended(lines: list[str], why: tuple[str, str]) -> None:
    assert gunicorn_process.why_it_ended(lines) == why


def test_worker_end_is_that_of_the_worker() -> None:
    lines = log("Worker (pid:7) exited with code 1.", "Worker (pid:8) was sent SIGKILL! Perhaps out of memory?")
    assert gunicorn_process.worker_end(lines, 7) == "worker ended with exit code 1"
    assert gunicorn_process.worker_end(lines) == "worker was ended by SIGKILL"
    assert gunicorn_process.worker_end(lines, 9) == ""


@pytest.mark.parametrize(
    ("header", "parsed"),
    [("r7; host=a; pid=12", ("r7", 12)), ("r7", ("r7", 0)), ("", ("", 0)), ("r7; pid=x", ("r7", 0))],
)
def test_release_header(header: str, parsed: tuple[str, int]) -> None:
    assert watching.parse_release(header) == parsed
