"""`exec`, for development: the same files as on a host, and nothing left when the program has ended."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bareforge_agent.develop import memory_directory
from bareforge_agent.errors import ConfigurationError

from tests.agent.conftest import FORGE_KEY, SET, Bao, Host, Postgres
from tests.agent.test_agent_run import url

# Shows what a program finds: its environment, its settings.
SHOW = """
import json, os, pathlib
directory = pathlib.Path(os.environ["BAREFORGE_SECRETS"])
found = {file.name: json.loads(file.read_text()) for file in directory.iterdir()}
modes = sorted({oct(path.stat().st_mode & 0o777) for path in (directory.parent, directory)})
print(json.dumps({"files": found, "environment": sorted(os.environ), "directory": str(directory), "modes": modes}))
"""


@pytest.fixture
def token(bao: Bao) -> str:
    """A token as a developer has it, who may read what the application may."""
    answer = bao.root.auth.token.create(policies=["forge"], ttl="1h", display_name="developer")
    return str(answer["auth"]["client_token"])


def execute(host: Host, *command: str, options: tuple[str, ...] = (), **environment: str) -> Any:
    return host.agent("exec", *options, "--", *command, **environment)


def shown(host: Host, **environment: str) -> dict[str, Any]:
    done = execute(host, sys.executable, "-c", SHOW, **environment)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_program_finds_what_it_finds_on_a_host_and_not_the_login(host: Host, token: str, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    found = shown(host, VAULT_TOKEN=token)
    assert found["files"]["kv.json"] == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert found["files"]["db.json"]["FORGE_DATABASE_URL"].startswith("postgresql://v-")
    assert not {"VAULT_TOKEN", "CREDENTIALS_DIRECTORY"} & set(found["environment"])
    assert "PATH" in found["environment"]
    assert found["modes"] == ["0o700", "0o750"]
    assert found["directory"].startswith("/dev/shm/bareforge-")
    assert not Path(found["directory"]).parent.exists()


def test_what_was_made_is_removed_and_the_developer_stays_logged_in(
    host: Host, bao: Bao, token: str, database: Postgres
) -> None:
    host.configure(url("forge", database.port))
    address = shown(host, VAULT_TOKEN=token)["files"]["db.json"]["FORGE_DATABASE_URL"]
    user = address.partition("//")[2].partition(":")[0]
    users = "SELECT count(*) FROM pg_roles WHERE rolname = '{}'"
    deadline = time.monotonic() + 10
    while database.run(users.format(user)) != "0":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert bao.root.auth.token.lookup(token)["data"]["display_name"] == "token-developer"


def test_an_approle_credential_does_too_and_its_token_ends(host: Host, bao: Bao, database: Postgres) -> None:
    host.put_credential(bao.role("developer", token_policies=["forge"]))
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    accessors = set(bao.root.list("auth/token/accessors")["data"]["keys"])
    assert shown(host, VAULT_TOKEN="")["files"]["kv.json"] == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert set(bao.root.list("auth/token/accessors")["data"]["keys"]) <= accessors


def test_the_exit_code_is_that_of_the_program(host: Host, token: str) -> None:
    assert execute(host, "sh", "-c", "exit 7", VAULT_TOKEN=token).returncode == 7
    assert execute(host, "sh", "-c", "kill -9 $$", VAULT_TOKEN=token).returncode == 137


@contextlib.contextmanager
def running(host: Host, token: str, program: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bareforge_agent", "exec", "--config", str(host.config_file), "--"]
    process = subprocess.Popen(
        [*command, sys.executable, "-c", program],
        env=host.environment(VAULT_TOKEN=token, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


WAIT = """
import json, os, time
while True:
    print(json.load(open(os.environ["BAREFORGE_SECRETS"] + "/kv.json"))["FORGE_SECRET_KEY"])
    time.sleep(0.1)
