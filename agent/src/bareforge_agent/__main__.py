"""`python -m bareforge_agent run | check | enroll | certificate | exec --config PATH`.

Exit codes are in `bareforge_agent.errors`.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from bareforge_agent import certificate, develop, enroll, keeper
from bareforge_agent.config import Config, read_config, read_credential
from bareforge_agent.errors import AgentError, ConfigurationError
from bareforge_agent.stop import Stop
from bareforge_agent.vault import Vault


def main() -> None:
    """Run one command. Failure: its exit code and one line `bareforge-agent: what; next step`."""
    parser = argparse.ArgumentParser(prog="python -m bareforge_agent", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, help_text in (
        ("run", _run, "the service: write the settings and keep them current"),
        ("check", _check, "log in, read what is declared, give it back"),
        ("enroll", _enroll, "store the credential that standard input carries wrapped"),
        ("certificate", _certificate, "for the timer: get the site's certificate, or replace it where it is time"),
        ("exec", _exec, "for development: log in with VAULT_TOKEN, run a program with the settings"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.set_defaults(function=function)
        command.add_argument("--config", type=Path, required=True, metavar="PATH")
        if name == "check":
            command.add_argument("--set", metavar="NAME", help="read this set only")
            command.add_argument("--no-certificate", action="store_true", help="have no certificate signed")
        if name == "exec":
            command.add_argument("--set", metavar="NAME", help="the settings of this set; needed if there are several")
            command.add_argument("program", nargs="+", metavar="-- PROGRAM", help="with its arguments")
        if name == "enroll":
            command.add_argument("--credential", type=Path, required=True, metavar="PATH")
    arguments = parser.parse_args()
    try:
        arguments.function(read_config(arguments.config), arguments)
    except AgentError as error:
        sys.exit(_fail(error))


def _runtime_directories(unit: str) -> tuple[Path, Path | None]:
    """The directory for secrets and the one for everybody, if there is one; raises ConfigurationError."""
    directory, _, public = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")
    if not directory:
        raise ConfigurationError(f"RUNTIME_DIRECTORY is not set; start it by its unit: systemctl start {unit}")
    return Path(directory), Path(public) if public else None


def _run(config: Config, _arguments: argparse.Namespace) -> None:
    directory, public = _runtime_directories("bareforge-agent")
    credential = read_credential()
    stop = Stop()
    keeper.Keeper(
        config,
        credential,
        directory,
        stop,
        log=lambda text: print(text, flush=True),
        public=public,
    ).run()


def _check(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.set is not None:
        chosen = tuple(each for each in config.sets if each.name == arguments.set)
        if not chosen:
            known = ", ".join(sorted(each.name for each in config.sets)) or "none"
            raise ConfigurationError(f"{arguments.config} has no set {arguments.set!r}, only: {known}; correct --set")
        config = replace(config, sets=chosen)
    wanted = None if arguments.no_certificate else config.certificate
    vault = Vault(config)
    vault.login(read_credential())
    try:
        secrets = keeper.KvSecrets(vault)
        for each in config.sets:
            secrets.render(each)
        for path in sorted(config.database_paths):
            vault.read_database(path)
        if wanted:
            certificate.prove(vault, wanted)
    finally:
        vault.revoke_token()
    signed = ", and the certificate is signed" if wanted else ""
    print(f"ok: {config.count} settings can be read{signed}")


def _certificate(config: Config, _arguments: argparse.Namespace) -> None:
    directory, _ = _runtime_directories("bareforge-certificate")
    certificate.keep(config, read_credential, directory, certificate.saved_copy(), log=partial(print, flush=True))


def _enroll(config: Config, arguments: argparse.Namespace) -> None:
    enroll.enroll(config, sys.stdin.read(), arguments.credential)
    print(f"ok: enrolled, the credential is {arguments.credential}")


def _exec(config: Config, arguments: argparse.Namespace) -> None:
    sys.exit(develop.execute(config, arguments.set, develop.developer_credential(), arguments.program))


def _fail(error: AgentError) -> int:
    sys.stderr.write(f"bareforge-agent: {error}\n")
    return error.code


if __name__ == "__main__":
    main()
