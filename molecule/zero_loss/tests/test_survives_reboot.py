"""What a boot meets: Vault as usual, sealed, or with an identity that has ended. The last file: a lab host that was
rebooted has another address.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import pytest

from benchmarks.credentials import unseal, until, vault_of
from benchmarks.fleet import Fleet, FleetError

HOST, OTHER = "app2", "app1"
ROLE = f"auth/approle/role/{HOST}"


@pytest.fixture(scope="module")
def vault(fleet: Fleet) -> Any:
    return vault_of(fleet)


@pytest.fixture
def serving(fleet: Fleet) -> str:
    """The release that the tests before have left serving."""
    return fleet.release(HOST)


def reboot(fleet: Fleet) -> None:
    """Restart the host's container: its memory file systems are gone, everything starts from what is on the disk."""
    engine = os.environ.get("LAB_ENGINE", "podman")
    fleet.ssh(HOST, "sync")
    name = f"bareforge-{os.environ.get('MOLECULE_SCENARIO_NAME', 'demo')}-{HOST}"
    subprocess.run([engine, "restart", "--time", "20", name], check=True, capture_output=True, timeout=120)


def asked(fleet: Fleet, command: str) -> str:
    """The answer of the host, empty where it has none yet."""
    try:
        return fleet.ssh(HOST, command, timeout=30)
    except (FleetError, subprocess.TimeoutExpired):
        return ""


def shown(fleet: Fleet, unit: str, name: str) -> str:
    return asked(fleet, f"systemctl show {unit} --property={name} --value").strip()


def came_back(fleet: Fleet) -> bool:
    try:
        return fleet.truth(HOST) == []
    except (FleetError, subprocess.TimeoutExpired, ValueError):
        # no SSH yet, or no answer worth the name
        return False


def test_with_vault_up_it_comes_back_on_the_same_release(fleet: Fleet, serving: str) -> None:
    reboot(fleet)
    until(lambda: came_back(fleet), 90, f"{HOST} serves")
    assert fleet.release(HOST) == serving


def test_with_vault_sealed_it_waits_says_so_and_serves_when_vault_is_unsealed(
    fleet: Fleet, vault: Any, serving: str
) -> None:
    vault.sys.seal()
    try:
        reboot(fleet)
        until(lambda: "is sealed" in shown(fleet, "bareforge-agent", "StatusText"), 60, "the agent says what it lacks")
        assert shown(fleet, "bareforge-agent", "StatusText") == (
            "Vault at https://infra1:8200 is sealed; unseal it, the agent goes on by itself"
        )
        # the start of the application is held, it does not fail again and again
        assert shown(fleet, "forge", "ActiveState") == "inactive"
        assert shown(fleet, "forge", "Job") != "0"
        assert fleet.truth(OTHER) == [], "what has its secrets serves on"
    finally:
        unseal(fleet, vault)
    until(lambda: came_back(fleet), 90, f"{HOST} serves without anybody's help")
    assert fleet.release(HOST) == serving
    assert (shown(fleet, "bareforge-agent", "NRestarts"), shown(fleet, "forge", "NRestarts")) == ("0", "0")


def test_with_an_identity_that_has_ended_it_says_so_and_a_deploy_gives_it_another(
    fleet: Fleet, vault: Any, variants: Any, serving: str
) -> None:
    for accessor in vault.list(f"{ROLE}/secret-id")["data"]["keys"]:
        vault.write_data(f"{ROLE}/secret-id-accessor/destroy", data={"secret_id_accessor": accessor})
    reboot(fleet)
    words = "Vault refused the AppRole login (invalid role or secret ID); "
    until(lambda: words in shown(fleet, "bareforge-agent", "StatusText"), 60, "the agent names the reason")
    # each start of its own would be a refused login, and five of them lock the identity out
    time.sleep(6)
    assert shown(fleet, "bareforge-agent", "NRestarts") == "0"
    assert shown(fleet, "forge", "ActiveState") == "inactive"
    assert fleet.truth(OTHER) == [], "the other host serves on"
    # the load balancer still knows the host's former address
    balancer = {"deploy_drain": "", "deploy_undrain": ""}
    # of 0.1.0.NAME-HASH: the variant by that name is there already
    variant = serving.removeprefix("0.1.0.").rpartition("-")[0]
    fleet.good("deploy.yml", "--skip-tags", "site", **variants(variant, **balancer))
    assert fleet.truth(HOST) == []
    assert fleet.release(HOST) == serving
    assert len(vault.list(f"{ROLE}/secret-id")["data"]["keys"]) == 1
