"""A host in a directory, and plays on this machine with an application name of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.power import as_root
from plugins.modules.bareforge import Paths
from tests.engine.host import Host
from tests.plugins.conftest import Ansible


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Paths("shop", tmp_path / "host"))


@pytest.fixture
def ansible(tmp_path: Path) -> Ansible:
    directory = tmp_path / "controller"
    directory.mkdir()
    return Ansible(directory)


@pytest.fixture
def machine() -> Iterator[Paths]:
    """This machine itself as host of an application that nobody else has: the engine's own paths, where plays lead."""
    paths = Paths(f"bareforge-test-{os.getpid()}")
    as_root("install", "--directory", f"--owner={os.getuid()}", str(paths.state))
    yield paths
    as_root("rm", "-rf", str(paths.state))
