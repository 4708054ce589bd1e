"""What each command of `python -m bareforge_runtime` does with its arguments."""

import argparse
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bareforge_runtime import secrets
from bareforge_runtime.ending import end
from bareforge_runtime.redact import Redactor

if TYPE_CHECKING:
    from bareforge_runtime import candidate


def check(arguments: argparse.Namespace, redact: Redactor) -> None:
    """Check a candidate in this process; with `soak` or `socket` go on with the trial."""
    from bareforge_runtime import candidate

    # Now: the check changes the directory, and puts the secrets into the environment.
    started, environment = time.monotonic(), dict(os.environ)
    wanted = _candidate(arguments)
    tried = _trial_command(arguments, wanted, started)
    if tried and arguments.imports_only:
        fail("--imports-only starts nothing that could be watched; leave out --soak and --socket", redact)
    try:
        good = candidate.check(wanted, redact)
    except candidate.CheckError as error:
        fail(str(error), redact)
    print(f"ok: {good}")
    sys.stdout.flush()
    sys.stderr.flush()
    if tried:
        # Another program in place of this one: what the application has started here, a thread or a timer that ends
        # the process, must not get between; and the memory is free again.
        os.execve(sys.executable, tried, environment)  # noqa: S606
    _end_well()


def trial(arguments: argparse.Namespace, redact: Redactor) -> None:
    """Run a candidate under gunicorn on a private socket, as `check` does at its end."""
    from bareforge_runtime import candidate, trial

    wanted = _candidate(arguments)
    tried = trial.Trial(
        candidate=wanted,
        soak=arguments.soak or 0,
        environment=dict(os.environ),
        started=time.monotonic() if arguments.started is None else arguments.started,
        socket=arguments.socket and arguments.socket.absolute(),
    )
    _change_directory(wanted.chdir, redact)
    try:
        raw_env = candidate.gunicorn_environment(wanted)
        os.environ.update(raw_env)
        # for what is shown only: gunicorn gets the environment from above
        redact.add(secrets.load_into_environment().values())
        print(f"ok: {trial.prove(tried, raw_env, redact)}")
    except candidate.CheckError as error:
        fail(str(error), redact)


def run(arguments: argparse.Namespace, redact: Redactor) -> None:
    """Run a module as `python -m` does, with the secrets in its environment."""
    module = arguments.module
    _change_directory(arguments.chdir, redact)
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
            fail(f"{module} ended with exit code {code}{f' ({said})' if said else ''}; {again}", redact)
    except Exception as error:
        from bareforge_runtime.loading import one_line

        traceback.print_exc()
        fail(f"{module} failed: {one_line(error)}; {again}", redact)


def wait(arguments: argparse.Namespace, redact: Redactor) -> None:
    """Wait until the application answers 200."""
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
        fail(str(error), redact)


def schema(arguments: argparse.Namespace, redact: Redactor) -> None:
    """Print the revision that the release expects; with `older` the one that code of that head cannot live with."""
    from bareforge_runtime import schema

    if arguments.chdir is not None:
        _change_directory(arguments.chdir, redact)
        sys.path.insert(0, str(Path.cwd()))
    try:
        if arguments.older is None:
            revision = schema.head()
        else:
            redact.add(secrets.load_into_environment().values())
            revision = schema.blocks(arguments.older)
    except schema.SchemaError as error:
        fail(str(error), redact)
    print(revision)
    _end_well()


def fail(cause_and_cure: str, redact: Redactor) -> NoReturn:
    """End this process with exit code 1, the line the last one on standard error."""
    sys.stdout.flush()
    sys.stderr.flush()
    end(cause_and_cure, redact)


def _candidate(arguments: argparse.Namespace) -> "candidate.Candidate":
    from bareforge_runtime import candidate

    return candidate.Candidate(
        app=arguments.app,
        chdir=arguments.chdir and arguments.chdir.absolute(),
        gunicorn_config=arguments.gunicorn_config and arguments.gunicorn_config.absolute(),
        imports_only=arguments.imports_only,
        ready_path=arguments.ready_path,
        host=arguments.host,
        timeout=arguments.timeout,
    )


def _trial_command(arguments: argparse.Namespace, wanted: "candidate.Candidate", started: float) -> list[str]:
    """Return the command that goes on with the trial, from whatever directory; empty if none is asked for."""
    if arguments.soak is None and arguments.socket is None:
        return []
    options = {
        "app": wanted.app,
        "chdir": wanted.chdir,
        "gunicorn-config": wanted.gunicorn_config,
        "ready-path": wanted.ready_path,
        "host": wanted.host,
        "timeout": wanted.timeout,
        "soak": arguments.soak,
        "socket": arguments.socket and arguments.socket.absolute(),
        "started": started,
    }
    # -P: the directory of the candidate is no place to import the runtime from
    command = [sys.executable, "-P", "-m", "bareforge_runtime", "trial"]
    return [*command, *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _end_well() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the application may keep the process alive for ever.
    os._exit(0)


def _change_directory(directory: Path | None, redact: Redactor) -> None:
    if directory is None:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        fail(f"cannot change to {directory}: {(error.strerror or '').lower()}; check --chdir", redact)
