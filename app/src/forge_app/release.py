"""Which release this process runs, resolved once at import: `current` may point elsewhere a minute later."""

from typing import Final

from bareforge_runtime import release

RELEASE_ID: Final = release.current().id
