"""After every other test: deploys, reloads, rotations, failures, rollbacks, boots. Where is a secret now?

What is searched for is every value that the hosts had at the end of any of the tests, also those that were replaced.
The last file, since it needs the others' output.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.modules.bareforge_audit import SHORTEST, Patterns, in_files
from tests.lab import ROOT, STATE, findings
from tests.recorded import RecordedFleet, python

HOSTS = ("app1", "app2")
# A set of settings, which the audit takes for secrets of the host.
FORMER = "/run/bareforge-agent/former"
MINIMUM_VALUES = 30


@pytest.fixture(scope="module")
def patterns(fleet: RecordedFleet) -> Any:
    searched = {name: value for name, value in fleet.secrets.items() if len(value) >= SHORTEST}
    assert len(searched) >= MINIMUM_VALUES, "there were many rotations: run all files of the scenario"
    return Patterns(searched)


def test_playbooks_have_said_none(fleet: RecordedFleet, patterns: Any, tmp_path: Path) -> None:
    said = "\n".join(fleet.outputs)
    file = tmp_path / "said"
    file.write_text(said)
    assert "ESTABLISH SSH CONNECTION" in said, "they ran with -vvv"
    assert re.search(r"^\+\+\+ after", said, re.M), "and with --diff"
    for playbook in ("deploy", "reload", "rollback", "rotate", "vault"):
        assert f"PLAYBOOK: {playbook}.yml" in said
    assert in_files(patterns, [str(file)], []) == {}
    file.write_text(f"shown: {next(iter(fleet.secrets.values()))}\n")
    assert list(in_files(patterns, [str(file)], [])) == [str(file)], "the search finds what is shown"
    # the next test searches temporary directories
    file.unlink()


def test_the_controller_has_written_none(patterns: Any, tmp_path: Path, fleet: RecordedFleet) -> None:
    """In the checkout, the lab's state, where Ansible keeps files of its own, and where temporary ones are made."""
    places = [ROOT, STATE, Path.home() / ".ansible", Path.home() / ".cache/bareforge", Path(tempfile.gettempdir())]
    search = [str(place) for place in places if place.exists()]
    assert in_files(patterns, search, []) == {}
    planted = tmp_path / "planted"
    planted.write_bytes(base64.b64encode(next(iter(fleet.secrets.values())).encode()))
    assert list(in_files(patterns, search, [])) == [str(planted)], "the search finds what is planted"


@pytest.fixture
def former(fleet: RecordedFleet) -> Iterator[None]:
    """The audit on the hosts looks for the former values too, which it finds where secrets belong."""
    values = json.dumps(fleet.secrets)
    write = (
        "import os, pathlib, sys; directory = pathlib.Path(sys.argv[1]); os.umask(0o77); directory.mkdir(); "
        "(directory / 'kv.json').write_text(sys.stdin.read())"
    )
    try:
        for host in HOSTS:
            fleet.ssh(host, f"{python(write)} {FORMER}", given=values)
        yield
    finally:
        for host in HOSTS:
            fleet.ssh(host, f"rm -rf {FORMER}")


@pytest.mark.usefixtures("former")
def test_the_hosts_have_kept_none(fleet: RecordedFleet) -> None:
    assert findings(fleet.play("audit.yml")) == {"app1": [], "app2": []}
    name, value = next((name, value) for name, value in fleet.secrets.items() if name.startswith("FORGE_SECRET_KEY"))
    planted = "/var/lib/forge/planted"
    try:
        fleet.ssh("app2", f"cat > {planted}", given=value)
        found = findings(fleet.play("audit.yml"))
    finally:
        fleet.ssh("app2", f"rm -f {planted}")
    assert found["app1"] == []
    assert [sentence for sentence in found["app2"] if sentence.startswith(f"{planted} holds ")], (name, found["app2"])
