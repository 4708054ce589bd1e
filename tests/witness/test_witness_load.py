"""The open loop: what a stalled server looks like, and that the schedule does not wait for it."""

import itertools
import time

import pytest

from tests.witness.misbehaving import Server
from witness import Plan, Record, Result, Witness

STALL = 1.0


@pytest.fixture
def stalled(server: Server) -> tuple[Result, Server]:
    """Return what is seen of a server that serves nobody for a second, 1 s after the start; 50 requests a second."""
    with Witness(Plan((server.url,), rate=50, seconds=2.4, steady=0.5)) as witness:
        time.sleep(1)
        witness.mark("stall begins")
        server.faults.append("stall")
        while witness.running:
            time.sleep(0.02)
    return witness.result(), server


def test_a_stall_is_seen_as_every_client_would(stalled: tuple[Result, Server]) -> None:
    result, server = stalled
    document = result.document
    assert (document["requests"], document["failed"], server.requests) == (120, 0, 120)
    assert document["stall_ms"] == 250
    # who is due in the first 0.75 s of it waits more than 250 ms; a client that waited its turn would see one
    assert 30 <= document["stalls"] <= 50
    assert STALL * 900 < document["longest_ms"] < STALL * 1000 + 700

    def waiting(record: Record) -> bool:
        return 1 < record.at < 1 + STALL and record.ms > 100

    records = sorted(record for record in result.records if waiting(record))
    # latency counts from when a request was due: each one later waits 20 ms less
    ends = [record.at + record.ms / 1000 for record in records]
    assert len(records) > 35
    assert max(ends) - min(ends) < 0.5
    steps = [after.at - before.at for before, after in itertools.pairwise(records)]
    assert max(steps) < 0.06


def test_slow_answers_delay_no_others(server: Server) -> None:
    with Witness(Plan((server.url,), get="/slow", rate=40, seconds=1)) as witness:
        while witness.running:
            time.sleep(0.02)
    result = witness.result()
    assert (result.document["requests"], result.document["failed"]) == (40, 0)
    assert all(295 <= record.ms < 600 for record in result.records)


def test_marks_are_events(server: Server) -> None:
    with Witness(Plan((server.url,))) as witness:
        time.sleep(0.2)
        witness.mark("commit app1")
    events = witness.result().document["events"]
    assert [event["name"] for event in events] == ["commit app1"]
    assert 0.2 <= events[0]["at"] < 0.5


def test_the_end_of_the_block_waits_for_answers(server: Server) -> None:
    with Witness(Plan((server.url,), get="/slow", rate=20)) as witness:
        time.sleep(0.2)
    document = witness.result().document
    assert document["failed"] == 0
    assert document["requests"] == server.requests
    assert document["seconds"] < 0.5


def test_an_error_in_the_block_is_not_hidden(server: Server) -> None:
    with pytest.raises(KeyError), Witness(Plan((server.url,))) as witness:
        raise KeyError
    assert not witness.running


def test_releases_are_read_and_checked(server: Server) -> None:
    plan = Plan((server.url,), rate=40, seconds=1.2, expect=("r1", "r2"))
    with Witness(plan) as witness:
        time.sleep(0.4)
        server.release = "r2; host=app1; pid=42"
        time.sleep(0.1)
        witness.mark("commit app1")
        time.sleep(0.4)
        server.release = "r1; host=app1; pid=43"
        while witness.running:
            time.sleep(0.02)
    result = witness.result()
    assert list(result.document["releases"]) == ["r1", "r2"]
    assert {(record.host, record.pid) for record in result.records} == {("app1", 41), ("app1", 42), ("app1", 43)}
    violations = result.document["check"]["violations"]
    assert 5 <= len(violations) <= 15
    assert all("answered by r1 although app1 had committed r2 at 0.5" in violation for violation in violations)
