"""The agent at work: obtain every declared setting, write the files, keep both alive and current.

One thread, one loop. What was written stays until something newer is known: while Vault is away, the
applications go on with what they have. Sets share what they read from the same place in Vault, and what is wrong
with one of them does not keep the others from being written. A set appears as a whole: until everything in it has
been read once it has no directory, so that its readers find it missing and not empty.
"""

import contextlib
import hashlib
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
    EnrolmentError,
    PathError,
    TokenLostError,
    UnavailableError,
)
from bareforge_agent.leases import WORTH_KEEPING, Leases, renew_at
from bareforge_agent.notify import notify
from bareforge_agent.status import Status, publish
from bareforge_agent.stop import Stop
from bareforge_agent.vault import Token, Vault

# Seconds between attempts while Vault is not available: 1, 2, 4, 5, 5, ...
FIRST_WAIT, LONGEST_WAIT = 1.0, 5.0
# Seconds until a login that was refused is tried again. Vault locks an identity out for 15 min after 5 refused logins,
# which it forgets after 15 min without one (user lockout): the secret_id that enrolment gives would be refused too.
REFUSED_WAIT = 20 * 60.0


class Keeper:
    """Keeps the sets of `config` in directories of `directory`.

    `log` is given one line at each change of what is the matter. `stop` ends `run`. public: directory for what
    everybody may know of the agent; None is nowhere. patient: wait where the login is refused, else `run` raises.
    """

    def __init__(
        self,
        config: Config,
        credential: Credential,
        directory: Path,
        stop: Stop,
        log: Callable[[str], None],
        public: Path | None = None,
        patient: bool = True,
    ) -> None:
        self._patient = patient
        self._public = public
        self._logins = 0
        self._token_end = 0.0
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
        self._refusal: UnavailableError | None = None
        self._refused_until = 0.0
        # Tokens of a secret_id that was replaced, and when they are revoked, by time.monotonic()
        self._former: dict[str, float] = {}
        # By set name; a set whose secrets are refused is not in it.
        self._kv: dict[str, dict[str, str]] = {}
        self._leases = Leases(
            config.database_paths, config.poll_seconds, config.grace_seconds, save=self._save, log=log
        )
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
            self._publish()
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
        if self._stop.take_renewal():
            self._log("asked for new users of the database")
            self._leases.replace_all()
        now = time.monotonic()
        due: list[Callable[[], None]] = []
        if now >= self._renew_token_at:
            due.append(self._renew_token)
        if now >= self._read_kv_at:
            due.append(lambda: _raise_first(self._read_kv()))
        due += [partial(self._keep_leases, action) for action in self._leases.due(self._vault, now)]
        due += [partial(self._revoke_former, value) for value, at in self._former.items() if now >= at]
        if self._leases.missing():
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
        if self._leases.missing():
            return 0.0
        return min(self._deadlines())

    def _deadlines(self) -> list[float]:
        return [self._renew_token_at, self._read_kv_at, *self._leases.deadlines(), *self._former.values()]

    # token

    def _log_in(self) -> None:
        """Get a new token. Database users end with the token they were made by, so new ones are needed.

        A refusal is one of the things that may pass, and raised again, without a login, until REFUSED_WAIT is over.
        """
        if self._refusal is not None and time.monotonic() < self._refused_until:
            raise self._refusal
        self._vault = Vault(self._config)
        try:
            self._set_token(self._vault.login(self._credential))
        except EnrolmentError as error:
            if not self._patient:
                raise
            minutes = f"{REFUSED_WAIT / 60:.0f} min"
            self._refusal = UnavailableError(
                f"{error}; the next attempt is in {minutes}, or now: systemctl restart bareforge-agent"
            )
            self._refused_until = time.monotonic() + REFUSED_WAIT
            raise self._refusal from None
        self._refusal = None
        self._logins += 1
        self._leases.forget()
        self._save()

    def _renew_token(self) -> None:
        token = self._token
        if token is None or not token.renewable:
            raise TokenLostError("the token is not renewable; log in again")
        renewed = self._vault.renew_token(token)
        if renewed.ttl < WORTH_KEEPING * token.full:
            raise TokenLostError("the token has reached its longest life; log in again")
        self._set_token(renewed)

    def _revoke_former(self, value: str) -> None:
        """End a token, and with it the users of the database that it has made: their readers have moved by now."""
        with contextlib.suppress(TokenLostError):
            Vault(self._config, token=value).revoke_token()
        del self._former[value]
        self._save()

    def _set_token(self, token: Token) -> None:
        self._token = token
        self._renew_token_at = renew_at(token.ttl) if token.full else float("inf")
        self._token_end = time.time() + token.ttl if token.full else 0.0

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

    def _obtain_databases(self) -> list[PathError]:
        """Get credentials where they are missing and write what can be; returns what was refused, by path.

        Raises the first UnavailableError when all paths have been tried.
        """
        refusals: list[PathError] = []
        unavailable: UnavailableError | None = None
        for path in sorted(self._leases.missing()):
            try:
                self._leases.obtain(self._vault, path)
            except PathError as error:
                refusals.append(error)
            except UnavailableError as error:
                unavailable = unavailable or error
        self._write_sets()
        if unavailable is not None:
            raise unavailable
        return refusals

    def _keep_leases(self, action: Callable[[], bool]) -> None:
        if action():
            self._write_sets()

    def _has_databases(self, each: SettingSet) -> bool:
        return not each.database_paths & self._leases.missing()

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
                    credentials = self._leases[setting.path]
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
            "secret_id": _fingerprint(self._credential.secret_id),
            "former": {value: time.time() + at - time.monotonic() for value, at in self._former.items()},
            **self._leases.state(),
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
        now, epoch = time.monotonic(), time.time() - time.monotonic()
        latest = now + self._config.grace_seconds
        self._former = {former: min(at - epoch, latest) for former, at in state.get("former", {}).items()}
        if state.get("secret_id", "") not in ("", _fingerprint(self._credential.secret_id)):
            # whoever knew the secret_id from before may have made such a token too: it ends with the secret_id
            self._former[value] = latest
            return False
        self._vault = Vault(self._config, token=value)
        try:
            self._set_token(self._vault.look_up_token())
            self._renew_token()
            self._leases.take_over(self._vault, state)
        except TokenLostError:
            return False
        except TypeError:
            # written by another version of the agent
            return False
        # an older one has not kept which secret_id the token is of
        self._save()
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
            self._publish()

    def _publish(self) -> None:
        if self._public is not None:
            publish(
                self._public,
                Status(
                    well=not self._trouble,
                    text=self._status,
                    settings=self._config.count,
                    logins=self._logins,
                    token_end=round(self._token_end),
                    lease_ends={path: round(end) for path, end in self._leases.ends().items()},
                ),
            )

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
        self._secrets: dict[tuple[str, int | None], dict[str, Any]] = {}

    def render(self, each: SettingSet) -> dict[str, str]:
        """Return the KV settings of a set, name to text; raises AgentError."""
        settings: dict[str, str] = {}
        for setting in each.kv:
            place = setting.place, setting.version
            if place not in self._secrets:
                self._secrets[place] = self._vault.read_kv(setting)
            settings[setting.name] = setting.render(value_of(setting, self._secrets[place]))
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


def _fingerprint(secret_id: str) -> str:
    return hashlib.sha256(secret_id.encode()).hexdigest()


def _raise_first(refusals: list[PathError]) -> None:
    if refusals:
        raise refusals[0]
