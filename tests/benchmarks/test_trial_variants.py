"""Each variant does what it is made for, as a process of its own."""

from __future__ import annotations

import json
import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from packaging.version import Version

from benchmarks.trial.variants import Fault, Migration, make
from plugins.module_utils.bareforge_bundle import resolve_source
from tests.benchmarks.conftest import REFERENCE, Database, Serving, run, serve, start

UVICORN = ("uvicorn", "--factory", "forge_app.trial:create_app", "--port", "{port}")
REFERENCE_UVICORN = ("uvicorn", "--factory", "forge_app.main:create_app", "--port", "{port}")
GUNICORN = (
    "gunicorn", "--worker-class", "bareforge_runtime.worker.Worker", "--bind", "127.0.0.1:{port}",
    "--workers", "2", "--no-control-socket", "forge_app.trial:create_app()",
)  # fmt: skip


class Crashing:
    """A server that is to crash: when it was ready, and when and how it ended."""

    def __init__(self, serving: Serving) -> None:
        serving.wait_until_ready()
        self.ready = time.monotonic()
        self.serving = serving
        self.ended = 0.0
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        self.serving.process.wait()
        self.ended = time.monotonic()

    def seconds(self, limit: float) -> float:
        """Return the seconds from readiness to the end, at most `limit` of which are waited for."""
        self._thread.join(max(0, self.ready + limit - time.monotonic()))
        assert self.ended, "it lives"
        return self.ended - self.ready


@pytest.fixture(scope="module")
def crashing_late(variant: Callable[..., Path], database: Database, tmp_path_factory) -> Iterator[Crashing]:
    """Started for the first test and asked by the last: its 30 s pass meanwhile."""
    log = tmp_path_factory.mktemp("late") / "log"
    with serve(variant(fault=Fault.CRASH_LATE), database, log, *UVICORN) as serving:
        yield Crashing(serving)


def test_crash_ends_the_process_5_s_after_its_start(variant, database, tmp_path, crashing_late):
    with serve(variant(fault=Fault.CRASH), database, tmp_path / "log", *UVICORN) as serving:
        crashing = Crashing(serving)
        assert serving.client.get("/items").status_code == 200
        assert 4 < crashing.seconds(limit=10) < 7
        assert serving.process.returncode == 1
    assert crashing_late.serving.client.get("/ready").status_code == 200


@pytest.fixture(scope="module")
def serving(variant: Callable[..., Path], database: Database, tmp_path_factory) -> Iterator[Serving]:
    """A variant without a fault, as hosts serve it."""
    log = tmp_path_factory.mktemp("serving") / "log"
    with serve(variant(name="Some_good-1"), database, log, *GUNICORN) as serving:
        serving.wait_until_ready()
        yield serving


def workers(serving: Serving) -> set[int]:
    pid = serving.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_it_is_the_reference_application_with_a_version_of_its_own(serving):
    assert serving.client.get("/version").json()["version"] == "0.1.0+some.good.1"
    item = serving.client.post("/items", json={"name": "anvil"}).json()
    assert serving.client.get(f"/items/{item['id']}").json()["name"] == "anvil"


def test_echo(serving):
    number = 2**53 + 1
    answer = serving.client.post("/trial/echo", json={"id": number, "more": "x"})
    assert answer.json().keys() == {"id", "release", "pid"}
    assert (answer.json()["id"], answer.json()["release"]) == (number, "development")
    assert answer.json()["pid"] in workers(serving)
    assert serving.client.post("/trial/echo", json={}).status_code == 422


@pytest.mark.parametrize("request_", [("GET", None, None), ("POST", {"id": 7}, 7)], ids=["GET", "POST"])
def test_slow(serving, request_):
    method, body, number = request_
    began = time.monotonic()
    answer = serving.client.request(method, "/trial/slow?seconds=1.2", json=body)
    assert 1.2 <= time.monotonic() - began < 2.5
    assert (answer.status_code, answer.json()["id"]) == (200, number)
    assert serving.client.request(method, "/trial/slow?seconds=10.1", json=body).status_code == 422


