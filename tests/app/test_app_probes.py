import asyncio
import json
import os
import platform
import socket

import pytest
from forge_app.main import create_app
from forge_app.migrate import migrate

from tests.app.postgresql import PASSWORD, running_server
from tests.app.service import serve, settings_for


async def test_probes_of_a_healthy_service(client):
    health = await client.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "release": "development", "secrets": "none"})
    version = await client.get("/version")
    assert version.json() == {
        "release": "development",
        "version": "0.1.0",
        "environment": "development",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
    }


@pytest.fixture
def own_server():
    """A server that the test may break."""
    with running_server() as server:
        yield server


async def test_ready_follows_a_database_that_hangs_dies_and_returns(own_server, capsys):
    settings = settings_for(own_server, "postgres", database_timeout=0.5)
    await migrate(settings)
    async with serve(create_app(settings)) as client:
        assert (await client.get("/ready")).status_code == 200

        with own_server.frozen():
            async with asyncio.timeout(2):  # the deadline is 0.5 s
                response = await client.get("/ready")
            assert (response.status_code, response.json()) == (503, {"status": "unavailable"})
            assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200

        own_server.stop()
        response = await client.get("/ready")
        assert (response.status_code, response.json()) == (503, {"status": "unavailable"})
        assert (await client.get("/health")).status_code == 200
        response = await client.get("/items")
        assert (response.status_code, response.json()["detail"]) == (500, "internal error")

        own_server.start()
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/items")).status_code == 200

    output = capsys.readouterr().err
    reasons = [
        line["message"] for line in map(json.loads, output.splitlines()) if line["logger"] == "forge_app.api.probes"
    ]
    address = f"not ready: database at 127.0.0.1:{own_server.port}:"
    assert reasons == [f"{address} TimeoutError", f"{address} ConnectionRefusedError"]
    assert PASSWORD not in output


async def test_many_probes_at_once_wait_for_the_pool(settings):
    app = create_app(settings.model_copy(update={"pool_size": 1}))
    async with serve(app) as client:
        responses = await asyncio.gather(*(client.get("/ready") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
