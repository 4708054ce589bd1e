"""The command line: arguments to a plan and to what goes around it."""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from witness.plan import CONNECTIONS, MAXIMUM_RATE, MAXIMUM_SECONDS, MAXIMUM_TARGETS, Plan, PlanError

SECONDS = 30


@dataclass(frozen=True)
class Options:
    """The plan; the command to run meanwhile (empty: none); files to follow and to write, None: not wanted."""

    plan: Plan
    command: tuple[str, ...]
    stop: Path | None
    events: Path | None
    json: Path | None
    records: Path | None
    plot: Path | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PlanError(f"{message}; see scripts/witness --help")


def parse(arguments: Sequence[str]) -> Options:
    """Return what the arguments ask for; raises PlanError."""
    own = list(arguments)
    command: list[str] = []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1 :]
        if not command:
            raise PlanError("no command follows --; name one, or leave -- out")
        if shutil.which(command[0]) is None:
            raise PlanError(f"the command {command[0]} is not found; correct its name or path")
    given = _parser().parse_args(own)
    if given.stop and given.stop.exists():
        raise PlanError(f"--stop {given.stop} exists already; remove it and run again")
    for path in (given.json, given.records, given.plot):
        if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise PlanError(f"{path} cannot be written; name a file in a directory that exists and is yours")
    open_end = bool(command or given.stop)
    plan = Plan(
        urls=tuple(given.url),
        get=given.get or None,
        post=given.post,
        slow=given.slow,
        slow_post=given.slow_post,
        stream=given.stream,
        body=given.body,
        echo=given.echo,
        rate=given.rate,
        slow_rate=given.slow_rate,
        connections=given.connections,
        host=given.host,
        ca=given.ca,
        timeout=given.timeout,
        seconds=given.seconds if given.seconds is not None else MAXIMUM_SECONDS if open_end else SECONDS,
        steady=given.steady,
        stall_factor=given.stall_factor,
        release_header=given.release_header,
        expect=_releases(given.expect),
    )
    return Options(plan, tuple(command), given.stop, given.events, given.json, given.records, given.plot)


def _releases(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    old, _, new = text.partition(",")
    return old.strip(), new.strip()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/witness",
        usage="scripts/witness --url URL [option ...] [-- COMMAND [ARGUMENT ...]]",
        description="Sends steady requests, tries none again, and counts every failure and every stall.",
        epilog="Exit code: 0 no request failed, 1 some did (or --expect was violated), 2 wrong arguments; "
        "with a command that failed and no failed request, the command's.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--url",
        action="append",
        default=[],
        help=f"https://HOST:PORT, http://... or unix:/PATH; up to {MAXIMUM_TARGETS}",
    )
    add("--host", default="", metavar="NAME", help="Host header and TLS server name, for a URL with an IP address")
    add("--ca", default="", metavar="FILE", help="trust these authorities (PEM) instead of the system's")
    add("--get", default="/health", metavar="PATH", help="fast GET (default %(default)s; '' for none)")
    add("--post", metavar="PATH", help="fast POST")
    add("--slow", metavar="PATH", help="slow GET")
    add("--slow-post", metavar="PATH", help="slow POST")
    add("--stream", metavar="PATH", help="GET of a streamed answer")
    add("--body", default="{}", metavar="JSON", help="body of every POST (default %(default)s)")
    add("--echo", action="store_true", help='put a unique "id" into the body; the answer must carry the same "id"')
    add("--rate", type=float, default=50, metavar="N", help="fast requests a second on each target (default 50)")
    add("--slow-rate", type=float, default=5, metavar="N", help="of each other stream on each target (default 5)")
    add("--connections", default="both", metavar="KIND", help=f"{', '.join(CONNECTIONS)} (default %(default)s)")
    add("--timeout", type=float, default=30, metavar="SECONDS", help="limit of one request (default 30)")
    add(
        "--seconds",
        type=float,
        metavar="N",
        help=f"end after (default {SECONDS}; {MAXIMUM_SECONDS} with COMMAND or --stop)",
    )
    add("--stop", type=Path, metavar="FILE", help="end when this file appears")
    add("--events", type=Path, metavar="FILE", help="each line that others append to this file becomes an event")
    add(
        "--steady",
        type=float,
        default=5,
        metavar="SECONDS",
        help="tells what is usual; COMMAND begins after it (default 5)",
    )
    add("--stall-factor", type=float, default=2, metavar="N", help="a stall takes N times the usual p99 (default 2)")
    add("--release-header", default="X-Release", metavar="NAME", help="names the release (default %(default)s)")
    add("--expect", metavar="OLD,NEW", help='only these releases may answer, OLD not after an event "commit HOST"')
    add("--json", type=Path, metavar="FILE", help="write the document")
    add("--records", type=Path, metavar="FILE", help="write one line of JSON per request")
    add("--plot", type=Path, metavar="FILE", help="write a page with latency over time (HTML)")
    parser.description = f"{parser.description} At most {MAXIMUM_RATE} requests a second in all."
    return parser
