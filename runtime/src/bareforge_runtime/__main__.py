"""`python -m bareforge_runtime check | trial | run | wait | schema`; see `--help` of each."""

import argparse
import sys
from pathlib import Path

from bareforge_runtime import commands, secrets
from bareforge_runtime.redact import RedactingStream, Redactor


def main() -> None:
    """Run one command. Failure: exit code 1 and one line `bareforge-runtime: cause; cure`, the last one."""
    arguments = _parser().parse_args()
    redact = Redactor()
    sys.stdout = RedactingStream(sys.stdout, redact)
    sys.stderr = RedactingStream(sys.stderr, redact)
    _forget_the_start_directory()
    try:
        arguments.command(arguments, redact)
    except secrets.SecretsError as error:
        commands.fail(str(error), redact)


def _forget_the_start_directory() -> None:
    """Undo that `python -m` puts the current directory first: it may be that of another release."""
    if not sys.flags.safe_path and sys.path and sys.path[0] == str(Path.cwd()):
        del sys.path[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bareforge_runtime", description=__doc__)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    check = parsers.add_parser("check", help="would this release serve? in one process, without a listening socket")
    check.set_defaults(command=commands.check)
    check.add_argument("--imports-only", action="store_true", help="do not start it, do not ask whether it is ready")
    trial = parsers.add_parser("trial", help="the second part of check alone: gunicorn on a private socket")
    trial.set_defaults(command=commands.trial, imports_only=False)
    trial.add_argument("--started", type=float, help=argparse.SUPPRESS)
    for parser_of in (check, trial):
        _add_candidate(parser_of)

    run = parsers.add_parser("run", help="run a module, as python -m does, with the secrets in its environment")
    run.set_defaults(command=commands.run)
    run.add_argument("--chdir", type=Path, metavar="DIR")
    run.add_argument("module", metavar="MODULE")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")

    wait = parsers.add_parser("wait", help="wait until the application answers 200 over its unix socket")
    wait.set_defaults(command=commands.wait)
    wait.add_argument("--socket", type=Path, required=True, metavar="PATH")
    wait.add_argument("--path", default="/ready", metavar="PATH")
    wait.add_argument("--host", default="localhost", metavar="NAME", help="Host header of the request")
    wait.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="default 60")
    wait.add_argument("--pid", type=int, metavar="PID", help="stop at once when this process is gone")

    schema = parsers.add_parser("schema", help="the revision of the database that this release expects")
    schema.set_defaults(command=commands.schema)
    schema.add_argument("--older", metavar="HEAD", help="the revision that code with this head cannot live with")
    schema.add_argument("--chdir", type=Path, metavar="DIR")
    return parser


def _add_candidate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app", required=True, metavar="MODULE:ATTRIBUTE[()]")
    parser.add_argument("--chdir", type=Path, metavar="DIR", help="import from here; wins over the configuration")
    parser.add_argument("--gunicorn-config", type=Path, metavar="FILE")
    parser.add_argument("--ready-path", default="/ready", metavar="PATH")
    parser.add_argument("--host", default="localhost", metavar="NAME", help="Host header of the request")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="until it is ready; default 30")
    soak = "run gunicorn on a private socket; it must stay ready for so long"
    parser.add_argument("--soak", type=float, metavar="SECONDS", help=soak)
    parser.add_argument("--socket", type=Path, metavar="PATH", help="the private socket; default: a temporary one")


if __name__ == "__main__":
    main()
