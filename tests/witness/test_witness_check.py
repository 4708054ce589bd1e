"""The history checker, by tables."""

import pytest

from witness import Event, Record, check
from witness.check import turns


def answer(at: float, release: str | None, host: str | None = "app1", status: int | None = 200) -> Record:
    return Record(at, 3, "get fast", "https://a", "new", status, None, release, host, 7)


COMMIT = {"app1": 5.0}
PREFIX = "get fast at {:.3f} s to https://a: "
ALLOWED = {
    "old before": ([answer(4.9, "r1")], COMMIT, {}),
    "new before": ([answer(1, "r2"), answer(6, "r2")], COMMIT, {}),
    "due at the very moment": ([answer(5.0, "r1")], COMMIT, {}),
    "another host": ([answer(9, "r1", "app2"), answer(9, "r2")], COMMIT, {}),
    "nobody committed": ([answer(9, "r1"), answer(9, "r2")], {}, {}),
    "went back": ([answer(6, "r2"), answer(8, "r1"), answer(8, "r2")], COMMIT, {"app1": 7.0}),
    "no answer": ([answer(9, None, None, None), answer(9, "r2")], COMMIT, {}),
}
FORBIDDEN = {
    "old after": ([answer(5.1, "r1")], {}, 5.1, "answered by r1 although app1 had committed r2 at 5.000 s"),
    "old between": (
        [answer(6, "r1"), answer(8, "r1")],
        {"app1": 7.0},
        6,
        "answered by r1 although app1 had committed r2 at 5.000 s",
    ),
    "went back earlier": (
        [answer(6, "r1")],
        {"app1": 2.0},
        6,
        "answered by r1 although app1 had committed r2 at 5.000 s",
    ),
    "third release": ([answer(1, "r3")], {}, 1, "answered by r3, expected r1 or r2"),
    "both releases": ([answer(1, "r1 + r2")], {}, 1, "answered by r1 + r2, expected r1 or r2"),
    "no release": ([answer(1, None)], {}, 1, "answered by no release, expected r1 or r2"),
    "a failure": ([answer(1, "r1", status=503)], {}, 1, "answered with status 503"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: str) -> None:
    records, commits, reverts = ALLOWED[case]
    assert check(records, "r1", "r2", commits, reverts) == []


@pytest.mark.parametrize("case", FORBIDDEN)
def test_forbidden(case: str) -> None:
    records, reverts, at, reason = FORBIDDEN[case]
    assert check(records, "r1", "r2", COMMIT, reverts) == [PREFIX.format(at) + reason]


def test_a_commit_of_a_host_that_never_answered_proves_nothing() -> None:
    found = check([answer(6, "r2"), answer(6, "r2", "app2")], "r1", "r2", {**COMMIT, "vm9": 3})
    assert found == ["vm9 committed but answered no request; answers came from app1, app2"]
    assert check([answer(6, "r2", None)], "r1", "r2", {"vm9": 3}) == [
        "vm9 committed but answered no request; answers came from no host"
    ]


def test_no_answer_at_all_proves_nothing() -> None:
    assert check([], "r1", "r2", {}) == ["no request was answered, nothing could be checked"]


def test_twenty_sentences_at_most() -> None:
    found = check([answer(second, "r3") for second in range(20)], "r1", "r2", {})
    assert len(found) == 20
    assert "r3" in found[-1]
    found = check([answer(second, "r3") for second in range(23)], "r1", "r2", {})
    assert (len(found), found[-1]) == (21, "and 3 more")


def test_turns_of_events() -> None:
    events = [Event(1, "commit app1"), Event(2, "commit app2"), Event(3, "revert app1"), Event(4, "commit app1")]
    assert turns([*events, Event(5, "commit"), Event(6, "deploy ends")]) == ({"app1": 4, "app2": 2}, {"app1": 3})
