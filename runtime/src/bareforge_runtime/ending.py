"""How a command ends: one line that says the cause and the cure, last on standard error."""

import os
import sys
from typing import NoReturn

from bareforge_runtime.redact import Redactor


def end(cause_and_cure: str, redact: Redactor, details: str = "", code: int = 1) -> NoReturn:
    """Write `details` and the line to standard error, without secret values, and end the process at once.

    At once, because threads that an application has started would otherwise keep the process alive.
    Callable from any thread.
    """
    text = f"{details}\nbareforge-runtime: {cause_and_cure}\n" if details else f"bareforge-runtime: {cause_and_cure}\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, redact(text).encode())
    os._exit(code)
