"""The release header, under the real gunicorn."""

import contextlib
import socket
from pathlib import Path

import pytest

from tests.runtime.conftest import APPLICATION, Gunicorn, Server

STREAMED = APPLICATION.replace(
    """    if path == "/boom":""",
    """    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-other", b"1")]})
        for part in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
        return
    if path == "/boom":""",
)


def answer(server: Server, path: str) -> tuple[int, list[str], bytes]:
    """Return status, all X-Release headers and body."""
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers.get_all("X-Release") or [], response.read()


@pytest.mark.parametrize("configuration", ["", "accesslog = None\n"])
def test_every_response_names_the_release(gunicorn: Gunicorn, configuration: str) -> None:
    server = gunicorn.start(source=STREAMED, configuration=configuration, BAREFORGE_RELEASE_HEADER="X-Release")
    server.wait_until_serving()
    value = f"development; host={socket.gethostname()}; pid={server.pids()[1]}"
    assert answer(server, "/") == (200, [value], b"/")
    assert answer(server, "/stream") == (200, [value], b"one two")
    # uvicorn answers these itself
    assert answer(server, "/boom")[:2] == (500, [value])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket))
        connection.sendall(b"nonsense\r\n\r\n")
        refused = connection.recv(65536).decode()
    assert refused.startswith("HTTP/1.1 400")
    assert f"x-release: {value}\r\n" in refused


def test_no_header_unless_asked_for(gunicorn: Gunicorn) -> None:
    server = gunicorn.start()
    server.wait_until_serving()
    assert answer(server, "/") == (200, [], b"/")


@pytest.mark.parametrize("name", ["X Release", "X-Release:", "X-Größe", "X\n"])
def test_a_wrong_name_stops_the_start(gunicorn: Gunicorn, tmp_path: Path, name: str) -> None:
    server = gunicorn.start(BAREFORGE_RELEASE_HEADER=name)
    assert server.process.wait(15) == 3
    (line,) = [line for line in server.error_log.read_text().splitlines() if "bareforge-runtime:" in line]
    assert line.partition("bareforge-runtime: ")[2] == (
        f"BAREFORGE_RELEASE_HEADER is {name!r}; set it to the name of a header, such as X-Release"
    )
