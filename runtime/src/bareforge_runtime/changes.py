"""Secrets that change while the application serves: it hears of them in its lifespan and moves to them by itself.

    async with changes.followed(move):
        yield

No signal, no reload: the agent replaces its files as a whole, and a worker looks at their times twice a second. One
whose application does not follow them is replaced when the database credentials change, for those it has will end.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bareforge_runtime import secrets

log = logging.getLogger(__name__)

POLL = 0.5
"""Seconds between two looks. One look is two calls of stat on a file system in memory."""

WAITS = (1.0, 2.0, 5.0)
"""Seconds before another attempt to move to secrets that did not work; the last one again and again."""

DATABASE = "db.json"
"""The file whose settings end by themselves; others stay valid until somebody means to change them, and reloads."""

Signature = tuple[tuple[int, int], ...]

# How many blocks of followed() this process is in.
_followers = 0


@asynccontextmanager
async def followed(apply: Callable[[dict[str, str]], Awaitable[object]], poll: float = POLL) -> AsyncIterator[None]:
    """Call `apply` with all settings, {name: value}, each time the agent has written others, until the block is left.

    `os.environ` has the new values then. An `apply` that raises is logged with the type of its error only, since its
    text may hold a secret, and called again after 1, 2, 5, 5, ... seconds: what it had before must go on working
    meanwhile. Without a directory of secrets nothing is followed.
    """
    global _followers
    directory = os.environ.get(secrets.DIRECTORY_VARIABLE, "")
    if not directory:
        yield
        return
    # before the application goes on: what changes while it starts is a change too
    following = asyncio.create_task(_follow(Path(directory), _known(Path(directory)), apply, poll))
    _followers += 1
    try:
        yield
    finally:
        _followers -= 1
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _follow(
    directory: Path, known: Signature, apply: Callable[[dict[str, str]], Awaitable[object]], poll: float
) -> None:
    attempts = 0
    while True:
        await asyncio.sleep(WAITS[min(attempts, len(WAITS)) - 1] if attempts else poll)
        # before they are read: what is written meanwhile makes a difference the next time
        found = signature(directory)
        if found == known and not attempts:
            continue
        try:
            changed = secrets.changed(directory)
            if changed:
                log.info("the secrets have changed: %s", ", ".join(changed))
            await apply(secrets.load_into_environment())
        except secrets.SecretsError as error:
            log.warning("the secrets have changed and cannot be used, those from before stay in use: %s", error)
            attempts += 1
        except Exception as error:
            log.warning(
                "moving to the changed secrets failed, those from before stay in use, another attempt follows: %s",
                type(error).__name__,
            )
            attempts += 1
        else:
            if attempts:
                log.info("moved to the changed secrets")
            known, attempts = found, 0


class Outdated:
    """Whether this process has other database credentials than the agent's file, and nothing in it that follows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: Signature = ()

    def __call__(self) -> bool:
        """Look; cheap while the file is the same."""
        found = signature(self._directory, (DATABASE,))
        if _followers or found == self._seen:
            return False
        self._seen = found
        try:
            return bool(secrets.changed(self._directory, (DATABASE,)))
        except secrets.SecretsError:
            # a new worker could not start with it either
            return False


def signature(directory: Path, names: Sequence[str] = secrets.FILES) -> Signature:
    """What tells one state of the files from another: each is replaced as a whole, so inode and time change."""
    found = []
    for name in names:
        try:
            status = (directory / name).stat()
        except OSError:
            continue
        found.append((status.st_ino, status.st_mtime_ns))
    return tuple(found)


def _known(directory: Path) -> Signature:
    """The signature of what this process has loaded; of nothing at all where the files are others by now."""
    found = signature(directory)
    try:
        return () if secrets.changed(directory) else found
    except secrets.SecretsError:
        return ()
