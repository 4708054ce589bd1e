"""The page: latency over time as inline SVG on a logarithmic axis, failures in red, events as labelled lines. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from witness.records import Record, Records
from witness.report import Document, EventDocument

# the drawing area, in pixels of the SVG
WIDTH, LEFT, RIGHT, HEIGHT, BOTTOM = 1200, 64, 22, 440, 44
# above as many, points are drawn as the range of each column of this many pixels: the page stays below 2 MB
MAXIMUM_POINTS = 5000
MAXIMUM_CROSSES = 1000
COLUMN = 2
LABEL_STEP = 13
LABEL_LENGTH = 30
CHARACTER = 7.2
# readable next to each other with any kind of colour vision (Okabe and Ito), red left to failures
COLOURS = {
    "get fast": "#0072b2",
    "post fast": "#e69f00",
    "get slow": "#009e73",
    "post slow": "#cc79a7",
    "get stream": "#56b4e9",
}


@dataclass(frozen=True)
class Tick:
    """A grid line: pixel and label; without a label a thin one."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: an SVG path."""

    name: str
    colour: str
    path: str


@dataclass(frozen=True)
class Cross:
    """One failure: an SVG path and its words."""

    path: str
    title: str


@dataclass(frozen=True)
class Label:
    """An event: pixel of its line, pixel of its words, which make room for each other."""

    at: float
    words_at: float
    name: str


@dataclass(frozen=True)
class Scales:
    """From seconds and milliseconds to pixels; `top` is that of the drawing area."""

    seconds: float
    low: float
    high: float
    top: float

    def x(self, seconds: float) -> float:
        """Return the pixel of a time; one after the end is drawn at the edge."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, seconds) / self.seconds)

    def y(self, milliseconds: float) -> float:
        """Return the pixel of a latency; one below the axis is drawn on it."""
        share = math.log10(max(milliseconds, self.low) / self.low) / math.log10(self.high / self.low)
        return self.top + HEIGHT * (1 - share)


def page(document: Document, records: Records, title: str) -> str:
    """Return the whole page, which loads nothing from elsewhere."""
    events = document["events"]
    longest = max((min(len(event["name"]), LABEL_LENGTH) for event in events), default=0)
    top = 16 + longest * CHARACTER + (12 if events else 0)
    scales = scales_of(records, document["seconds"], top)
    good = [record for record in records if not record.failure]
    failed = [record for record in records if record.failure]
    names = [stream["name"] for stream in document["streams"]]
    draw = points if len(good) <= MAXIMUM_POINTS else ranges
    crosses = len(failed) <= MAXIMUM_CROSSES
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("plot.html.j2").render(
        title=title,
        document=document,
        box={"left": LEFT, "right": WIDTH - RIGHT, "top": top, "bottom": top + HEIGHT},
        size={"width": WIDTH, "height": top + HEIGHT + BOTTOM},
        rows=latency_ticks(scales),
        columns=time_ticks(scales),
        stall=scales.y(document["stall_ms"]),
        stall_shown=scales.low < document["stall_ms"] < scales.high,
        series=[
            Series(name, COLOURS[name], draw([record for record in good if record.stream == name], scales))
            for name in names
        ],
        crosses=[_cross(record, scales) for record in failed] if crosses else [],
        failures="" if crosses else ranges(failed, scales),
        drawn="one dot per answer" if draw is points else "each bar: the range of answers at that time",
        labels=labels(events, scales),
    )


def scales_of(records: Iterable[Record], seconds: float, top: float) -> Scales:
    """Return scales that hold all records: whole decades of latency, at least one."""
    times = [record.ms for record in records if record.ms > 0] or [1.0]
    low = 10.0 ** max(-1, math.floor(math.log10(min(times))))
    high = 10.0 ** math.ceil(math.log10(max(times)))
    return Scales(max(seconds, 0.001), low, max(high, low * 10), top)


def latency_ticks(scales: Scales) -> list[Tick]:
    """Return 1, 2 and 5 of each decade; 2 and 5 without label when there are many."""
    decades = round(math.log10(scales.high / scales.low))
    ticks = []
    for decade in range(decades + 1):
        for factor in (1, 2, 5):
            value = scales.low * 10**decade * factor
            if value <= scales.high * 1.001:
                ticks.append(Tick(scales.y(value), latency(value) if factor == 1 or decades <= 3 else ""))
    return ticks


def latency(milliseconds: float) -> str:
    """Return milliseconds as words: 0.5 ms, 20 ms, 1 s."""
    return f"{milliseconds:g} ms" if milliseconds < 999 else f"{milliseconds / 1000:g} s"


def time_ticks(scales: Scales) -> list[Tick]:
    """Return at most 13 ticks at round seconds."""
    rough = scales.seconds / 12
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough)
    return [
        Tick(scales.x(count * step), f"{count * step:g} s") for count in range(math.floor(scales.seconds / step) + 1)
    ]


def points(records: Iterable[Record], scales: Scales) -> str:
    """Return a path with one dot per record."""
    return "".join(f"M{scales.x(record.at):.1f},{scales.y(record.ms):.1f}h0" for record in records)


def ranges(records: Iterable[Record], scales: Scales) -> str:
    """Return a path with one bar per column of pixels, from its quickest to its slowest record."""
    columns: dict[int, tuple[float, float]] = {}
    for record in records:
        column = int(scales.x(record.at) // COLUMN)
        low, high = columns.get(column, (record.ms, record.ms))
        columns[column] = (min(low, record.ms), max(high, record.ms))
    return "".join(
        f"M{column * COLUMN},{scales.y(low):.1f}V{scales.y(high):.1f}"
        for column, (low, high) in sorted(columns.items())
    )


def labels(events: Sequence[EventDocument], scales: Scales) -> list[Label]:
    """Return the events with words that do not cover each other; those for which no room is left go without."""
    right = WIDTH - RIGHT
    room = int((right - LEFT) // LABEL_STEP)
    named = min(room, len(events))
    lines = [scales.x(event["at"]) for event in events]
    words: list[float] = []
    for line in lines[:named]:
        words.append(max(line, words[-1] + LABEL_STEP) if words else max(line, LEFT + LABEL_STEP))
    words = [min(place, right - LABEL_STEP * (named - 1 - index)) for index, place in enumerate(words)]
    return [
        Label(line, words[index] if index < named else line, _short(event["name"]) if index < named else "")
        for index, (line, event) in enumerate(zip(lines, events, strict=True))
    ]


def _short(name: str) -> str:
    return name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…"


def _cross(record: Record, scales: Scales) -> Cross:
    x, y = scales.x(record.at), scales.y(record.ms)
    words = f"{record.failure}: {record.stream} at {record.at:.2f} s to {record.target}, {record.ms:.0f} ms"
    return Cross(f"M{x - 3:.1f},{y - 3:.1f}l6,6m-6,0l6,-6", words)
