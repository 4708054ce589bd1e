"""The agent at work: obtain every declared setting, write the files, keep both alive and current.

One thread, one loop. What was written stays until something newer is known: while Vault is away, the
applications go on with what they have. Sets share what they read from the same place in Vault, and what is wrong
with one of them does not keep the others from being written. A set appears as a whole: until everything in it has
been read once it has no directory, so that its readers find it missing and not empty.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bareforge_agent import files
from bareforge_agent.config import SET_NAME, TOKEN_FILE, Config, Credential, KvSetting, SettingSet
from bareforge_agent.errors import (
    AgentError,
    PathError,
    TokenLostError,
    UnavailableError,
)
from bareforge_agent.notify import notify
from bareforge_agent.stop import Stop
from bareforge_agent.vault import DatabaseCredentials, Token, Vault

# Share of the time to live after which to renew, with jitter so that hosts do not all come at once.
RENEW_AT = (0.35, 0.45)
# A renewal that gives less than this share of the full time to live says that the end is near.
WORTH_KEEPING = 0.9
# Seconds between attempts while Vault is not available: 1, 2, 4, 5, 5, ...
FIRST_WAIT, LONGEST_WAIT = 1.0, 5.0


class Keeper:
    """Keeps the sets of `config` in directories of `directory`.

    `log` is given one line at each change of what is the matter. `stop` ends `run`.
    """

    def __init__(
        self,
        config: Config,
        credential: Credential,
        directory: Path,
        stop: Stop,
        log: Callable[[str], None],
    ) -> None:
        self._config = config
        self._credential = credential
        self._directory = directory
        self._stop = stop
        self._log = log
        self._trouble = ""
        self._status = ""
        self._wait = FIRST_WAIT
        self._vault = Vault(config)
        self._token: Token | None = None
        self._renew_token_at = 0.0
        # By set name; a set whose secrets are refused is not in it.
        self._kv: dict[str, dict[str, str]] = {}
        self._databases: dict[str, DatabaseCredentials] = {}
        self._renew_lease_at: dict[str, float] = {}
        self._read_kv_at = 0.0

    def run(self) -> None:
        """Start and go on until stopped. Nothing is revoked at the end: the next start takes over.

        Raises the AgentError of a start that cannot succeed by waiting; later ones, and those that concern some of
        the sets only, are reported and retried.
        """
        while not self._stop.asked():
            try:
                refusals = self._start()
            except UnavailableError as error:
                self._say(error)
                self._pause()
                continue
            if refusals:
                # The first one last: it is what the attempts that follow report.
                for refusal in reversed(refusals):
                    self._say(refusal)
                self._wait = FIRST_WAIT
            else:
                self._well()
            notify(READY="1")
            if refusals:
                self._pause()
            break
        while not self._stop.asked():
            try:
                self._step()
            except AgentError as error:
                self._say(error)
                self._pause()
                continue
            self._well()
            self._stop.wait(max(0.05, self._next_due() - time.monotonic()))

    def _start(self) -> list[PathError]:
        """Write the sets and return what keeps some of them from it; raises the first refusal when it is all."""
        if not self._resume():
            self._log_in()
        refusals = self._read_kv()
        if self._kv:
            refusals += self._obtain_databases()
        if refusals and not any(self._is_whole(each) for each in self._config.sets):
            raise refusals[0]
        # Only now: an application of the old set can go on for as long as the start takes.
        keep = [each.name for each in self._config.sets]
        for name in files.remove_directories(self._directory, SET_NAME, keep):
            self._log(f"removed {name}")
        return refusals

    def _step(self) -> None:
        """Do what is due. What fails stays due, and does not keep the rest from being done."""
        now = time.monotonic()
        due: list[Callable[[], None]] = []
        if now >= self._renew_token_at:
            due.append(self._renew_token)
        if now >= self._read_kv_at:
            due.append(lambda: _raise_first(self._read_kv()))
        due += [partial(self._renew_database, path) for path, at in self._renew_lease_at.items() if now >= at]
        if self._missing():
            due.append(lambda: _raise_first(self._obtain_databases()))
        failure: AgentError | None = None
        for action in due:
            try:
                action()
            except TokenLostError:
                self._renew_token_at = 0.0
                self._log_in()
                self._read_kv_at = 0.0
                return
            except AgentError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _next_due(self) -> float:
        if self._missing():
            return 0.0
        return min(self._deadlines())

    def _deadlines(self) -> list[float]:
        return [self._renew_token_at, self._read_kv_at, *self._renew_lease_at.values()]

    # token

    def _log_in(self) -> None:
        """Get a new token. Database users end with the token they were made by, so new ones are needed."""
        self._vault = Vault(self._config)
        self._set_token(self._vault.login(self._credential))
        self._databases = {}
        self._renew_lease_at = {}
        self._save()

    def _renew_token(self) -> None:
        token = self._token
        if token is None or not token.renewable:
            raise TokenLostError("the token is not renewable; log in again")
        renewed = self._vault.renew_token(token)
        if renewed.ttl < WORTH_KEEPING * token.full:
            raise TokenLostError("the token has reached its longest life; log in again")
        self._set_token(renewed)

    def _set_token(self, token: Token) -> None:
        self._token = token
        self._renew_token_at = _renew_at(token.ttl) if token.full else float("inf")

    # settings

    def _read_kv(self) -> list[PathError]:
        """Read the KV settings of all sets and write what can be; returns what was refused, by set."""
        secrets = KvSecrets(self._vault)
        refusals: list[PathError] = []
        for each in self._config.sets:
            try:
                self._kv[each.name] = secrets.render(each)
            except PathError as error:
                self._kv.pop(each.name, None)
                refusals.append(error)
        self._write_sets()
        if not refusals:
            self._read_kv_at = time.monotonic() + self._config.poll_seconds
        return refusals

    def _missing(self) -> frozenset[str]:
        """The database paths without credentials."""
        return self._config.database_paths - self._databases.keys()

    def _obtain_databases(self) -> list[PathError]:
        """Get credentials where they are missing and write what can be; returns what was refused, by path.

        Raises the first UnavailableError when all paths have been tried.
        """
        refusals: list[PathError] = []
        unavailable: UnavailableError | None = None
        for path in sorted(self._missing()):
            try:
                self._new_database(path)
            except PathError as error:
                refusals.append(error)
            except UnavailableError as error:
                unavailable = unavailable or error
        self._write_sets()
        if unavailable is not None:
            raise unavailable
        return refusals

    def _new_database(self, path: str) -> None:
        credentials = self._vault.read_database(path)
        self._databases[path] = credentials
        self._renew_lease_at[path] = self._database_due(credentials, credentials.ttl)
        # Saved at once: what is not known after a crash stays in the database until its lease ends.
        self._save()

    def _renew_database(self, path: str) -> None:
        credentials = self._databases[path]
        ttl = None
        if credentials.lease_id and credentials.renewable:
            ttl = self._vault.renew_lease(credentials.lease_id)
        if ttl is not None and ttl >= WORTH_KEEPING * credentials.ttl:
            self._renew_lease_at[path] = self._database_due(credentials, ttl)
        else:
            self._new_database(path)
            self._write_sets()

    def _database_due(self, credentials: DatabaseCredentials, ttl: float) -> float:
        # Credentials of a static role have no lease: Vault changes their password, so they are read again.
        return _renew_at(ttl) if credentials.lease_id else time.monotonic() + self._config.poll_seconds

    def _has_databases(self, each: SettingSet) -> bool:
        return not each.database_paths - self._databases.keys()

    def _is_whole(self, each: SettingSet) -> bool:
        return each.name in self._kv and self._has_databases(each)

    def _write_sets(self) -> None:
        """Write what is known; a file that is there is better than one with settings left out."""
        for each in self._config.sets:
            directory = self._directory / each.name
            if not (self._is_whole(each) or directory.is_dir()):
                continue
            files.make_directory(directory)
            if each.name in self._kv:
                self._write(each, "kv.json", self._kv[each.name])
            if self._has_databases(each):
                settings = {}
                for setting in each.database:
                    credentials = self._databases[setting.path]
                    settings[setting.name] = setting.render(credentials.username, credentials.password)
                self._write(each, "db.json", settings)

    def _write(self, each: SettingSet, name: str, settings: dict[str, str]) -> None:
        if files.write_settings(self._directory / each.name / name, settings):
            self._log(f"wrote {each.name}/{name}: {', '.join(sorted(settings)) or 'nothing declared'}")

    # state across restarts

    def _save(self) -> None:
        token = self._token
        files.write(self._directory / TOKEN_FILE, token.value if token else "", files.STATE_MODE)
        state = {
            "address": self._config.address,
            "role_id": self._credential.role_id,
            "databases": {path: vars(credentials) for path, credentials in self._databases.items()},
        }
        files.write(self._directory / "state.json", files.to_json(state), files.STATE_MODE)

    def _resume(self) -> bool:
        """Take over token and leases of the process before this one; returns whether that was possible."""
        state = files.read_state(self._directory / "state.json")
        value = files.read_text(self._directory / TOKEN_FILE)
        same = (state.get("address"), state.get("role_id")) == (
            self._config.address,
            self._credential.role_id,
        )
        if not value or not same:
            return False
        self._vault = Vault(self._config, token=value)
        try:
            self._set_token(self._vault.look_up_token())
            self._renew_token()
            saved = state.get("databases", {})
            # All of them before the first renewal, which may save: none must be lost from the state file.
            self._databases = {
                path: DatabaseCredentials(**saved[path]) for path in sorted(self._config.database_paths & saved.keys())
            }
            self._renew_lease_at = dict.fromkeys(self._databases, 0.0)
            for path in sorted(self._databases):
                try:
                    self._renew_database(path)
                except PathError:
                    # Missing from now on, so that it counts as refused with what the start cannot obtain.
                    del self._databases[path], self._renew_lease_at[path]
        except TokenLostError:
            return False
        except TypeError:
            # written by another version of the agent
            return False
        return True

    # what is the matter

    def _say(self, error: AgentError) -> None:
        text = str(error)
        if text != self._trouble:
            self._log(text)
        self._trouble = text
        self._tell(text)

    def _well(self) -> None:
        if self._trouble:
            self._log("all is well again")
        self._trouble = ""
        self._wait = FIRST_WAIT
        self._tell(f"ok, {self._config.count} settings")

    def _tell(self, status: str) -> None:
        if status != self._status:
            notify(STATUS=status)
        self._status = status

    def _pause(self) -> None:
        now = time.monotonic()
        jittered = self._wait * random.uniform(0.8, 1.0)  # noqa: S311 (no secret is made of it)
        # What has failed is overdue; what has not must not wait for it.
        self._stop.wait(min([jittered, *(at - now for at in self._deadlines() if at > now)]))
        self._wait = min(2 * self._wait, LONGEST_WAIT)


class KvSecrets:
    """Secrets as they are at one moment: each place is read once, whatever the number of its settings."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._secrets: dict[str, dict[str, Any]] = {}

    def render(self, each: SettingSet) -> dict[str, str]:
        """Return the KV settings of a set, name to text; raises AgentError."""
        settings: dict[str, str] = {}
        for setting in each.kv:
            if setting.place not in self._secrets:
                self._secrets[setting.place] = self._vault.read_kv(setting)
            settings[setting.name] = setting.render(value_of(setting, self._secrets[setting.place]))
        return settings


def value_of(setting: KvSetting, secret: dict[str, Any]) -> str:
    """Return the value of the setting's key in `secret`; raises PathError."""
    if setting.key not in secret:
        present = ", ".join(sorted(secret)) or "none"
        raise PathError(
            f"{setting.place} has no key {setting.key!r} (for {setting.name}), only: {present}; "
            f"add it: vault kv patch {setting.place} {setting.key}=..."
        )
    value = secret[setting.key]
    if not isinstance(value, str):
        raise PathError(
            f"the key {setting.key!r} of {setting.place} (for {setting.name}) is not a string; write it as one"
        )
    return value


def _raise_first(refusals: list[PathError]) -> None:
    if refusals:
        raise refusals[0]


def _renew_at(ttl: float) -> float:
    return time.monotonic() + ttl * random.uniform(*RENEW_AT)  # noqa: S311 (no secret is made of it)
