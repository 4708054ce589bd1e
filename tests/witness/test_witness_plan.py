"""What a plan refuses, and what it makes of its arguments."""

import json
from typing import Any

import pytest

from witness import Plan, PlanError
from witness.plan import Stream, Target, parse_target

REFUSED: dict[str, dict[str, Any]] = {
    "there is no target; name one with --url https://HOST:PORT": {"urls": ()},
    "17 targets are more than 16; leave some out": {"urls": tuple(f"http://a{n}" for n in range(17))},
    "a target is named twice; name each once and raise --rate": {"urls": ("http://a", "http://a")},
    "--rate is 0; it must be more than 0 and at most 1000": {"rate": 0},
    "--seconds is 3601; it must be more than 0 and at most 3600": {"seconds": 3601},
    "--timeout is nan; it must be more than 0 and at most 300": {"timeout": float("nan")},
    "--connections is few; it must be one of keep-alive, new, both": {"connections": "few"},
    "--release-header is not the name of a header; write it like X-Release": {"release_header": "a: b"},
    "--host is not the name of a host; write it like app.example": {"host": "a\r\nb"},
    "--expect needs two releases; write OLD,NEW": {"expect": ("r1", "")},
    "--body is not JSON (Expecting value: line 1 column 1 (char 0)); correct it": {"body": "x"},
    '--echo puts "id" into the body, but --body is no JSON object; write one like {}': {"body": "[]", "echo": True},
    "--body is longer than 65536 characters; send less": {"body": f'"{"x" * 65536}"'},
    "there is no path to ask for; name one with --get PATH": {"get": None},
    "the path of 'get slow' does not begin with / or is not plain; write it like /health": {"slow": "slow"},
    "1040 requests a second are more than 1000; lower --rate or leave targets out": {
        "urls": tuple(f"http://a{n}" for n in range(16)),
        "post": "/",
        "slow": "/",
        "slow_post": "/",
        "stream": "/",
    },
    "--url ftp://a is no target; write https://HOST:PORT, http://HOST:PORT or unix:/PATH": {"urls": ("ftp://a",)},
    "--url app1 is no target; write https://HOST:PORT, http://HOST:PORT or unix:/PATH": {"urls": ("app1",)},
    "--url https://a/?b holds more than a base; leave out what follows ? or #": {"urls": ("https://a/?b",)},
    "--url holds a user or password; leave it out": {"urls": ("https://me@a",)},
    "--url has a bad port or address; write https://HOST:PORT or unix:/PATH": {"urls": ("https://a:99999",)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(PlanError) as error:
        Plan(**{"urls": ("http://a",), **REFUSED[message]})
    assert str(error.value) == message


TARGETS = {
    ("https://app.example", ""): Target("https://app.example", "", "app.example", "app.example", "app.example", 443),
    ("http://app.example:8080/shop/", ""): Target(
        "http://app.example:8080/shop/", "/shop", "app.example:8080", "", "app.example", 8080
    ),
    ("https://10.0.0.1:8443", "app.example"): Target(
        "https://10.0.0.1:8443", "", "app.example", "app.example", "10.0.0.1", 8443
    ),
    ("https://10.0.0.1", "app.example:8443"): Target(
        "https://10.0.0.1", "", "app.example:8443", "app.example", "10.0.0.1", 443
    ),
    ("https://[::1]:8443", ""): Target("https://[::1]:8443", "", "[::1]:8443", "::1", "::1", 8443),
    ("unix:/run/app.sock", ""): Target("unix:/run/app.sock", "", "localhost", socket="/run/app.sock"),
}


@pytest.mark.parametrize(("url", "host"), TARGETS)
def test_targets(url: str, host: str) -> None:
    assert parse_target(url, host) == TARGETS[url, host]


def test_the_fast_streams_share_the_rate() -> None:
    assert Plan(("http://a",)).streams() == (Stream("get fast", "GET", "/health", 50),)
    plan = Plan(("http://a",), post="/p", slow="/s", slow_post="/sp", stream="/st", rate=30, slow_rate=2)
    assert plan.streams() == (
        Stream("get fast", "GET", "/health", 15),
        Stream("post fast", "POST", "/p", 15),
        Stream("get slow", "GET", "/s", 2),
        Stream("post slow", "POST", "/sp", 2),
        Stream("get stream", "GET", "/st", 2),
    )


def test_body() -> None:
    assert Plan(("http://a",), body="[1, 2]").body_with(5) == b"[1, 2]"
    assert json.loads(Plan(("http://a",), body='{"a": 1, "id": 2}', echo=True).body_with(5)) == {"a": 1, "id": 5}
