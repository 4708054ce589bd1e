"""What the application declares about its database: entry points of the group "bareforge".

[project.entry-points.bareforge]
schema-head = "shop.migrate:head"        () -> str: the revision that this code expects; asks nobody
schema-blocks = "shop.migrate:blocks"    (older head) -> str: "" or the revision of the database that code with that
                                         head cannot live with; may ask the database
"""

import contextlib
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points

from bareforge_runtime.loading import one_line

GROUP = "bareforge"


class SchemaError(Exception):
    """An entry point cannot be used. The text is one line, `cause; cure`."""


def head() -> str:
    """Return the revision that this release expects, empty if it declares none. Raises SchemaError."""
    return _call("schema-head")


def blocks(older: str) -> str:
    """Return the database's revision that code expecting `older` cannot live with, empty if there is none.

    Raises SchemaError.
    """
    return _call("schema-blocks", older)


def _call(name: str, *arguments: str) -> str:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        return ""
    if len(found) > 1:
        several = ", ".join(sorted(entry.value for entry in found))
        raise SchemaError(f"several packages declare the entry point {name} ({several}); only the application may")
    return _call_one(found[0], *arguments)


def _call_one(entry: EntryPoint, *arguments: str) -> str:
    called = f"the entry point {entry.name} ({entry.value})"
    cure = "correct it in the application"
    try:
        # the answer is all that standard output may carry
        with contextlib.redirect_stdout(sys.stderr):
            function = entry.load()
            revision = function(*arguments)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise SchemaError(f"{called} failed: {one_line(error)}; {cure}") from None
    if not isinstance(revision, str) or "\n" in revision.strip():
        raise SchemaError(f"{called} failed: it did not return one line of text; {cure}")
    return revision.strip()
