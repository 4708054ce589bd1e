"""A host in a directory: releases, activations and the engine's records, without systemd."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.power import SETTINGS
from plugins.modules.bareforge import Paths, plan_files, stage, write_json

ENGINE = Path(__file__).parents[2] / "plugins/modules/bareforge.py"
NODE = os.uname().nodename


@dataclass
class Host:
    """Below paths.root everything is as on a host; what systemd would do is left to the test."""

    paths: Paths

    def __post_init__(self) -> None:
        for directory in (self.paths.releases, self.paths.state, self.paths.runtime, self.paths.units):
            directory.mkdir(parents=True, exist_ok=True)

    def release(self, release: str) -> Path:
        """A release that is nothing but its description."""
        directory = self.paths.releases / release
        directory.mkdir()
        (directory / "release.json").write_text(json.dumps({"id": release}))
        return directory

    def files(self, **changes: str) -> dict[str, str]:
        """The files of an activation; changes by their short names: environment, gunicorn, service, socket."""
        text = {name: f"# {name}\n" for name in ("environment", "gunicorn", "service", "socket")} | changes
        return dict(zip(self.paths.files(), text.values(), strict=True))

    def activation(self, release: str, **changes: str) -> str:
        """Stage an activation of a release, which is made if it is not there; returns its id."""
        if not (self.paths.releases / release).is_dir():
            self.release(release)
        return stage(self.paths, plan_files(self.paths, release, self.files(**changes), SETTINGS))

    def state(self, **state: Any) -> None:
        """Write what the engine has recorded."""
        write_json(self.paths.state / "state.json", state)
