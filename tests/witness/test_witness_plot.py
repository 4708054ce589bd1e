"""The page: what is in it, where, and how large it may become."""

import itertools
import random
import re
from datetime import UTC, datetime

import pytest

from witness import Event, Record, Records
from witness.plot import Scales, labels, latency_ticks, page, time_ticks
from witness.report import Document, summarise


def seen(count: int, failures: int, events: list[Event], violations: list[str]) -> tuple[Document, Records]:
    """Return what a run of 60 s with so many good and failed requests would have seen."""
    records = Records()
    chance = random.Random(1)
    for index in range(count):
        ms = chance.lognormvariate(1.5, 0.6)
        records.add(Record(index * 60 / count, ms, "get fast", "https://a", "new", 200, None, "r1", "a", 1))
    for index in range(failures):
        records.add(Record(index * 60 / failures, 9, "post fast", "https://a", "new", None, "reset", None, None, None))
    document = summarise(
        records, events, ["get fast", "post fast"], violations,
        started=datetime(2025, 1, 1, tzinfo=UTC), seconds=60, steady=5, stall_factor=2, late=0,
    )  # fmt: skip
    return document, records


def test_events_failures_and_title_are_on_the_page() -> None:
    events = [Event(10, "commit app1"), Event(20, "commit <app2> & more")]
    text = page(*seen(600, 3, events, ["get fast at 1.000 s: wrong"]), title="603 requests, 3 failed")
    assert "<h1>603 requests, 3 failed</h1>" in text
    assert text.count('class="event"') == 2
    assert ">commit app1</text>" in text
    assert ">commit &lt;app2&gt; &amp; more</text>" in text
    assert "<title>reset: post fast at 20.00 s to https://a, 9 ms</title>" in text
    assert text.count('<path class="cross"') == 3
    assert text.count("h0") == 600
    assert "stall: above 250 ms" not in text  # beyond the axis
    assert "get fast at 1.000 s: wrong" in text


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = page(*seen(10, 1, [], []), title="x")
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import", text)


@pytest.mark.parametrize(("count", "failures"), [(5000, 1000), (30_000, 0), (20_000, 20_000)])
def test_it_stays_small(count: int, failures: int) -> None:
    text = page(*seen(count, failures, [Event(second, f"event {second}") for second in range(60)], []), title="x")
    assert len(text) < 1_000_000
    assert ("each bar" in text) == (count > 5000)


def test_an_empty_run_has_a_page() -> None:
    assert "<svg" in page(*seen(0, 0, [], []), title="0 requests, 0 failed")


def test_ticks_are_round() -> None:
    scales = Scales(60, 1, 10_000, 100)
    assert [tick.label for tick in latency_ticks(scales) if tick.label] == ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]
    assert [tick.label for tick in latency_ticks(Scales(60, 0.1, 10, 0))] == [
        "0.1 ms", "0.2 ms", "0.5 ms", "1 ms", "2 ms", "5 ms", "10 ms",
    ]  # fmt: skip
    assert [tick.label for tick in time_ticks(scales)] == [f"{second} s" for second in range(0, 61, 5)]
    assert scales.y(1) - scales.y(10) == pytest.approx(scales.y(10) - scales.y(100))
    assert (scales.y(10_000), scales.y(0)) == (100, 540)


@pytest.mark.parametrize("count", [3, 80, 300])
def test_labels_do_not_cover_each_other(count: int) -> None:
    scales = Scales(60, 1, 100, 100)
    made = labels([{"at": 58 + index / 300, "name": f"commit app{index}"} for index in range(count)], scales)
    places = [label.words_at for label in made if label.name]
    assert len(made) == count
    assert len(places) == min(count, 85)
    assert min(after - before for before, after in itertools.pairwise(places)) >= 12.9
    assert places[0] >= 64
    assert places[-1] <= 1178
