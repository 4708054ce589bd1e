"""Records of requests, kept in columns: about 30 bytes each, so that an hour at the highest rate fits into memory."""

from array import array
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from witness.plan import FAST

Value = TypeVar("Value")


class Event(NamedTuple):
    """Something that happened: `at` is seconds since the start."""

    at: float
    name: str


class Release(NamedTuple):
    """Who answered, as the release header says; None for what it does not say."""

    release: str | None = None
    host: str | None = None
    pid: int | None = None


class Record(NamedTuple):
    """One request.

    `at` is seconds from the start to when it was due (to when it was sent if that was up to 1 ms earlier), `ms` the
    milliseconds from then to the end of the answer. `connection` is "new" or "keep-alive". `status` and `failure` can
    both be set: a 200 that broke off.
    """

    at: float
    ms: float
    stream: str
    target: str
    connection: str
    status: int | None
    failure: str | None
    release: str | None
    host: str | None
    pid: int | None

    @property
    def fast(self) -> bool:
        """Whether the request was one of a fast stream."""
        return self.stream in FAST


class _Numbered(Generic[Value]):
    """Gives equal values the same small number."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._numbers: dict[Value, int] = {}

    def number(self, value: Value) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Records:
    """A sequence of Record in the order in which requests ended; `failed` of them have a failure.

    One thread may add while others read.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._at = array("d")
        self._ms = array("d")
        self._origin = array("H")
        self._status = array("H")
        self._failure = array("H")
        self._release = array("L")
        self._origins: _Numbered[tuple[str, str, str]] = _Numbered()
        self._failures: _Numbered[str | None] = _Numbered()
        self._releases: _Numbered[Release] = _Numbered()

    def add(self, record: Record) -> None:
        """Add one request; `release` comes last so that its length counts only whole records."""
        self.failed += record.failure is not None
        self._at.append(record.at)
        self._ms.append(record.ms)
        self._origin.append(self._origins.number((record.stream, record.target, record.connection)))
        self._status.append(record.status or 0)
        self._failure.append(self._failures.number(record.failure))
        self._release.append(self._releases.number(Release(record.release, record.host, record.pid)))

    def __len__(self) -> int:
        return len(self._release)

    def __getitem__(self, index: int) -> Record:
        return Record(
            self._at[index],
            self._ms[index],
            *self._origins.values[self._origin[index]],
            self._status[index] or None,
            self._failures.values[self._failure[index]],
            *self._releases.values[self._release[index]],
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))


def parse_release(header: str) -> Release:
    """Return what a header such as `r1; host=app1; pid=42` says; what is missing or no number is None."""
    release, *parameters = (part.strip() for part in header.split(";"))
    named = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
    pid = named.get("pid", "")
    return Release(release or None, named.get("host"), int(pid) if pid.isascii() and pid.isdecimal() else None)
