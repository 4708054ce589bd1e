"""Which release this process runs, resolved once at import: `current` may point elsewhere a minute later."""

from typing import Final

DEVELOPMENT: Final = "development"


def _resolve() -> str:
    try:
        from bareforge_runtime import release
    except ModuleNotFoundError as error:
        # only a runtime that is not installed means development; a broken one must be heard
        if error.name not in {"bareforge_runtime", "bareforge_runtime.release"}:
            raise
        return DEVELOPMENT
    return release.current().id


RELEASE_ID: Final = _resolve()
