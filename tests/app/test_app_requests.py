import json
import logging
import re

import httpx
import pytest
from fastapi.responses import StreamingResponse
from forge_app.logs import JsonFormatter
from forge_app.main import create_app
from forge_app.request_id import RequestIdMiddleware, current_request_id
from forge_app.settings import Settings

from tests.app.service import SECRET_KEY, serve


@pytest.fixture
async def client_without_database():
    """The application as it is before its lifespan: enough for requests that need no database."""
    settings = Settings(environment="development", database_url="postgresql://u:p@127.0.0.1:1/d", secret_key=SECRET_KEY)  # type: ignore[arg-type]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(settings)), base_url="http://forge"
    ) as client:
        yield client


@pytest.mark.parametrize("request_id", ["a", "A-z_0.9", "f" * 64])
async def test_a_sane_request_id_is_kept(client_without_database, request_id):
    response = await client_without_database.get("/health", headers={"X-Request-ID": request_id})
    assert response.headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "f" * 65, "a b", "a\tb", "ü".encode(), 'x","level":"', "a/b"])
async def test_any_other_request_id_is_replaced(client_without_database, request_id):
    response = await client_without_database.get("/health", headers={"X-Request-ID": request_id})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


async def test_every_request_gets_an_id_of_its_own(client_without_database):
    ids = {(await client_without_database.get("/nowhere")).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert current_request_id() is None


async def test_the_id_that_the_access_log_has_chosen_is_kept():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    messages = []

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "headers": [(b"x-request-id", b"b" * 64)], "state": {"request_id": "chosen"}}
    await RequestIdMiddleware(application)(scope, None, send)
    assert messages[0]["headers"] == [(b"x-request-id", b"chosen")]


async def test_an_internal_error_shows_the_client_only_the_request_id(settings, capsys):
    app = create_app(settings)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("detail of the inside")

    async with serve(app) as client:
        response = await client.get("/broken", headers={"X-Request-ID": "the-one"})
    assert response.status_code == 500
    assert response.json() == {"detail": "internal error", "request_id": "the-one"}
    assert response.headers["x-request-id"] == "the-one"

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["level"] == "ERROR"]
    assert line["message"] == "unhandled error in GET /broken"
    assert (line["request_id"], line["release"], line["logger"]) == (
        "the-one",
        "development",
        "forge_app.errors",
    )
    assert "RuntimeError: detail of the inside" in line["exception"]


async def test_an_error_of_the_database_logs_no_data(make_settings, empty_database, capsys):
    async with serve(create_app(make_settings(empty_database))) as client:
        response = await client.post("/items", json={"name": "private name"})
    assert (response.status_code, response.json()["detail"]) == (500, "internal error")
    output = capsys.readouterr().err
    assert "UndefinedTableError" in output
    assert "private name" not in output


async def test_debug_shows_the_traceback(settings):
    app = create_app(settings.model_copy(update={"debug": True}))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("detail of the inside")

    async with serve(app) as client:
        response = await client.get("/broken")
    assert response.status_code == 500
    assert "detail of the inside" in response.text


async def test_an_error_after_the_response_began_closes_the_connection(settings):
    app = create_app(settings)

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def parts():
            yield "first"
            raise RuntimeError("too late")

        return StreamingResponse(parts())

    received = []

    async def send(message):
        received.append(message["type"])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/half",
        "query_string": b"",
        "headers": [],
    }
    with pytest.raises(RuntimeError, match="too late"):
        await app(scope, receive, send)
    assert received.count("http.response.start") == 1


def test_a_log_line_is_one_json_object():
    record = logging.LogRecord("forge", logging.INFO, "", 0, "two\nlines %s", ("\ud800",), None)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    text.encode()
    line = json.loads(text)
    assert list(line) == ["time", "level", "logger", "message", "request_id", "release"]
    assert (line["level"], line["message"], line["request_id"]) == ("INFO", "two\nlines \ud800", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
