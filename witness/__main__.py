"""`python -m witness`: run the load, tell what it saw."""

import contextlib
import json
import resource
import sys
from collections.abc import Sequence

from witness.follow import Follower
from witness.load import Result, Witness
from witness.options import Options, parse
from witness.plan import MAXIMUM_IN_FLIGHT, PlanError
from witness.plot import page
from witness.report import MINIMUM_STALL_MS


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        options = parse(arguments)
        allow_open_files(2 * MAXIMUM_IN_FLIGHT)
        with Witness(options.plan) as witness:
            code = Follower(witness, options).follow()
        result = witness.result()
        write(result, options)
    except PlanError as error:
        print(f"witness: {error}", file=sys.stderr)
        return 2
    tell(result)
    if result.document["failed"] or result.document["check"]["violations"]:
        return 1
    return code


def allow_open_files(number: int) -> None:
    """Raise the limit of open files to `number`, or as near to it as is allowed; a limit met is told as "not sent"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write(result: Result, options: Options) -> None:
    """Write the files that were asked for. Raises PlanError."""
    try:
        if options.json:
            options.json.write_text(json.dumps(result.document, indent=2) + "\n")
        if options.records:
            with options.records.open("w") as file:
                for record in result.records:
                    fields = record._asdict() | {"at": round(record.at, 4), "ms": round(record.ms, 3)}
                    file.write(json.dumps(fields) + "\n")
        if options.plot:
            options.plot.write_text(page(result.document, result.records, result.line))
    except OSError as error:
        tell(result)
        raise PlanError(f"{error.filename} cannot be written: {error.strerror}; name another file") from None


def tell(result: Result) -> None:
    """Print what went wrong on standard error, the summary as the last line of standard output."""
    document = result.document
    for kind, detail in result.details.items():
        print(f"witness: first {kind}: {detail}", file=sys.stderr)
    for violation in document["check"]["violations"]:
        print(f"witness: violation: {violation}", file=sys.stderr)
    if document["late_ms"] >= MINIMUM_STALL_MS:
        late = f"{document['late_ms']:.0f} ms"
        print(f"witness: sent up to {late} late, this machine was busy; stalls may be its own", file=sys.stderr)
    sys.stderr.flush()
    print(result.line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
