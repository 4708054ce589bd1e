"""Is a request lost? All that is done to a release, and all that can happen to it, under load in the lab.

`scripts/benchmark zero_loss --help`. The exit code is 0 only if all that is demanded holds. benchmarks/README.md says
what each section proves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import cutover, faults, injections, power, stock, sweep
from benchmarks.figures import Row, all_hold, document, header, table_line, too_few, totals
from benchmarks.fleet import FleetError
from benchmarks.session import FAILURES, Session, connect, machine
from witness.plan import PlanError

# More would not fit into the hour for which a witness watches.
MAXIMUM_REPETITIONS = 60
# What a section may end with when the lab does not do what was asked.
TROUBLE = (FleetError, PlanError, ValueError, KeyError, OSError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Options:
    """What was asked for; only: names of sections in their order."""

    repetitions: int
    every: int
    only: tuple[str, ...]
    json: Path | None
    plot: Path | None


def sections(plot: Path | None) -> dict[str, Callable[[Session], list[Row]]]:
    """The sections by name, in their order. The sweeps come last: they bring releases of their own."""
    return {
        "release": lambda session: cutover.release(session, plot),
        "unkept": cutover.unkept,
        "reload": cutover.reload,
        "recycle": cutover.recycle,
        "nginx": cutover.nginx,
        "playbooks": cutover.playbooks,
        "broken": faults.broken,
        "kill": faults.kill,
        "injected": injections.injected,
        "power": power.power,
        "stock": stock.stock,
        "sweep": sweep.sweep,
        "naive": sweep.naive,
    }


def parse(arguments: Sequence[str]) -> Options:
    """The command line; ends the program where it is wrong."""
    names = tuple(sections(None))
    parser = argparse.ArgumentParser(prog="scripts/benchmark zero_loss", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=20, metavar="N", help="of each event (default 20)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="kill at each Nth task boundary (default 1)")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"sections: {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, machine and versions")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the latencies of release and rollback as HTML")
    given = parser.parse_args(arguments)
    if not 1 <= given.repetitions <= MAXIMUM_REPETITIONS:
        parser.error(f"--repetitions is {given.repetitions}; it must be from 1 to {MAXIMUM_REPETITIONS}")
    if given.every < 1:
        parser.error(f"--every is {given.every}; it must be at least 1")
    wanted = [name.strip() for name in given.only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(names)}")
    only = tuple(name for name in names if not wanted or name in wanted)
    if given.plot and "release" not in only:
        parser.error("--plot shows the section release, which --only leaves out; add it")
    for file in (given.json, given.plot):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"{file} is in no directory; make it first")
    return Options(given.repetitions, given.every, only, given.json, given.plot)


def run(session: Session, options: Options) -> Iterator[Row]:
    """Run the sections; yields each row as it is known. A section that breaks off is a row that does not hold."""
    available = sections(options.plot)
    for name in options.only:
        session.say(f"section {name}")
        try:
            yield from available[name](session)
        except TROUBLE as error:
            yield failure(name, f"broke off: {type(error).__name__}: {str(error).strip()}")


def failure(section: str, problem: str) -> Row:
    """A row that says what kept a section from being one."""
    return Row(section, 0, holds=False, problems=[problem])


def measure(session: Session, options: Options) -> tuple[list[Row], dict[str, object]]:
    """Run the sections, put the lab back to what it served; returns the rows and the machine."""
    measured_on = machine(session)
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        print(table_line(row), flush=True)

    print(header(), flush=True)
    try:
        for row in run(session, options):
            take(row)
    finally:
        try:
            session.restore()
        except FAILURES as error:
            take(failure("putting the lab back", str(error).strip()))
    if sentence := too_few(rows, options.repetitions, whole=options.only == tuple(sections(None))):
        take(failure("all", sentence))
    return rows, measured_on


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    options = parse(arguments)
    # removes what it has made on the hosts also when it is told to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = datetime.now(UTC)
    try:
        fleet = connect(dict(os.environ))
        with tempfile.TemporaryDirectory(prefix="bareforge-benchmark-") as directory:
            session = Session(fleet, Path(directory), options.repetitions, options.every)
            rows, measured_on = measure(session, options)
    except FleetError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    if options.json:
        text = json.dumps(document(rows, measured_on, started, session.seconds), indent=1)
        options.json.write_text(text + "\n")
    requests, failed = totals(rows)
    print(f"{requests} requests, {failed} failed")
    return 0 if all_hold(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
