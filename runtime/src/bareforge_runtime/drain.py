"""How long a worker that was told to stop goes on serving the connections it has."""

import math
import os

VARIABLE = "BAREFORGE_DRAIN_SECONDS"


def seconds(default: float) -> float:
    """Return what the environment says, or else the default; raises ValueError where it is no number of seconds."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return default
    try:
        given = float(text)
    except ValueError:
        given = math.nan
    if not 0 <= given < math.inf:
        raise ValueError(f"{VARIABLE} is {text!r}; set it to a number of seconds, such as 0.25")
    return given