def test_stream_comes_in_parts_and_says_where_it_ends(serving):
    began = time.monotonic()
    with serving.client.stream("GET", "/trial/stream?seconds=1.5&parts=15") as answer:
        lines = [(time.monotonic() - began, line) for line in answer.iter_lines()]
    assert [line for _, line in lines] == [*(f"part {number} of 15" for number in range(1, 16)), "end"]
    assert lines[0][0] < 0.7 < lines[7][0] < 1.3 < lines[-1][0] < 3
    assert serving.client.get("/trial/stream?seconds=11").status_code == 422


def test_start_takes_as_long_as_asked_for(variant, database, tmp_path):
    log = tmp_path / "log"
    with serve(variant(start_seconds=1.5), database, log, *UVICORN) as serving:
        serving.wait_until_ready()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    times = {line["message"]: datetime.fromisoformat(line["time"]) for line in lines}
    waited = times["started"] - times["Waiting for application startup."]
    assert 1.5 <= waited.total_seconds() < 3


def check(source: Path, database: Database, timeout: float = 20):
    app = "forge_app.trial:create_app()"
    options = ("--app", app, "--chdir", str(source / "src"), "--timeout", str(timeout))
    return run(source, database, "-m", "bareforge_runtime", "check", *options)


def test_the_candidate_check_passes_a_good_variant(variant, database):
    done = check(variant(), database)
    assert (done.returncode, done.stdout) == (0, "ok: forge_app.trial:create_app() is ready\n"), done.stderr


@pytest.mark.parametrize(
    ("fault", "timeout", "cause"),
    [
        (Fault.IMPORT, 20, "the application refuses to start: trial: fault import;"),
        (Fault.SETTINGS, 20, "the application refuses to start: FORGE_TRIAL is missing; set it in the environment"),
        (Fault.LIFESPAN, 20, "the application failed at startup: trial: fault lifespan;"),
        (Fault.NOT_READY, 20, "the application is not ready: GET /ready answered 503;"),
        (Fault.HANG, 4, "the application did not become ready within 4 s;"),
    ],
)
def test_the_candidate_check_refuses_a_fault(variant, database, fault, timeout, cause):
    done = check(variant(fault=fault), database, timeout)
    assert done.returncode == 1
    assert f"bareforge-runtime: {cause}" in done.stderr.splitlines()[-1]


def test_a_variant_that_is_not_ready_serves_all_the_same(variant, database, tmp_path):
    with serve(variant(fault=Fault.NOT_READY), database, tmp_path / "log", *UVICORN) as serving:
        serving.wait_until("/health")
        answer = serving.client.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
        assert serving.client.post("/trial/echo", json={"id": 1}).status_code == 200


def migrate(source: Path, database: Database):
    return run(source, database, "-m", "forge_app.migrate")


def blocks(source: Path, database: Database, older_head: str) -> str:
    asked = run(source, database, "-c", f"from forge_app.migrate import blocks; print(blocks({older_head!r}))")
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


def statuses(serving: Serving) -> list[int]:
    serving.wait_until_ready()
    created = serving.client.post("/items", json={"name": "anvil", "description": "heavy"})
    return [created.status_code, serving.client.get("/items").status_code]


def test_older_code_lives_with_an_expansion(variant, database_of_its_own, tmp_path):
    source = variant(migration=Migration.EXPAND)
    assert migrate(source, database_of_its_own).stdout == "database migrated from 0001 to 0002\n"
    assert blocks(source, database_of_its_own, "0001") == ""
    with serve(REFERENCE, database_of_its_own, tmp_path / "log", *REFERENCE_UVICORN) as older:
        assert statuses(older) == [201, 200]
    assert database_of_its_own.query("SELECT count(*) FROM items WHERE note IS NULL") == 1


def test_older_code_cannot_live_with_a_contraction_and_the_variant_can(variant, database_of_its_own, tmp_path):
    source = variant(migration=Migration.CONTRACT)
    assert migrate(source, database_of_its_own).stdout == "database migrated from 0001 to 0002\n"
    assert blocks(source, database_of_its_own, "0001") == "0002"
    assert blocks(source, database_of_its_own, "0002") == ""
    with (
        serve(source, database_of_its_own, tmp_path / "newer", *UVICORN) as newer,
        serve(REFERENCE, database_of_its_own, tmp_path / "older", *REFERENCE_UVICORN) as older,
    ):
        assert statuses(newer) == [201, 200]
        assert newer.client.get("/items").json()[0]["description"] == "heavy"
        assert statuses(older) == [500, 500]


