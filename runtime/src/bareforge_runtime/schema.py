"""What the application declares about its database: entry points of the group "bareforge".

[project.entry-points.bareforge]
schema-head = "shop.migrate:head"        () -> str: the revision that this code expects; asks nobody
schema-blocks = "shop.migrate:blocks"    (older head) -> str: "" or the revision that code with that head cannot
                                         live with; may ask the database
"""

from importlib.metadata import entry_points

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
    for entry in entry_points(group=GROUP, name=name):
        try:
            return str(entry.load()(*arguments))
        except (Exception, SystemExit) as error:
            raise SchemaError(
                f"the entry point {name} ({entry.value}) failed: {one_line(error)}; correct it in the application"
            ) from None
    return ""