"""


def test_settings_are_kept_current_and_a_signal_is_passed_on(host: Host, bao: Bao, token: str) -> None:
    with running(host, token, WAIT) as process:
        assert process.stdout
        assert process.stdout.readline() == "k-e-y-1\n"
        bao.put("forge", secret_key="k-e-y-2")
        deadline = time.monotonic() + 10
        while process.stdout.readline() != "k-e-y-2\n":
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_it_waits_for_a_vault_that_is_sealed_and_says_so(host: Host, bao: Bao, token: str) -> None:
    bao.seal()
    with running(host, token, "print('began')") as process:
        assert process.stderr
        assert process.stderr.readline() == (
            f"bareforge-agent: Vault at {bao.address} is sealed; unseal it, the agent goes on by itself\n"
        )
        bao.unseal()
        assert process.stdout
        assert process.stdout.readline() == "began\n"
        assert process.wait(10) == 0


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_refusals(host: Host, bao: Bao, token: str, tmp_path: Path) -> None:
    environment = {"VAULT_TOKEN": token}
    missing = tmp_path / "missing"
    for code, message, options, changes in (
        (3, "VAULT_TOKEN is not set; log in to Vault, then: export VAULT_TOKEN=$(vault print token)", (),
         {"VAULT_TOKEN": "", "CREDENTIALS_DIRECTORY": ""}),
        (3, f"VAULT_TOKEN_FILE names {missing}, which cannot be read: no such file or directory; correct it", (),
         {"VAULT_TOKEN": "", "VAULT_TOKEN_FILE": str(missing)}),
        (3, f"Vault at {bao.address} does not accept VAULT_TOKEN; log in again, then: "
            "export VAULT_TOKEN=$(vault print token)", (), {"VAULT_TOKEN": "s.wrong"}),
        (2, f"--set other must be one of the sets: {SET}; name one of them", ("--set", "other"), {}),
        (2, "/proc is not in memory (tmpfs); set XDG_RUNTIME_DIR to a directory that is", (),
         {"XDG_RUNTIME_DIR": "/proc"}),
    ):  # fmt: skip
        done = execute(host, "echo", "never", options=options, **{**environment, **changes})
        assert (done.returncode, last_line(done), done.stdout) == (code, f"bareforge-agent: {message}", "")


def test_a_program_that_is_not_there(host: Host, token: str) -> None:
    done = execute(host, "/no/such/program", VAULT_TOKEN=token)
    assert (done.returncode, last_line(done)) == (
        2,
        "bareforge-agent: cannot run /no/such/program: no such file or directory; correct the command after --",
    )


def test_one_of_several_sets_has_to_be_named(host: Host, token: str) -> None:
    host.configure(sets={"one": FORGE_KEY, "two": FORGE_KEY})
    done = execute(host, "true", VAULT_TOKEN=token)
    assert last_line(done) == (
        "bareforge-agent: --set is missing, it must be one of the sets: one, two; name one of them"
    )
    done = execute(host, "sh", "-c", "basename $BAREFORGE_SECRETS", options=("--set", "two"), VAULT_TOKEN=token)
    assert done.stdout == "two\n"


@pytest.mark.parametrize(
    ("mounts", "good"),
    [
        ("disk / ext4 rw 0 0\ntmpfs /memory tmpfs rw 0 0\n", True),
        ("disk / ext4 rw 0 0\ntmpfs /memory tmpfs rw 0 0\ndisk {directory} ext4 rw 0 0\n", False),
        ("disk / ext4 rw 0 0\n", False),
        ("", False),
    ],
)
def test_where_memory_is(tmp_path: Path, mounts: str, good: bool) -> None:
    file = tmp_path / "mounts"
    file.write_text(mounts.replace("/memory", str(tmp_path)).format(directory=tmp_path / "inner"))
    directory = tmp_path / "inner"
    directory.mkdir()
    environment = {"XDG_RUNTIME_DIR": str(directory)}
    if good:
        assert memory_directory(environment, file) == directory
    else:
        with pytest.raises(ConfigurationError):
            memory_directory(environment, file)
