"""The database users that the sets are made of: one for each path in Vault, kept alive, replaced before its end.

One that was replaced stays for a grace period, in which its readers move to the new one, and is then removed. What a
lease's time to live promises does not hold when somebody revokes it, so it is asked for as often as KV secrets are.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bareforge_agent.errors import PathError
from bareforge_agent.vault import DatabaseCredentials, Vault

# Share of the time to live after which to renew, with jitter so that hosts do not all come at once.
RENEW_AT = (0.35, 0.45)
# A renewal that gives less than this share of the full time to live says that the end is near.
WORTH_KEEPING = 0.9
# A replaced user stays no longer than this share of its time to live. It has been there for up to 0.45 of it, plus what
# it takes to make the new one; two periods of grace have to fit into the rest (where they did not, 4 to 5 of 8,000
# requests failed).
GRACE_SHARE = 0.25


@dataclass(frozen=True)
class Retired:
    """A lease to be revoked at `at`, by time.monotonic()."""

    lease_id: str
    at: float


class Leases:
    """Credentials by path. `save` is called when there is something that a crash must not lose.

    poll: seconds between two looks whether a lease is still there. grace: seconds that a replaced user stays, at most.
    """

    def __init__(
        self,
        paths: Iterable[str],
        poll: float,
        grace: float,
        save: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._paths = frozenset(paths)
        self._poll = poll
        self._grace = grace
        self._save = save
        self._log = log
        self._credentials: dict[str, DatabaseCredentials] = {}
        self._ends: dict[str, float] = {}
        self._renew_at: dict[str, float] = {}
        self._probe_at: dict[str, float] = {}
        self._retired: list[Retired] = []
        self._unwanted: set[str] = set()

    def __getitem__(self, path: str) -> DatabaseCredentials:
        return self._credentials[path]

    def ends(self) -> dict[str, float]:
        """When leases end unless they are renewed, by path; seconds since the epoch."""
        return {path: end for path, end in self._ends.items() if path in self._credentials}

    def missing(self) -> frozenset[str]:
        """The paths without credentials."""
        return self._paths - self._credentials.keys()

    def forget(self) -> None:
        """Begin anew: users end with the token that they were made by, those to be removed too."""
        self._credentials, self._renew_at, self._probe_at, self._retired = {}, {}, {}, []
        self._unwanted = set()

    def replace_all(self) -> None:
        """Let all credentials be replaced, though there is nothing wrong with them."""
        self._unwanted = set(self._credentials)

    def obtain(self, vault: Vault, path: str) -> None:
        """Get new credentials, also where there are some: those are retired. Raises AgentError, nothing changed."""
        credentials = vault.read_database(path)
        before = self._credentials.get(path)
        if before is not None and before.lease_id:
            grace = min(self._grace, GRACE_SHARE * before.ttl)
            self._retired.append(Retired(before.lease_id, time.monotonic() + grace))
        self._credentials[path] = credentials
        self._renew_at[path] = self._due(credentials, credentials.ttl)
        self._note_end(path, credentials, credentials.ttl)
        self._probe_at[path] = time.monotonic() + self._poll
        self._unwanted.discard(path)
        # Saved at once: what is not known after a crash stays in the database until its lease ends.
        self._save()

    def due(self, vault: Vault, now: float) -> list[Callable[[], bool]]:
        """What has to be done by `now`, time.monotonic(); each says whether there are new credentials to be written."""
        actions: list[Callable[[], bool]] = []
        actions += [partial(self._replace, vault, path) for path in sorted(self._unwanted)]
        actions += [partial(self.renew, vault, path) for path, at in self._renew_at.items() if now >= at]
        actions += [partial(self._probe, vault, path) for path, at in self._probe_at.items() if now >= at]
        actions += [partial(self._revoke, vault, retired) for retired in self._retired if now >= retired.at]
        return actions

    def deadlines(self) -> list[float]:
        """When something is due, by time.monotonic()."""
        now = [0.0] if self._unwanted else []
        return [*now, *self._renew_at.values(), *self._probe_at.values(), *(retired.at for retired in self._retired)]

    def renew(self, vault: Vault, path: str) -> bool:
        """Prolong a lease, or get new credentials where that gives too little; returns whether they are new."""
        credentials = self._credentials[path]
        ttl = None
        if credentials.lease_id and credentials.renewable:
            ttl = vault.renew_lease(credentials.lease_id)
        if ttl is not None and ttl >= WORTH_KEEPING * credentials.ttl:
            self._renew_at[path] = self._due(credentials, ttl)
            self._note_end(path, credentials, ttl)
            return False
        self.obtain(vault, path)
        return True

    def _replace(self, vault: Vault, path: str) -> bool:
        self.obtain(vault, path)
        return True

    def _probe(self, vault: Vault, path: str) -> bool:
        """Get new credentials where the lease is gone before its time."""
        lease_id = self._credentials[path].lease_id
        lost = bool(lease_id) and not vault.has_lease(lease_id)
        if lost:
            self._log(f"the lease of {path} was revoked; getting new credentials")
            self.obtain(vault, path)
        self._probe_at[path] = time.monotonic() + self._poll
        return lost

    def _revoke(self, vault: Vault, retired: Retired) -> bool:
        """Remove a user whose grace is over; where that is refused it goes when its lease ends."""
        try:
            vault.revoke_lease(retired.lease_id)
        except PathError as error:
            self._log(f"a replaced user of the database stays until its lease ends: {error}")
        self._retired.remove(retired)
        self._save()
        return False

    def _due(self, credentials: DatabaseCredentials, ttl: float) -> float:
        # Credentials of a static role have no lease: Vault changes their password, so they are read again.
        return renew_at(ttl) if credentials.lease_id else time.monotonic() + self._poll

    def _note_end(self, path: str, credentials: DatabaseCredentials, ttl: float) -> None:
        if credentials.lease_id:
            self._ends[path] = time.time() + ttl

    # state across restarts

    def state(self) -> dict[str, Any]:
        """What take_over() needs, for JSON: with the credentials, and moments as seconds since the epoch."""
        epoch = time.time() - time.monotonic()
        return {
            "databases": {path: asdict(credentials) for path, credentials in self._credentials.items()},
            "retired": {retired.lease_id: epoch + retired.at for retired in self._retired},
        }

    def take_over(self, vault: Vault, state: dict[str, Any]) -> None:
        """Go on with the leases of the process before this one. Raises TokenLostError, TypeError for another state."""
        saved = state.get("databases", {})
        # All of them before the first renewal, which may save: none must be lost from the state file.
        self._credentials = {path: DatabaseCredentials(**saved[path]) for path in sorted(self._paths & saved.keys())}
        now, epoch = time.monotonic(), time.time() - time.monotonic()
        # whatever the clock has done meanwhile: never later than after a whole grace period from now
        self._retired = [
            Retired(lease_id, min(at - epoch, now + self._grace)) for lease_id, at in state.get("retired", {}).items()
        ]
        self._renew_at = dict.fromkeys(self._credentials, 0.0)
        self._probe_at = dict.fromkeys(self._credentials, now + self._poll)
        for path in sorted(self._credentials):
            try:
                self.renew(vault, path)
            except PathError:
                # Missing from now on, so that it counts as refused with what the start cannot obtain.
                del self._credentials[path], self._renew_at[path], self._probe_at[path]


def renew_at(ttl: float) -> float:
    """When to renew what lives for `ttl` seconds, by time.monotonic()."""
    return time.monotonic() + ttl * random.uniform(*RENEW_AT)  # noqa: S311 (no secret is made of it)
