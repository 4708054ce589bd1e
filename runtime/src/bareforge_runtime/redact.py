"""Secret values never reach an output: every text that leaves the process through here has them replaced."""

import io
import json
import logging
import re
from collections.abc import Iterable
from typing import TextIO
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"

# Shorter values are flags and small numbers: masking them would shred ordinary text and hide nothing.
SHORTEST = 4

# pydantic quotes the rejected input, shortened in the middle, so that no complete value is there to be found.
_PYDANTIC_INPUT = re.compile(r"input_value=.*?, input_type=", re.DOTALL)


class Redactor:
    """Replaces secret values, in every spelling in which they may turn up, by `***`."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._spellings: set[str] = set()
        self.add(values)

    def add(self, values: Iterable[str]) -> None:
        """Also replace these values from now on."""
        for value in values:
            self._spellings |= _spellings(value)
        if self._spellings:
            longest_first = sorted(self._spellings, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> str:
        """Return `text` without secret values."""
        text = _PYDANTIC_INPUT.sub(f"input_value={MASK}, input_type=", text)
        return text if self._pattern is None else self._pattern.sub(MASK, text)


class RedactingStream(io.TextIOBase):
    """A text stream that writes to another one, without secret values.

    last_line: the last complete line written that was not empty.
    """

    def __init__(self, stream: TextIO, redact: Redactor) -> None:
        super().__init__()
        self._stream = stream
        self._redact = redact
        self._unfinished = ""
        self.last_line = ""

    def write(self, text: str) -> int:
        """Write `text` without secret values; returns how much of `text` was taken: all of it."""
        shown = self._redact(text)
        self._stream.write(shown)
        *lines, self._unfinished = (self._unfinished + shown).split("\n")
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the descriptor of the stream underneath."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream underneath is a terminal."""
        return self._stream.isatty()


class RedactingFormatter(logging.Formatter):
    """A log formatter that removes secret values from what another formatter made, tracebacks included."""

    def __init__(self, formatter: logging.Formatter | None, redact: Redactor) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of the record, without secret values."""
        return self._redact(self._formatter.format(record))


def _spellings(value: str) -> set[str]:
    parts = {value}
    try:
        password = urlsplit(value).password
    except ValueError:
        password = None
    if password:
        parts |= {password, unquote(password)}
    spellings = set()
    for part in parts:
        spellings |= {part, quote(part), quote(part, safe=""), quote_plus(part)}
        # as repr() and JSON show it inside of quotes
        spellings |= {repr(part)[1:-1], json.dumps(part)[1:-1]}
    return {spelling for spelling in spellings if len(spelling) >= SHORTEST}
