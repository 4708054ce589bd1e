"""Each kind of failure, by a server that really misbehaves: counted exactly once, named, and never tried again."""

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.witness.misbehaving import Server
from witness import Plan, PlanError, Result, Witness
from witness.client import Connection, FailedError, connect
from witness.pool import POOL, Pool


def watch(url: str, **settings: object) -> Result:
    """Run 20 requests in 0.2 s, or what the settings say."""
    plan = Plan((url,), **{"rate": 100, "seconds": 0.2, **settings})  # type: ignore[arg-type]
    with Witness(plan) as witness:
        while witness.running:
            time.sleep(0.02)
    return witness.result()


FAULTS = {
    "reset": "reset",
    "close": "reset",
    "short length": "truncated",
    "short reset": "truncated",
    "short chunked": "truncated",
    "503": "status 503",
    "404": "status 404",
    "302": "status 302",
    "not http": "wrong answer",
    "hang": "timeout",
}


@pytest.mark.parametrize("connections", ["keep-alive", "new"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_one_failure(server: Server, fault: str, connections: str) -> None:
    server.faults.append(fault)
    result = watch(server.url, connections=connections, timeout=0.6)
    assert result.document["failures"] == {FAULTS[fault]: 1}
    assert (result.document["requests"], server.requests) == (20, 20)
    assert list(result.details) == [FAULTS[fault]]


@pytest.mark.parametrize("connections", ["keep-alive", "new"])
@pytest.mark.parametrize("fault", ["reset", "close"])
def test_a_post_that_was_cut_off_is_not_sent_again(server: Server, fault: str, connections: str) -> None:
    server.faults.extend(["", "", "", fault])
    result = watch(server.url, get=None, post="/echo", echo=True, connections=connections)
    assert result.document["failures"] == {"reset": 1}
    assert (result.document["requests"], server.requests) == (20, 20)


def test_an_answer_with_another_id_is_wrong(server: Server) -> None:
    server.faults.append("wrong echo")
    result = watch(server.url, get=None, post="/echo", echo=True, body='{"name": "x"}')
    assert result.document["failures"] == {"wrong answer": 1}
    assert "got 7" in result.details["wrong answer"]


def test_an_answer_without_id_is_wrong(server: Server) -> None:
    result = watch(server.url, get=None, post="/health", echo=True)
    assert result.document["failures"] == {"wrong answer": 20}


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert watch(f"http://127.0.0.1:{port}").document["failures"] == {"refused": 20}
    assert watch(f"unix:{tmp_path}/none.sock").document["failures"] == {"refused": 20}


def test_a_full_backlog(tmp_path: Path) -> None:
    path = str(tmp_path / "full.sock")
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as first,
    ):
        with socket.create_connection(tcp.getsockname()):
            url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
            assert watch(url, timeout=0.3).document["failures"] == {"connect timeout": 20}
        unix.bind(path)
        unix.listen(0)
        first.connect(path)
        assert watch(f"unix:{path}").document["failures"] == {"refused": 20}


def test_too_many_in_flight(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("witness.load.MAXIMUM_IN_FLIGHT", 5)
    server.faults.extend(["hang"] * 5)
    result = watch(server.url, timeout=1)
    assert result.document["failures"] == {"not sent": 15, "timeout": 5}
    assert server.requests == 5


def test_the_witness_ran_out_of_files(server: Server) -> None:
    server.faults.extend(["hang"] * 60)
    command = f"ulimit -n 30; exec {sys.executable} -m witness --url {server.url} --seconds 0.5 --rate 120 --timeout 1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    assert "not sent" in run.stdout
    assert "Too many open files" in run.stderr


def test_tls_that_is_trusted(tls_server: Server, authority: Path) -> None:
    document = watch(tls_server.url, ca=str(authority)).document
    assert (document["requests"], document["failed"], tls_server.requests) == (20, 0, 20)


def test_tls_by_name(tls_server: Server, authority: Path) -> None:
    assert watch(tls_server.url, ca=str(authority), host="app.example").document["failed"] == 0
    assert "\r\nHost: app.example\r\n" in tls_server.heads[0] + "\r\n"
    result = watch(tls_server.url, ca=str(authority), host="other.example")
    assert result.document["failures"] == {"tls": 20}
    assert "other.example" in result.details["tls"]


def test_tls_of_an_unknown_authority(tls_server: Server) -> None:
    result = watch(tls_server.url)
    assert result.document["failures"] == {"tls": 20}
    assert "self-signed certificate" in result.details["tls"]
    assert tls_server.requests == 0


def test_tls_asked_of_a_plain_server(server: Server) -> None:
    assert watch(server.url.replace("http", "https")).document["failures"] == {"tls": 20}


@pytest.mark.parametrize("close_after", [0.01, 0.1])
def test_a_connection_closed_while_idle_is_no_failure(server: Server, close_after: float) -> None:
    server.idle_seconds = close_after
    document = watch(server.url, connections="keep-alive", rate=60, seconds=0.7).document
    assert document["failures"] == {}
    assert server.connections >= 2 * POOL
    assert server.requests == 42


def test_a_connection_closed_while_idle_over_tls(tls_server: Server, authority: Path) -> None:
    tls_server.idle_seconds = 0.01
    assert (
        watch(tls_server.url, ca=str(authority), connections="keep-alive", rate=20, seconds=1).document["failures"]
        == {}
    )
    assert tls_server.connections == 20


def test_an_end_that_only_the_kernel_knows(tmp_path: Path) -> None:
    """The event loop has not come to the FIN yet: it would be found out only by a failed request."""

    async def ask() -> list[bool]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address, port = listening.getsockname()
            target = Plan((f"http://{address}:{port}",)).targets()[0]
            connection: Connection = await connect(target, address, None, 1)
            peer, _ = listening.accept()
            before = connection.usable()
            peer.close()
            for _ in range(100):
                if not connection.usable():
                    break
                time.sleep(0.01)
            after = connection.usable()
            connection.abort()
            return [before, after]

    assert asyncio.run(ask()) == [True, False]


def test_keep_alive_connections_are_few_and_reused(server: Server) -> None:
    watch(server.url, connections="keep-alive")
    assert (server.connections, server.requests) == (POOL, 20)


def test_no_more_connections_are_kept_than_few(server: Server) -> None:
    async def open_and_give() -> int:
        (target,) = Plan((server.url,)).targets()
        pool = Pool(target)
        pool.address = "127.0.0.1"
        for connection in [await pool.open(1, counted=True) for _ in range(POOL + 3)]:
            pool.give(connection)
        opened = pool.opened
        pool.abort()
        return opened

    assert asyncio.run(open_and_give()) == POOL


def test_a_connection_that_did_not_open_is_not_counted() -> None:
    async def fail() -> int:
        (target,) = Plan((f"unix:/none-{time.time_ns()}",)).targets()
        pool = Pool(target)
        with pytest.raises(FailedError):
            await pool.open(1, counted=True)
        return pool.opened

    assert asyncio.run(fail()) == 0


def test_both_kinds_of_connection_take_turns(server: Server) -> None:
    result = watch(server.url, rate=80, seconds=0.5)
    kinds = [record.connection for record in sorted(result.records)]
    assert kinds == list(itertools.islice(itertools.cycle(["new", "keep-alive"]), 40))
    assert server.connections == 20 + POOL


def test_all_streams_on_all_targets(server: Server, tmp_path: Path) -> None:
    with Server(path=tmp_path / "app.sock") as other:
        plan = Plan(
            (server.url + "/", other.url), post="/echo", echo=True, slow="/slow", slow_post="/echo", stream="/stream",
            rate=20, slow_rate=5, seconds=1,
        )  # fmt: skip
        with Witness(plan) as witness:
            while witness.running:
                time.sleep(0.02)
        document = witness.result().document
    assert [(stream["name"], stream["requests"], stream["failed"]) for stream in document["streams"]] == [
        ("get fast", 20, 0),
        ("post fast", 20, 0),
        ("get slow", 10, 0),
        ("post slow", 10, 0),
        ("get stream", 10, 0),
    ]
    assert (server.requests, other.requests) == (35, 35)
    assert document["releases"] == {"r1": 70}
    slow = document["streams"][2]["p50_ms"]
    assert slow is not None
    assert 290 < slow < 1000


def test_a_name_with_several_addresses_is_asked_at_one_that_answers(server: Server) -> None:
    document = watch(server.url.replace("127.0.0.1", "localhost")).document
    assert (document["requests"], document["failed"], server.requests) == (20, 0, 20)


def test_what_cannot_begin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^the name no\.invalid has no address; correct --url or the name service$"):
        Witness(Plan(("http://no.invalid",))).__enter__()
    missing = tmp_path / "none.pem"
    with pytest.raises(
        PlanError, match=rf"^--ca {missing} is not readable as a file of certificates; name a PEM file$"
    ):
        Witness(Plan(("https://127.0.0.1",), ca=str(missing))).__enter__()


def test_no_result_before_the_end(server: Server) -> None:
    with Witness(Plan((server.url,))) as witness, pytest.raises(RuntimeError, match="leave its with block first"):
        witness.result()
    assert witness.result().document["failed"] == 0


def test_files_are_closed(server: Server) -> None:
    watch(server.url)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        watch(server.url)
    time.sleep(0.2)  # the server's side is in this process as well
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
