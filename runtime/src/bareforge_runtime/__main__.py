"""`python -m bareforge_runtime check | trial | run | wait | schema`; see `--help` of each."""

import argparse
import os
import runpy
import sys
import traceback
from pathlib import Path

from bareforge_runtime import secrets
from bareforge_runtime.ending import end
from bareforge_runtime.redact import RedactingStream, Redactor

SOAK_HELP = (
    "then run gunicorn on a private socket: it must become ready and stay so for as long; needs --gunicorn-config"
)


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
        _end(str(error), redact)


def _check(arguments: argparse.Namespace, redact: Redactor) -> None:
    from bareforge_runtime import candidate

    # before the secrets are in it: a started process shows its environment
    environment = dict(os.environ)
    try:
        good = candidate.check(
            candidate.Candidate(
                app=arguments.app,
                chdir=arguments.chdir,
                gunicorn_config=arguments.gunicorn_config,
                imports_only=arguments.imports_only,
                ready_path=arguments.ready_path,
                host=arguments.host,
                timeout=arguments.timeout,
            ),
            redact,
        )
    except candidate.CheckError as error:
        _end(str(error), redact)
    print(f"ok: {good}")
    sys.stdout.flush()
    if arguments.soak and not arguments.imports_only:
        # another program in place of this one: what the application has started here (threads, timers) is gone, and
        # the secrets are not in the environment that the next one shows
        trial = [sys.executable, "-m", "bareforge_runtime", "trial", *sys.argv[2:]]
        os.execve(sys.executable, trial, environment)  # noqa: S606
    # Threads of the application may keep the process alive for ever.
    os._exit(0)


def _trial(arguments: argparse.Namespace, redact: Redactor) -> None:
    from bareforge_runtime import trial

    tried = trial.Trial(
        app=arguments.app,
        gunicorn_config=arguments.gunicorn_config,
        ready_path=arguments.ready_path,
        host=arguments.host,
        timeout=arguments.timeout,
        soak=arguments.soak,
        environment=dict(os.environ),
        chdir=arguments.chdir,
    )
    redact.add(secrets.load_into_environment().values())
    try:
        trial.carry_out(tried)
    except trial.TrialError as error:
        sys.stderr.write(f"{error.log}\n")
        _end(str(error), redact)
    print(f"ok: {arguments.app} became ready on a private socket and stayed so for {arguments.soak:g} s")


def _run(arguments: argparse.Namespace, redact: Redactor) -> None:
    module = arguments.module
    if arguments.chdir is not None:
        try:
            os.chdir(arguments.chdir)
        except OSError as error:
            _end(f"cannot change to {arguments.chdir}: {(error.strerror or '').lower()}; check --chdir", redact)
    sys.path.insert(0, str(Path.cwd()))
    redact.add(secrets.load_into_environment().values())
    sys.argv = [module, *arguments.arguments]
    again = "fix what the lines above name and run it again"
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
        if code:
            said = getattr(sys.stderr, "last_line", "")
            _end(f"{module} ended with exit code {code}{f' ({said})' if said else ''}; {again}", redact)
    except Exception as error:
        from bareforge_runtime.loading import one_line

        traceback.print_exc()
        _end(f"{module} failed: {one_line(error)}; {again}", redact)


def _schema(arguments: argparse.Namespace, redact: Redactor) -> None:
    from bareforge_runtime import schema

    try:
        if arguments.older is None:
            print(schema.head())
            return
        redact.add(secrets.load_into_environment().values())
        print(schema.blocks(arguments.older))
    except schema.SchemaError as error:
        _end(str(error), redact)


def _wait(arguments: argparse.Namespace, redact: Redactor) -> None:
    from bareforge_runtime import waiting

    gate = waiting.Gate(
        socket=arguments.socket,
        path=arguments.path,
        host=arguments.host,
        timeout=arguments.timeout,
        pid=arguments.pid,
    )
    try:
        waiting.wait(gate)
    except waiting.NotReadyError as error:
        _end(str(error), redact)


def _end(cause_and_cure: str, redact: Redactor) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    end(cause_and_cure, redact)


def _forget_the_start_directory() -> None:
    """Undo that `python -m` puts the current directory first: it may be that of another release."""
    if not sys.flags.safe_path and sys.path and sys.path[0] == str(Path.cwd()):
        del sys.path[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bareforge_runtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="would this release serve? opens no listening socket")
    check.set_defaults(command=_check)
    check.add_argument("--imports-only", action="store_true", help="do not start it, do not ask whether it is ready")
    trial = commands.add_parser("trial", help="run gunicorn on a private socket: does it become and stay ready?")
    trial.set_defaults(command=_trial, imports_only=False)
    for candidate in (check, trial):
        candidate.add_argument("--app", required=True, metavar="MODULE:ATTRIBUTE[()]")
        candidate.add_argument(
            "--chdir", type=Path, metavar="DIR", help="import from here; wins over the configuration"
        )
        candidate.add_argument("--gunicorn-config", type=Path, metavar="FILE", required=candidate is trial)
        candidate.add_argument("--ready-path", default="/ready", metavar="PATH")
        candidate.add_argument("--host", default="localhost", metavar="NAME", help="Host header of the request")
        candidate.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="until ready; default 30")
        candidate.add_argument("--soak", type=float, default=0, metavar="SECONDS", help=SOAK_HELP)

    schema = commands.add_parser("schema", help="the database revision that this release expects")
    schema.set_defaults(command=_schema)
    schema.add_argument(
        "--older", metavar="HEAD", help="instead: the revision that code with this head cannot live with"
    )

    run = commands.add_parser("run", help="run a module, as python -m does, with the secrets in its environment")
    run.set_defaults(command=_run)
    run.add_argument("--chdir", type=Path, metavar="DIR")
    run.add_argument("module", metavar="MODULE")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")

    wait = commands.add_parser("wait", help="wait until the application answers 200 over its unix socket")
    wait.set_defaults(command=_wait)
    wait.add_argument("--socket", type=Path, required=True, metavar="PATH")
    wait.add_argument("--path", default="/ready", metavar="PATH")
    wait.add_argument("--host", default="localhost", metavar="NAME", help="Host header of the request")
    wait.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="default 60")
    wait.add_argument("--pid", type=int, metavar="PID", help="stop at once when this process is gone")
    return parser


if __name__ == "__main__":
    main()
