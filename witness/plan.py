"""What the witness is to do: targets, streams, rates and limits. Pure; everything wrong is refused here."""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAXIMUM_RATE = 1000
MAXIMUM_TARGETS = 16
MAXIMUM_IN_FLIGHT = 2000
MAXIMUM_SECONDS = 3600
MAXIMUM_BODY = 65536
STREAMS = ("get fast", "post fast", "get slow", "post slow", "get stream")
FAST = frozenset({"get fast", "post fast"})
CONNECTIONS = ("keep-alive", "new", "both")


class PlanError(ValueError):
    """A plan that cannot be carried out; the message is one line, `cause; cure`."""


@dataclass(frozen=True)
class Target:
    """Where requests of one base URL go.

    `url` is what records call it, `path` the prefix of every request path. Exactly one of `host` (a name or an IP
    address, with `port`) and `socket` (path of a unix socket) is set. `header` is the Host header, `server_name`
    what TLS asks for, empty without TLS.
    """

    url: str
    path: str
    header: str
    server_name: str = ""
    host: str = ""
    port: int = 0
    socket: str = ""


@dataclass(frozen=True)
class Stream:
    """Requests of one kind: `rate` per second on each target; `path` begins with "/"."""

    name: str
    method: str
    path: str
    rate: float


@dataclass(frozen=True)
class Plan:
    """What to send where, and when to stop.

    `rate` (requests per second on each target) is shared by the two fast streams, `slow_rate` is that of each other
    stream; a stream whose path is None is not run. `body` is the JSON text of every POST; with `echo` it must be an
    object, gets a unique number as "id", and the answer must carry the same "id". `timeout`, `steady` and `seconds`
    are seconds. `expect`, two releases (old, new), turns the checker on. Raises PlanError.
    """

    urls: tuple[str, ...]
    get: str | None = "/health"
    post: str | None = None
    slow: str | None = None
    slow_post: str | None = None
    stream: str | None = None
    body: str = "{}"
    echo: bool = False
    rate: float = 50
    slow_rate: float = 5
    connections: str = "both"
    host: str = ""
    ca: str = ""
    timeout: float = 30
    seconds: float = MAXIMUM_SECONDS
    steady: float = 5
    stall_factor: float = 2
    release_header: str = "X-Release"
    expect: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.urls:
            raise PlanError("there is no target; name one with --url https://HOST:PORT")
        if len(self.urls) > MAXIMUM_TARGETS:
            raise PlanError(f"{len(self.urls)} targets are more than {MAXIMUM_TARGETS}; leave some out")
        if len(set(self.urls)) < len(self.urls):
            raise PlanError("a target is named twice; name each once and raise --rate")
        numbers = {
            "rate": (self.rate, MAXIMUM_RATE),
            "slow-rate": (self.slow_rate, MAXIMUM_RATE),
            "timeout": (self.timeout, 300),
            "seconds": (self.seconds, MAXIMUM_SECONDS),
            "steady": (self.steady, 60),
            "stall-factor": (self.stall_factor, 1000),
        }
        for name, (number, maximum) in numbers.items():
            if not 0 < number <= maximum:
                raise PlanError(f"--{name} is {number:g}; it must be more than 0 and at most {maximum}")
        if self.connections not in CONNECTIONS:
            raise PlanError(f"--connections is {self.connections}; it must be one of {', '.join(CONNECTIONS)}")
        if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", self.release_header):
            raise PlanError("--release-header is not the name of a header; write it like X-Release")
        if self.host and not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]{1,255}", self.host):
            raise PlanError("--host is not the name of a host; write it like app.example")
        if self.expect is not None and not (len(self.expect) == 2 and all(self.expect)):
            raise PlanError("--expect needs two releases; write OLD,NEW")
        self._check_body()
        if not self.streams():
            raise PlanError("there is no path to ask for; name one with --get PATH")
        total = sum(stream.rate for stream in self.streams()) * len(self.targets())
        if total > MAXIMUM_RATE:
            raise PlanError(
                f"{total:g} requests a second are more than {MAXIMUM_RATE}; lower --rate or leave targets out"
            )

    def _check_body(self) -> None:
        if len(self.body) > MAXIMUM_BODY:
            raise PlanError(f"--body is longer than {MAXIMUM_BODY} characters; send less")
        try:
            body = json.loads(self.body)
        except ValueError as error:
            raise PlanError(f"--body is not JSON ({error}); correct it") from None
        if self.echo and not isinstance(body, dict):
            raise PlanError('--echo puts "id" into the body, but --body is no JSON object; write one like {}')

    def targets(self) -> tuple[Target, ...]:
        """Return the targets in the order given; raises PlanError for a URL that is none."""
        return tuple(parse_target(url, self.host) for url in self.urls)

    def streams(self) -> tuple[Stream, ...]:
        """Return the streams to run, in the order of STREAMS; raises PlanError for a path that is none."""
        fast = self.rate / 2 if self.get is not None and self.post is not None else self.rate
        all_streams = zip(
            STREAMS,
            ("GET", "POST", "GET", "POST", "GET"),
            (self.get, self.post, self.slow, self.slow_post, self.stream),
            (fast, fast, self.slow_rate, self.slow_rate, self.slow_rate),
            strict=True,
        )
        streams = tuple(
            Stream(name, method, path, rate) for name, method, path, rate in all_streams if path is not None
        )
        for stream in streams:
            if not re.fullmatch(r"/[!-~]*", stream.path):
                raise PlanError(
                    f"the path of {stream.name!r} does not begin with / or is not plain; write it like /health"
                )
        return streams

    def body_with(self, number: int) -> bytes:
        """Return the body of a POST; `number` becomes its "id" when the answer is to echo it."""
        if not self.echo:
            return self.body.encode()
        body: dict[str, Any] = json.loads(self.body)
        return json.dumps({**body, "id": number}).encode()


def parse_target(url: str, host: str = "") -> Target:
    """Return the target of a base URL; `host` replaces Host header and TLS server name. Raises PlanError.

    The URL is not repeated in messages before it is known to hold no password.
    """
    if url.startswith("unix:/"):
        return Target(url, "", host or "localhost", socket=url.removeprefix("unix:"))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise PlanError("--url has a bad port or address; write https://HOST:PORT or unix:/PATH") from None
    if parts.username is not None or parts.password is not None:
        raise PlanError("--url holds a user or password; leave it out")
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", url):
        raise PlanError(f"--url {url} is no target; write https://HOST:PORT, http://HOST:PORT or unix:/PATH")
    if parts.query or parts.fragment:
        raise PlanError(f"--url {url} holds more than a base; leave out what follows ? or #")
    secure = parts.scheme == "https"
    name = re.sub(r":\d+$", "", host) if host else parts.hostname
    return Target(
        url=url,
        path=parts.path.rstrip("/"),
        header=host or parts.netloc,
        server_name=name if secure else "",
        host=parts.hostname,
        port=port or (443 if secure else 80),
    )
