"""What the benchmarks' command lines share: options, order of the sections, the table, the document, the exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import Row, all_hold, document, header, table_line, totals
from benchmarks.fleet import FleetError
from benchmarks.session import FAILURES, Session, connect, machine
from witness.plan import PlanError

# What a section may end with when the lab does not do what was asked.
TROUBLE = (FleetError, PlanError, ValueError, KeyError, OSError, subprocess.SubprocessError)

Section = Callable[[Session], Iterable[Row]]


@dataclass(frozen=True)
class Options:
    """What was asked for; only: names of sections in their order."""

    repetitions: int
    every: int
    only: tuple[str, ...]
    json: Path | None
    plot: Path | None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. repetitions: default and maximum of --repetitions.

    sections: by name and in their order, given the file for a plot. plotted: the section that --plot shows, empty for a
    benchmark without one. every: what --every says it does, empty for one without. missing: a sentence where rows of a
    whole run do not suffice, else empty.
    """

    name: str
    purpose: str
    repetitions: tuple[int, int]
    sections: Callable[[Path | None], Mapping[str, Section]]
    plotted: str = ""
    every: str = ""
    missing: Callable[[Sequence[Row], int, bool], str] = lambda _rows, _repetitions, _whole: ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sections."""
        return tuple(self.sections(None))


def parse(benchmark: Benchmark, arguments: Sequence[str]) -> Options:
    """The command line; ends the program where it is wrong."""
    default, maximum = benchmark.repetitions
    parser = argparse.ArgumentParser(prog=f"scripts/benchmark {benchmark.name}", description=benchmark.purpose)
    count = f"of each event (default {default})"
    parser.add_argument("--repetitions", type=int, default=default, metavar="N", help=count)
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"sections: {', '.join(benchmark.names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, machine and versions")
    if benchmark.every:
        parser.add_argument("--every", type=int, default=1, metavar="N", help=benchmark.every)
    if benchmark.plotted:
        plot = f"write the latencies of section {benchmark.plotted} as HTML"
        parser.add_argument("--plot", type=Path, metavar="FILE", help=plot)
    parser.set_defaults(every=1, plot=None)
    given = parser.parse_args(arguments)
    if not 1 <= given.repetitions <= maximum:
        parser.error(f"--repetitions is {given.repetitions}; it must be from 1 to {maximum}")
    if given.every < 1:
        parser.error(f"--every is {given.every}; it must be at least 1")
    wanted = [name.strip() for name in given.only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in benchmark.names]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(benchmark.names)}")
    only = tuple(name for name in benchmark.names if not wanted or name in wanted)
    if given.plot and benchmark.plotted not in only:
        parser.error(f"--plot shows the section {benchmark.plotted}, which --only leaves out; add it")
    for file in (given.json, given.plot):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"{file} is in no directory; make it first")
    return Options(given.repetitions, given.every, only, given.json, given.plot)


def run(benchmark: Benchmark, session: Session, options: Options) -> Iterator[Row]:
    """Run the sections; yields each row as it is known. A section that breaks off is a row that does not hold."""
    available = benchmark.sections(options.plot)
    for name in options.only:
        session.say(f"section {name}")
        try:
            yield from available[name](session)
        except TROUBLE as error:
            yield failure(name, f"broke off: {type(error).__name__}: {str(error).strip()}")


def failure(section: str, problem: str) -> Row:
    """A row that says what kept a section from being one."""
    return Row(section, 0, holds=False, problems=[problem])


def measure(benchmark: Benchmark, session: Session, options: Options) -> tuple[list[Row], dict[str, object]]:
    """Run the sections, put the lab back to what it served; returns the rows and the machine."""
    measured_on = machine(session)
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        print(table_line(row), flush=True)

    print(header(), flush=True)
    try:
        for row in run(benchmark, session, options):
            take(row)
    finally:
        try:
            session.restore()
        except FAILURES as error:
            take(failure("putting the lab back", str(error).strip()))
    if sentence := benchmark.missing(rows, options.repetitions, options.only == benchmark.names):
        take(failure("all", sentence))
    return rows, measured_on


def main(benchmark: Benchmark, arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    options = parse(benchmark, arguments)
    # removes what it has made on the hosts also when it is told to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = datetime.now(UTC)
    try:
        fleet = connect(dict(os.environ))
        with tempfile.TemporaryDirectory(prefix="bareforge-benchmark-") as directory:
            session = Session(fleet, Path(directory), options.repetitions, options.every)
            rows, measured_on = measure(benchmark, session, options)
    except FleetError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    if options.json:
        text = json.dumps(document(rows, measured_on, started, session.seconds), indent=1)
        options.json.write_text(text + "\n")
    requests, failed = totals(rows)
    print(f"{requests} requests, {failed} failed")
    return 0 if all_hold(rows) else 1
