"""The fleet of the scenario, with variants of the reference application to release, to roll back and to break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.fleet import CODE, Fleet, trial
from benchmarks.trial.variants import Fault, make
from tests.lab import ENVIRONMENT, INVENTORY, ROOT, STATE
from tests.recorded import TALKATIVE, RecordedFleet

SETTINGS: dict[str, str] = yaml.safe_load((ROOT / "inventory/lab/group_vars/all.yml").read_text())[
    "asgi_app_environment"
]
HOSTS = ("app1", "app2")


@pytest.fixture(scope="session")
def fleet() -> RecordedFleet:
    return RecordedFleet(STATE, (INVENTORY,), {**ENVIRONMENT, **TALKATIVE})


@pytest.fixture(autouse=True)
def remembered(fleet: RecordedFleet) -> Iterator[None]:
    """After each test there may be other secrets than before it; test_what_was_written.py looks for all of them."""
    yield
    fleet.harvest(*HOSTS)


class Variants:
    """Makes variants of the application and says how to deploy them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, name: str, fault: Fault | None = None, migration: Any = None, **changes: Any) -> dict[str, Any]:
        source = self._directory / name
        if not source.exists():
            make(ROOT / "app", self._directory, name=name, fault=fault, migration=migration)
        # workers are replaced all the time, under every test
        return trial(source, SETTINGS, **{"asgi_app_max_requests": 400, "asgi_app_soak": 1, **changes})


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    return Variants(tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="session", autouse=True)
def one(fleet: Fleet, variants: Variants) -> str:
    """The variant that every test finds and leaves serving on both hosts; its release id."""
    fleet.good("deploy.yml", *CODE, **variants("one"))
    release = fleet.release("app1")
    assert release == fleet.release("app2")
    return release