def test_a_failing_migration_says_why_and_leaves_nothing(variant, database_of_its_own):
    done = migrate(variant(migration=Migration.FAILING), database_of_its_own)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "forge_app.migrate: migration from 0001 to 0002 failed (DivisionByZeroError: division by zero); "
        "the database is at revision 0001; mend the migration, run again\n",
    )
    columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items' AND column_name = 'note'"
    assert database_of_its_own.query(columns) == 0


def test_a_slow_migration_takes_3_s_and_locks_no_table_meanwhile(variant, database_of_its_own):
    process = start(variant(migration=Migration.SLOW), database_of_its_own, "-m", "forge_app.migrate")
    try:
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)' AND state = 'active'"
        deadline = time.monotonic() + 15
        while not database_of_its_own.query(sleeping):
            assert time.monotonic() < deadline
        began = time.monotonic()
        held = "SELECT count(*) FROM pg_locks WHERE relation = 'items'::regclass"
        assert database_of_its_own.query(held) == 0
        out, err = process.communicate(timeout=15)
        assert 2.5 < time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()
    assert (out, err) == ("database migrated from 0001 to 0002\n", "")


def test_a_counted_migration_leaves_one_row_for_each_time_it_ran(variant, database_of_its_own):
    source = variant(migration=Migration.COUNTED)
    count = "SELECT count(*) FROM trial_migrations"
    both = [start(source, database_of_its_own, "-m", "forge_app.migrate") for _ in range(2)]
    try:
        said = {process.communicate(timeout=20) for process in both}
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert said == {
        ("database migrated from 0001 to 0002\n", ""),
        ("database is at revision 0002, nothing to do\n", ""),
    }
    assert database_of_its_own.query(count) == 1
    database_of_its_own.query("UPDATE alembic_version SET version_num = '0001'")
    assert migrate(source, database_of_its_own).returncode == 0
    assert database_of_its_own.query(count) == 2


def test_each_variant_is_another_release_and_the_same_one_is_the_same(tmp_path):
    def digest(into: str, **changes) -> str:
        return resolve_source(str(make(REFERENCE, tmp_path / into, **changes)), tmp_path).digest

    kinds: list[dict] = [{}, {"start_seconds": 2.0}]
    kinds += [{"fault": fault} for fault in Fault] + [{"migration": migration} for migration in Migration]
    digests = [digest(f"same-name-{number}", name="one", **kind) for number, kind in enumerate(kinds)]
    digests.append(digest("other-name", name="two"))
    assert len(set(digests)) == len(digests) == 15
    assert digest("again", name="one") == digests[0]


def test_it_holds_the_source_and_no_leftovers(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(REFERENCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    leftovers = [
        ".env", "build/lib/forge_app/main.py", "dist/forge_app.whl", "src/forge_app.egg-info/PKG-INFO",
        "src/forge_app/__pycache__/main.cpython-311.pyc", ".mypy_cache/x", ".venv/bin/python",
    ]  # fmt: skip
    for leftover in leftovers:
        (source / leftover).parent.mkdir(parents=True, exist_ok=True)
        (source / leftover).write_text("x")

    made = make(source, tmp_path, name="two", migration=Migration.EXPAND)

    assert made == tmp_path / "two"
    added = {"src/forge_app/trial.py", "src/forge_app/migrations/versions/v0002_expand.py"}
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == files | added
    assert {".env.example", "requirements.lock"} <= files
    version = tomllib.loads((made / "pyproject.toml").read_text())["project"]["version"]
    assert version == str(Version(version)) == "0.1.0+two"


@pytest.mark.parametrize("name", ["", "a b", "../one", "one\n", "one+two", "one..two", "-one", "é"])
def test_a_name_that_cannot_be_in_a_version_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be in a version; use letters and digits"):
        make(REFERENCE, tmp_path / "into", name=name)
    assert not (tmp_path / "into").exists()


def test_another_application_is_refused(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(REFERENCE, source)
    (source / "src/forge_app/models.py").write_text("")
    with pytest.raises(ValueError, match=r"models\.py has 0 lines like .*; make the variants fit"):
        make(source, tmp_path, name="one", migration=Migration.CONTRACT)


def test_late_crash_ends_the_process_30_s_after_its_start(crashing_late):
    assert 29 < crashing_late.seconds(limit=35) < 32
    assert crashing_late.serving.process.returncode == 1
