"""Hearing of secrets that change while the application serves."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bareforge_runtime import changes, secrets
from bareforge_runtime.redact import Redactor

from tests.runtime.conftest import write_secrets

POLL = 0.01


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has loaded one secret."""
    monkeypatch.setattr(secrets, "_loaded", {})
    monkeypatch.setattr(secrets, "_listeners", [])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["BAREFORGE_SECRETS"] = str(tmp_path / "s")
    write_secrets(tmp_path / "s", kv={"KEY": "first"}, db={"URL": "postgresql://one"})
    secrets.load_into_environment()


def replace(tmp_path: Path, name: str, text: str) -> None:
    """As the agent does: another file takes the place of the old one."""
    new = tmp_path / "new"
    new.write_text(text)
    new.replace(tmp_path / "s" / name)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(POLL)


async def test_a_change_is_told_with_all_settings(tmp_path: Path) -> None:
    told: list[dict[str, str]] = []

    async def apply(settings: dict[str, str]) -> None:
        told.append({**settings, "environment": os.environ["URL"]})

    async with changes.followed(apply, POLL):
        await asyncio.sleep(10 * POLL)
        assert told == []
        replace(tmp_path, "db.json", '{"URL": "postgresql://two"}')
        await until(lambda: bool(told))
        await asyncio.sleep(10 * POLL)
    assert told == [{"KEY": "first", "URL": "postgresql://two", "environment": "postgresql://two"}]


async def test_nothing_is_told_after_the_end(tmp_path: Path) -> None:
    told = []

    async def apply(settings: dict[str, str]) -> None:
        told.append(settings)

    async with changes.followed(apply, POLL):
        pass
    replace(tmp_path, "db.json", '{"URL": "postgresql://two"}')
    await asyncio.sleep(10 * POLL)
    assert told == []


async def test_a_change_while_the_application_starts_is_told(tmp_path: Path) -> None:
    told: list[str] = []

    async def apply(settings: dict[str, str]) -> None:
        told.append(settings["URL"])

    replace(tmp_path, "db.json", '{"URL": "postgresql://two"}')
    async with changes.followed(apply, POLL):
        await until(lambda: bool(told))
    assert told == ["postgresql://two"]


async def test_a_move_that_fails_is_tried_again_and_told_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(changes, "WAITS", (POLL, POLL))
    attempts = []

    async def apply(_: dict[str, str]) -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError("postgresql://user:hidden@host")

    caplog.set_level("INFO")
    async with changes.followed(apply, POLL):
        replace(tmp_path, "db.json", '{"URL": "postgresql://two"}')
        await until(lambda: len(attempts) == 4)
        await asyncio.sleep(10 * POLL)
    assert len(attempts) == 4
    failed = "moving to the changed secrets failed, those from before stay in use, another attempt follows: OSError"
    assert caplog.messages == ["the secrets have changed: URL", failed, failed, failed, "moved to the changed secrets"]


async def test_files_that_cannot_be_used_are_told_and_the_next_ones_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(changes, "WAITS", (POLL, POLL))
    told = []

    async def apply(settings: dict[str, str]) -> None:
        told.append(settings["URL"])

    async with changes.followed(apply, POLL):
        replace(tmp_path, "db.json", "{")
        await until(lambda: bool(caplog.messages))
        assert os.environ["URL"] == "postgresql://one"
        replace(tmp_path, "db.json", '{"URL": "postgresql://two"}')
        await until(lambda: bool(told))
    assert caplog.messages[0] == (
        "the secrets have changed and cannot be used, those from before stay in use: "
        f"{tmp_path}/s/db.json is not a flat JSON object of strings; "
        "restart the agent, which writes it: systemctl restart bareforge-agent"
    )
    assert told == ["postgresql://two"]


async def test_a_new_value_is_known_as_a_secret_before_anybody_has_it(tmp_path: Path) -> None:
    redact = Redactor()
    secrets.tell(redact.add)
    assert redact("first postgresql://one") == "*** ***"
    shown = []

    async def apply(settings: dict[str, str]) -> None:
        shown.append(redact(f"{settings['KEY']} {settings['URL']}"))

    async with changes.followed(apply, POLL):
        replace(tmp_path, "kv.json", '{"KEY": "second"}')
        await until(lambda: bool(shown))
    assert shown == ["*** ***"]


async def test_without_secrets_there_is_nothing_to_follow() -> None:
    del os.environ["BAREFORGE_SECRETS"]

    async def apply(_: dict[str, str]) -> None:
        raise AssertionError("told of something")

    async with changes.followed(apply, POLL):
        await asyncio.sleep(10 * POLL)
