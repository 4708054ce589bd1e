"""A host that boots comes back on the release it had. The last file: a lab host has another address afterwards."""

from __future__ import annotations

import os
import subprocess
import time

from benchmarks.fleet import Fleet, FleetError


def test_a_reboot_comes_back_on_the_same_release(fleet: Fleet) -> None:
    release = fleet.release("app2")
    engine = os.environ.get("LAB_ENGINE", "podman")
    fleet.ssh("app2", "sync")
    name = f"bareforge-{os.environ.get('MOLECULE_SCENARIO_NAME', 'demo')}-app2"
    subprocess.run([engine, "restart", "--time", "20", name], check=True, capture_output=True, timeout=120)
    deadline = time.monotonic() + 90
    while came_back(fleet) is False:
        assert time.monotonic() < deadline
        time.sleep(2)
    assert fleet.truth("app2") == []
    assert fleet.release("app2") == release


def came_back(fleet: Fleet) -> bool:
    try:
        return fleet.truth("app2") == []
    except (FleetError, subprocess.TimeoutExpired, ValueError):
        # no SSH yet, or no answer worth the name
        return False
