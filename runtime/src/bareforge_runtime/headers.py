"""A response header that says which release answered, on which host, in which process."""

import os
import re
import socket

VARIABLE = "BAREFORGE_RELEASE_HEADER"

# The characters of a token (RFC 9110, 5.6.2), which a header's name is.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def release_header(release_id: str) -> list[tuple[str, str]]:
    """Return the header of this process, [(name, "ID; host=HOST; pid=PID")], or [] where none is asked for.

    Raises ValueError, `cause; cure`, when the name in the environment cannot be one.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        return []
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{VARIABLE} is {name!r}; set it to the name of a header, such as X-Release")
    return [(name, f"{release_id}; host={socket.gethostname()}; pid={os.getpid()}")]
