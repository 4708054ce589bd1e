"""What a user sees through the load balancer."""

import json
import subprocess
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.lab import STATE, URL, ask


def versions(count: int) -> list[dict[str, str]]:
    return [json.loads(ask("/version")) for _ in range(count)]


def test_both_hosts_answer_in_turn_with_one_release() -> None:
    answers = versions(8)
    assert {answer["host"] for answer in answers} == {"app1", "app2"}
    assert {answer["release"] for answer in answers} == {answers[0]["release"]}
    assert {answer["environment"] for answer in answers} == {"production"}


def test_each_host_runs_the_python_of_its_debian() -> None:
    pythons = {answer["host"]: answer["python"].rsplit(".", 1)[0] for answer in versions(8)}
    assert pythons == {"app1": "3.11", "app2": "3.13"}


def test_items_are_kept_in_the_database_that_both_hosts_share() -> None:
    created = json.loads(ask("/items", "POST", b'{"name": "anvil"}'))
    assert [json.loads(ask(f"/items/{created['id']}"))["name"] for _ in range(4)] == ["anvil"] * 4
    ask(f"/items/{created['id']}", "DELETE")
    with pytest.raises(HTTPError, match="404"):
        ask(f"/items/{created['id']}")


def test_the_probes_answer() -> None:
    assert json.loads(ask("/health")) == {"status": "ok"}
    assert json.loads(ask("/ready"))["status"] == "ready"


def test_docs_show_in_a_browser(tmp_path: Path) -> None:
    """The page draws itself with scripts, so only a browser can tell whether it works."""
    picture, profile = STATE / "docs.png", tmp_path / "profile"
    home = tmp_path / "home"
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    # Chromium trusts what stands in the user's own certificate database
    certutil = ["certutil", "-d", f"sql:{database}"]
    subprocess.run([*certutil, "-N", "--empty-password"], check=True)
    subprocess.run([*certutil, "-A", "-n", "lab", "-t", "C,,", "-i", str(STATE / "ca.pem")], check=True)
    chromium = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
        "--window-size=1200,1000", "--virtual-time-budget=10000", "--timeout=30000",
    ]  # fmt: skip
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [*chromium, "--dump-dom", f"{URL}/docs"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for shown in ("opblock-summary-path", 'data-path="/items"', 'data-path="/ready"', ">forge"):
        assert shown in run.stdout, shown
    subprocess.run(
        [*chromium, f"--screenshot={picture}", f"{URL}/docs"],
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    # an empty page of this size compresses to about 5 kB
    assert picture.stat().st_size > 20_000
