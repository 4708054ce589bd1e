"""bareforge_audit's search, on files and processes of this machine. Whole hosts are searched in the lab."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pytest

from plugins.modules import bareforge_audit

ROOT = Path(__file__).parents[2]
SECRET = 's3cr/t+"quoted" and & more'


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return bareforge_audit


SPELLED: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "in a URL": lambda value: quote(value, safe="").encode(),
    "in JSON": lambda value: json.dumps({"a": value}).encode(),
    "reversed": lambda value: value[::-1].encode(),
    "hexadecimal": lambda value: value.encode().hex().encode(),
    "HEXADECIMAL": lambda value: value.encode().hex().upper().encode(),
    "base64": lambda value: base64.b64encode(value.encode()),
    "base64 after one byte": lambda value: base64.b64encode(f"x{value}yz".encode()),
    "base64 after two bytes": lambda value: base64.b64encode(f"xy{value}z".encode()),
    "base64 for URLs": lambda value: base64.urlsafe_b64encode(f"xyz{value}?>".encode()),
}


@pytest.mark.parametrize("spelled", SPELLED.values(), ids=SPELLED)
def test_finds_every_spelling_in_a_file(audit: ModuleType, tmp_path: Path, spelled: Callable[[str], bytes]) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/file").write_bytes(b"\0\n before " + spelled(SECRET) + b" after\n")
    (tmp_path / "innocent").write_bytes(b"nothing to see\n")
    patterns = audit.Patterns({"KEY": SECRET})
    assert audit.in_files(patterns, [str(tmp_path)], []) == {str(tmp_path / "deep/er/file"): ["KEY"]}


def test_does_not_look_where_secrets_belong(audit: ModuleType, tmp_path: Path) -> None:
    for name in ("belongs", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kv.json").write_text(SECRET)
    found = audit.in_files(audit.Patterns({"KEY": SECRET}), [str(tmp_path)], [str(tmp_path / "belongs")])
    assert found == {str(tmp_path / "elsewhere/kv.json"): ["KEY"]}


def test_a_value_of_several_lines_is_found_as_a_whole_only(audit: ModuleType, tmp_path: Path) -> None:
    key = "-----BEGIN KEY-----\nfirst line\nsecond line\n-----END KEY-----\n"
    (tmp_path / "innocent").write_text("-----BEGIN KEY-----\nof somebody else\n-----END KEY-----\n\n")
    (tmp_path / "copy").write_text(f"# a comment\n{key}")
    assert audit.in_files(audit.Patterns({"KEY": key}), [str(tmp_path)], []) == {str(tmp_path / "copy"): ["KEY"]}


def test_a_search_that_cannot_read_its_patterns_is_an_error(audit: ModuleType, tmp_path: Path) -> None:
    class Unreadable(audit.Patterns):  # type: ignore[misc, name-defined]
        def _lines(self) -> set[bytes]:
            return set()

    with pytest.raises(OSError, match="grep cannot read the patterns"):
        audit.in_files(Unreadable({"KEY": SECRET}), [str(tmp_path)], [])


@pytest.mark.parametrize(
    "value", ["postgresql://[user:hidden@db", "https://user:hid\N{DOUBLE EXCLAMATION MARK}/\uff0f@db"]
)
def test_what_looks_like_a_url_and_is_none_has_no_password(audit: ModuleType, value: str) -> None:
    assert audit.password_in(value) == ""


def test_finds_a_secret_across_two_pieces_of_a_stream(audit: ModuleType, tmp_path: Path) -> None:
    for before in (audit.CHUNK - len(SECRET), audit.CHUNK - 5, audit.CHUNK):
        (tmp_path / "log").write_bytes(b"x" * before + SECRET.encode() + b"y" * 10)
        assert audit.Patterns({"KEY": SECRET}).names_in_file(tmp_path / "log") == {"KEY"}, before


@pytest.mark.parametrize("part", ["cmdline", "environ"])
def test_finds_it_in_a_process(audit: ModuleType, part: str) -> None:
    given = [SECRET] if part == "cmdline" else []
    environment = {**os.environ, "PLANTED": SECRET} if part == "environ" else dict(os.environ)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *given], env=environment) as process:
        try:
            time.sleep(0.2)
            found = audit.in_processes(audit.Patterns({"KEY": SECRET}))
        finally:
            process.kill()
    name = Path(sys.executable).name[:15]
    assert found == [f"{part} of process {process.pid} ({name}) holds KEY"]


def test_the_search_itself_shows_no_secret(audit: ModuleType) -> None:
    patterns = audit.Patterns({"KEY": SECRET})
    with patterns.descriptor() as number:
        assert audit.in_processes(patterns) == []
        assert str(Path(f"/proc/self/fd/{number}").readlink()).startswith("/memfd:")


def test_finds_it_in_the_output_of_a_command(audit: ModuleType) -> None:
    patterns = audit.Patterns({"KEY": SECRET})
    assert audit.in_output(patterns, "the journal", ["printf", "%s", f"a {SECRET} b"]) == ["the journal holds KEY"]
    assert audit.in_output(patterns, "the journal", ["printf", "%s", "nothing"]) == []


def test_harvests_what_the_agent_has(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/kv.json").write_text(json.dumps({"KEY": "another value"}))
    (tmp_path / "set/kv.json").write_text(json.dumps({"KEY": SECRET}))
    (tmp_path / "set/db.json").write_text(json.dumps({"URL": "postgresql://user:p%40ss-word@db/forge"}))
    (tmp_path / "token").write_text("s.token")
    leased = {"database/creds/forge": {"username": "v-1", "password": "p@ss-word"}}
    (tmp_path / "state.json").write_text(json.dumps({"databases": leased}))
    assert audit.harvest(tmp_path, tmp_path / "no credential") == {
        "KEY": SECRET,
        "KEY of trial": "another value",
        "URL": "postgresql://user:p%40ss-word@db/forge",
        "the agent's token": "s.token",
        "the password of database/creds/forge": "p@ss-word",
        "the password in URL": "p@ss-word",
    }


def test_harvests_the_key_of_the_certificate_and_nothing_else_of_it(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "site.pem").write_text(
        "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\nCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n"
        "-----BEGIN CERTIFICATE-----\nMIIBkTCB+wIJAL\n-----END CERTIFICATE-----\n"
    )
    found = audit.harvest(tmp_path / "none", tmp_path / "no credential", tmp_path)
    assert found == {"the key of the certificate": "MIGHAgEAMBMGByqGSM49AgEG\nCCqGSM49AwEHBG0wawIBAQQg"}
    (tmp_path / "copies").mkdir()
    (tmp_path / "copies/key.pem").write_text((tmp_path / "site.pem").read_text())
    found_in = audit.in_files(audit.Patterns(found), [str(tmp_path / "copies")], [])
    assert found_in == {str(tmp_path / "copies/key.pem"): ["the key of the certificate"]}
