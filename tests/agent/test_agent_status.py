"""What everybody on the host may know of the agent: files for probes and collectors, without a secret."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from bareforge_agent.status import Status

from tests.agent.conftest import FORGE_KEY, Bao, Host, Postgres
from tests.agent.test_agent_run import READY, url


@pytest.fixture
def public(host: Host) -> Path:
    directory = host.directory / "status"
    directory.mkdir(mode=0o750)
    return directory


def start(host: Host, public: Path) -> Any:
    process = host.start(RUNTIME_DIRECTORY=f"{host.runtime}:{public}")
    host.wait_for_status(READY)
    return process


def status(public: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((public / "status.json").read_text())
    return document


def metrics(public: Path) -> dict[str, float]:
    lines = [line for line in (public / "metrics.prom").read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def wait_for(public: Path, **expected: Any) -> None:
    deadline = time.monotonic() + 10
    while {name: status(public)[name] for name in expected} != expected:
        assert time.monotonic() < deadline, status(public)
        time.sleep(0.05)


def test_everybody_can_read_it_and_nothing_in_it_is_secret(host: Host, public: Path, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    start(host, public)
    wait_for(public, well=True)
    modes = {str(file.relative_to(public)): oct(file.stat().st_mode & 0o777) for file in public.iterdir()}
    assert modes == {"status.json": "0o444", "metrics.prom": "0o444"}
    assert oct(public.stat().st_mode & 0o777) == "0o755"
    lease_id = json.loads((host.runtime / "state.json").read_text())["databases"]["database/creds/forge"]["lease_id"]
    hidden = [*host.settings().values(), *host.settings("db").values(), (host.runtime / "token").read_text(), lease_id]
    shown = "".join(file.read_text() for file in public.iterdir())
    assert len(hidden) == 4
    assert not any(value in shown for value in hidden)


def test_it_follows_vault(host: Host, public: Path, bao: Bao, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    start(host, public)
    wait_for(public, well=True, text="ok, 2 settings", settings=2, logins=1)
    now, measured = time.time(), metrics(public)
    assert measured["bareforge_agent_well"] == 1
    assert measured["bareforge_agent_settings"] == 2
    assert measured["bareforge_agent_logins_total"] == 1
    # a period of an hour, a lease of a minute
    assert now + 3500 < measured["bareforge_agent_token_end_timestamp_seconds"] < now + 3602
    assert now + 40 < measured['bareforge_agent_lease_end_timestamp_seconds{path="database/creds/forge"}'] < now + 62
    bao.seal()
    wait_for(public, well=False, text=f"Vault at {bao.address} is sealed; unseal it, the agent goes on by itself")
    assert metrics(public)["bareforge_agent_well"] == 0
    bao.unseal()
    wait_for(public, well=True, logins=1)
    bao.root.auth.token.revoke_accessor(host.accessor())
    wait_for(public, well=True, logins=2)


def test_an_end_that_moves_is_told(host: Host, public: Path, database: Postgres) -> None:
    """Leases of 3 s: they are renewed, then replaced, all the time."""
    host.configure({**FORGE_KEY, **url("short", database.port)})
    start(host, public)
    wait_for(public, well=True)
    first = status(public)["lease_ends"]["database/creds/short"]
    deadline = time.monotonic() + 10
    while status(public)["lease_ends"]["database/creds/short"] <= first + 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_directory_that_is_gone_does_not_keep_secrets_from_being_kept(host: Host, public: Path, bao: Bao) -> None:
    process = start(host, public)
    wait_for(public, well=True)
    for file in public.iterdir():
        file.unlink()
    public.rmdir()
    bao.put("forge", secret_key="k-e-y-2")
    host.wait_for_setting("FORGE_SECRET_KEY", "k-e-y-2")
    assert process.poll() is None


def test_without_a_second_directory_nothing_is_told(host: Host) -> None:
    host.start()
    host.wait_for_status(READY)
    assert not list(host.runtime.rglob("status.json"))


def test_the_text_of_the_metrics() -> None:
    assert Status(False, "sealed", 2, 3, 0, {'a"b': 1.6, "a": 2}).metrics().splitlines() == [
        "# HELP bareforge_agent_well Whether every setting is current (1) or something is the matter (0).",
        "# TYPE bareforge_agent_well gauge",
        "bareforge_agent_well 0",
        "# HELP bareforge_agent_settings Settings that are declared.",
        "# TYPE bareforge_agent_settings gauge",
        "bareforge_agent_settings 2",
        "# HELP bareforge_agent_logins_total Logins to Vault since the agent was started.",
        "# TYPE bareforge_agent_logins_total counter",
        "bareforge_agent_logins_total 3",
        "# HELP bareforge_agent_token_end_timestamp_seconds When the token ends unless it is renewed.",
        "# TYPE bareforge_agent_token_end_timestamp_seconds gauge",
        "# HELP bareforge_agent_lease_end_timestamp_seconds When a lease ends unless it is renewed, by path.",
        "# TYPE bareforge_agent_lease_end_timestamp_seconds gauge",
        'bareforge_agent_lease_end_timestamp_seconds{path="a"} 2',
        'bareforge_agent_lease_end_timestamp_seconds{path="a\\"b"} 2',
    ]
