"""Hand a socket that systemd holds to the next master (gunicorn's `pre_exec` hook).

gunicorn 27 moves such a listener away from descriptor 3 and closes 3, but tells the next master to look for it there
(LISTEN_FDS), which then dies with "Bad file descriptor". The hook runs in the forked child, just before the exec.
"""

import fcntl
import os
from typing import Any

FIRST = 3  # SD_LISTEN_FDS_START
ASIDE = 64  # beyond any number of listeners


def keep_listeners(arbiter: Any) -> None:
    """Put the listeners back to descriptors 3, 4, ... and close the places where they were; else do nothing."""
    if not arbiter.systemd:
        return
    # above every target first: a listener may stand where another one has to go; closed by the exec
    moved = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, ASIDE) for listener in arbiter.LISTENERS]
    for listener in arbiter.LISTENERS:
        os.set_inheritable(listener.fileno(), False)
    for target, descriptor in enumerate(moved, FIRST):
        os.dup2(descriptor, target, inheritable=True)
