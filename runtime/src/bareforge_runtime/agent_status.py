"""Whether the secrets of this process are kept current, for a probe: what the agent says of itself.

Not a reason to be unready: while Vault is away, everything that is valid goes on serving.
"""

import json
import os
from pathlib import Path

from bareforge_runtime.secrets import DIRECTORY_VARIABLE


def file_of(secrets: Path) -> Path:
    """Where the agent tells its status; secrets: the directory of a set, as BAREFORGE_SECRETS names it."""
    return secrets.parent.with_name(f"{secrets.parent.name}-status") / "status.json"


def secrets_status() -> str:
    """One word: ok, trouble where the agent cannot keep the secrets current, none where there are none, unknown.

    In one word, since whoever asks may be anybody: what the matter is says `systemctl status bareforge-agent`.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE, "")
    if not directory:
        return "none"
    try:
        well = json.loads(file_of(Path(directory)).read_text(encoding="utf-8"))["well"]
    except (OSError, ValueError, KeyError, TypeError):
        # another program may write the secrets
        return "unknown"
    return "ok" if well is True else "trouble"
