"""`exec`: a program with its settings on a developer's machine, which has no agent.

The login is the developer's own. What the program finds is what it finds on a host: BAREFORGE_SECRETS names a directory
in memory with the same files, kept the same way by the same code in a process beside it, until the program ends.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from bareforge_agent import files
from bareforge_agent.config import TOKEN_FILE, Config, Credential, SettingSet, read_credential
from bareforge_agent.errors import AgentError, ConfigurationError, EnrolmentError
from bareforge_agent.keeper import Keeper
from bareforge_agent.stop import Stop
from bareforge_agent.vault import Vault

# Not for the program: what logs in is not what is needed to serve.
LOGIN_VARIABLES = ("VAULT_TOKEN", "VAULT_TOKEN_FILE", "CREDENTIALS_DIRECTORY")
MEMORY = ("tmpfs", "ramfs")


def developer_credential(environment: Mapping[str, str] = os.environ) -> Credential:
    """The token of VAULT_TOKEN, else of the file that VAULT_TOKEN_FILE names, else an AppRole credential.

    Raises EnrolmentError where there is none.
    """
    token, file = environment.get("VAULT_TOKEN", ""), environment.get("VAULT_TOKEN_FILE", "")
    if not token and file:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise EnrolmentError(f"VAULT_TOKEN_FILE names {file}, which cannot be read: {reason}; correct it") from None
    if token:
        return Credential("", "", token)
    if environment.get("CREDENTIALS_DIRECTORY"):
        return read_credential(environment)
    raise EnrolmentError("VAULT_TOKEN is not set; log in to Vault, then: export VAULT_TOKEN=$(vault print token)")


def memory_directory(environment: Mapping[str, str] = os.environ, mounts: Path = Path("/proc/mounts")) -> Path:
    """Where files do not come to a disk: XDG_RUNTIME_DIR, else /dev/shm. Raises ConfigurationError."""
    directory = Path(environment.get("XDG_RUNTIME_DIR") or "/dev/shm")  # noqa: S108 (what is made in it is private)
    kinds: dict[Path, str] = {}
    with contextlib.suppress(OSError):
        for line in mounts.read_text(encoding="utf-8").splitlines():
            _, where, kind, *_ = line.split()
            if directory.is_relative_to(where):
                kinds[Path(where)] = kind
    nearest = max(kinds, key=lambda where: len(where.parts), default=None)
    if nearest is None or kinds[nearest] not in MEMORY or not directory.is_dir():
        raise ConfigurationError(f"{directory} is not in memory (tmpfs); set XDG_RUNTIME_DIR to a directory that is")
    return directory


def execute(config: Config, name: str | None, credential: Credential, command: Sequence[str]) -> int:
    """Run a command with the settings of a set, the only one where `name` is None; returns its exit code.

    Raises ConfigurationError. When the settings cannot be read it is the keeper's exit code, which has said why.
    """
    chosen = _choose(config, name)
    with tempfile.TemporaryDirectory(prefix="bareforge-", dir=memory_directory()) as made:
        directory = Path(made)
        with _kept(config, credential, directory) as refusal:
            if refusal:
                return refusal
            return _run(command, directory / chosen.name)


def _choose(config: Config, name: str | None) -> SettingSet:
    found = [each for each in config.sets if name in (None, each.name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(each.name for each in config.sets))
    raise ConfigurationError(f"--set {name or 'is missing, it'} must be one of the sets: {known}; name one of them")


@contextlib.contextmanager
def _kept(config: Config, credential: Credential, directory: Path) -> Iterator[int]:
    """Keep the settings in a process beside, from when all are there to the end of the block; gives them back.

    Yields 0, or the exit code of a process that could not begin.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        address = directory / "notify"
        told.bind(str(address))
        told.settimeout(0.2)
        # a fork: nothing of the login crosses a command line or an environment
        keeper = multiprocessing.get_context("fork").Process(target=_keep, args=(config, credential, directory))
        keeper.start()
        try:
            while keeper.is_alive() and not _ready(told):
                pass
            yield keeper.exitcode or 0
        finally:
            keeper.terminate()
            keeper.join()
            _give_back(config, credential, directory)


def _keep(config: Config, credential: Credential, directory: Path) -> None:
    os.environ["NOTIFY_SOCKET"] = str(directory / "notify")
    try:
        Keeper(config, credential, directory, Stop(), log=_say, patient=False).run()
    except AgentError as error:
        _say(str(error))
        sys.exit(error.code)


def _ready(told: socket.socket) -> bool:
    """Whether the keeper says, within 0.2 s, that it has everything."""
    try:
        lines = told.recv(4096).decode().splitlines()
    except TimeoutError:
        return False
    return "READY=1" in lines


def _run(command: Sequence[str], secrets: Path) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in LOGIN_VARIABLES}
    try:
        program = subprocess.Popen(command, env={**environment, "BAREFORGE_SECRETS": str(secrets)})
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ConfigurationError(f"cannot run {command[0]}: {reason}; correct the command after --") from None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        program.send_signal(number)

    # a terminal's Ctrl-C reaches the program by itself
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = program.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _give_back(config: Config, credential: Credential, directory: Path) -> None:
    """End the token that was made, or the users of the database that a developer's own token has made."""
    token = files.read_text(directory / TOKEN_FILE)
    if not token:
        return
    vault = Vault(config, token=token)
    try:
        if not credential.token:
            vault.revoke_token()
            return
        state = files.read_state(directory / "state.json")
        leases = [credentials["lease_id"] for credentials in state.get("databases", {}).values()]
        for lease_id in filter(None, [*leases, *state.get("retired", {})]):
            vault.revoke_lease(lease_id)
    except AgentError as error:
        _say(f"what was made for the program stays until it ends by itself: {error}")


def _say(text: str) -> None:
    print(f"bareforge-agent: {text}", file=sys.stderr, flush=True)
