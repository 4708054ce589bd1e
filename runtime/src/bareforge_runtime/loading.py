"""Importing an application as gunicorn does, and saying in one line why that failed."""

import sys
from collections.abc import Callable
from typing import Any

from gunicorn import util
from gunicorn.errors import AppImportError


def load(reference: str) -> Any:
    """Return the application that `reference` ("module:attribute" or "module:factory()") names.

    Raises whatever the import raises, or AppImportError.
    """
    import_app: Callable[[str], Any] = util.import_app
    return import_app(reference)


def explain(error: BaseException, reference: str) -> str:
    """Return `cause; cure` for an exception that `load(reference)` raised."""
    module, _, attribute = reference.partition(":")
    check = f"check asgi_app_module ({reference!r})"
    if isinstance(error, ModuleNotFoundError) and _is_package_or_parent(error.name, module):
        return f"cannot import module {module!r}: {error}; {check}"
    if isinstance(error, AppImportError):
        name = attribute.partition("(")[0] or "application"
        if module in sys.modules and name.isidentifier() and not hasattr(sys.modules[module], name):
            return f"module {module!r} has no attribute {name!r}; {check}"
        return f"{one_line(error)}; {check}"
    return (
        f"the application refuses to start: {one_line(error)}; "
        "fix the named setting or the application and deploy again"
    )


def one_line(error: BaseException) -> str:
    """Return the text of `error` on one line, or its class name if there is no text."""
    validation = _validation_text(error)
    text = " ".join((validation or str(error)).split())
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError):
        text = f"KeyError: {text}"
    return text


def _is_package_or_parent(missing: str | None, module: str) -> bool:
    """Whether the module that was not found is the asked-for one or a package on the way to it."""
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _validation_text(error: BaseException) -> str:
    """Return "setting: problem, ..." for a pydantic validation error, else an empty string.

    Its own text quotes parts of the rejected input, which may be a secret, and spreads over many lines.
    """
    if type(error).__module__.partition(".")[0] not in ("pydantic", "pydantic_core"):
        return ""
    details = getattr(error, "errors", None)
    if not callable(details):
        return ""
    problems = details(include_url=False, include_context=False, include_input=False)
    return ", ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
