"""The service as a process of its own, under the server that development uses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.app.postgresql import PASSWORD
from tests.app.service import SECRET_KEY

ROOT = Path(__file__).parents[2]


def start(url: str, port: int, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}/app/src:{ROOT}/runtime/src",
        "FORGE_ENVIRONMENT": "development",
        "FORGE_SECRET_KEY": SECRET_KEY,
        "FORGE_DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "forge_app.main:create_app", "--port", str(port)]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("arguments", "access_ids"), [([], ["from-a-proxy"]), (["--no-access-log"], [])])
def test_uvicorn_alone_serves_it_and_logs_only_json(settings, arguments, access_ids):
    port = free_port()
    process = start(str(settings.database_url), port, *arguments)
    try:
        for _ in range(200):
            try:
                response = httpx.get(f"http://127.0.0.1:{port}/ready", headers={"X-Request-ID": "from-a-proxy"})
                break
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
        assert response.json() == {"status": "ready", "release": "development", "secrets": "none"}
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert out == ""
    # before uvicorn has loaded the application, it logs in its own way
    lines = [json.loads(line) for line in err.splitlines() if not line.startswith("INFO:     Started server")]
    access = [line for line in lines if line["logger"] == "uvicorn.access"]
    assert [line["request_id"] for line in access] == access_ids
    assert "Application startup complete." in [line["message"] for line in lines]
    assert "Application shutdown complete." in [line["message"] for line in lines]


def test_a_refused_start_ends_the_process_with_the_cause_and_no_password(server):
    process = start(server.url("nowhere"), free_port())
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert f"cannot reach the database at 127.0.0.1:{server.port} (InvalidCatalogNameError)" in err
    for spelling in (PASSWORD, server.url("").split(":")[2].split("@")[0]):
        assert spelling not in out + err
