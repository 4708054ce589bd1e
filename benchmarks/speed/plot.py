"""The page: wall over number of hosts as inline SVG, one drawing for each work. Pure; loads nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from benchmarks.speed.figures import TOOLS, WORKS, Line

# the drawing area, in pixels of the SVG
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 260, 48, 30
# readable next to each other with any kind of colour vision (Okabe and Ito)
COLOURS = dict(zip(TOOLS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))


@dataclass(frozen=True)
class Curve:
    """One tool: points of an SVG polyline, and each with its words."""

    tool: str
    colour: str
    points: list[tuple[float, float, str]]

    @property
    def path(self) -> str:
        """The points as SVG wants them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Drawing:
    """One work: its curves, and grid lines as pixel and label."""

    work: str
    curves: list[Curve]
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]


def page(found: Sequence[Line], title: str) -> str:
    """Return the whole page."""
    drawings = [_draw(work, lines) for work in WORKS if (lines := [line for line in found if line.work == work])]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("plot.html.j2").render(
        title=title,
        drawings=drawings,
        colours=COLOURS,
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": BOTTOM},
    )


def _draw(work: str, lines: Sequence[Line]) -> Drawing:
    sizes = sorted({line.hosts for line in lines})
    low = 10 ** math.floor(math.log10(min(line.wall for line in lines)))
    high = 10 ** math.ceil(math.log10(max(line.wall for line in lines) * 1.001))

    def x(hosts: int) -> float:
        return LEFT + (WIDTH - LEFT) * (sizes.index(hosts) + 0.5) / len(sizes)

    def y(seconds: float) -> float:
        return HEIGHT - HEIGHT * math.log10(seconds / low) / math.log10(high / low)

    curves = []
    for tool in TOOLS:
        mine = sorted((line for line in lines if line.tool == tool), key=lambda line: line.hosts)
        if mine:
            points = [(x(line.hosts), y(line.wall), f"{tool}, {line.hosts}: {line.wall:.1f} s") for line in mine]
            curves.append(Curve(tool, COLOURS[tool], points))
    decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
    rows = [(y(10.0**decade), f"{10.0**decade:g} s") for decade in decades]
    return Drawing(work, curves, rows, [(x(hosts), str(hosts)) for hosts in sizes])
