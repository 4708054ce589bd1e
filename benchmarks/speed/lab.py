"""The lab of this benchmark: hosts that are raised for it and removed at its end, and what their counters say."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.fleet import ROOT, Fleet, FleetError
from benchmarks.session import READABLE
from plugins.module_utils.bareforge_bundle import Target

Answer = TypeVar("Answer")
INVENTORY = Path(__file__).with_name("inventory")
NAME = "speed"
PROGRAM = "import platform as p, json; print(json.dumps([p.python_version(), p.machine(), p.libc_ver()[1]]))"
# sshd says when a command begins (VERBOSE); the device counts what arrives; the control group is the whole host's,
# version 2 or 1
COUNT = """
journalctl --sync
journalctl --quiet --output=cat -t sshd -t sshd-session | grep -c '^Starting session'
cat /sys/class/net/eth0/statistics/rx_bytes
sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat 2>/dev/null ||
    echo $(($(cat /sys/fs/cgroup/cpuacct/cpuacct.usage) / 1000))
"""
COUNTED = (
    "mkdir -p /etc/ssh/sshd_config.d && echo 'LogLevel VERBOSE' > /etc/ssh/sshd_config.d/speed.conf && "
    "systemctl reload ssh"
)
# Starts the service anew; the moments are microseconds.
RESTART = (
    "systemctl restart speed && systemctl show speed "
    "--property=ExecMainStartTimestampMonotonic --property=ActiveEnterTimestampMonotonic"
)


@dataclass(frozen=True)
class Counters:
    """Since a host's boot: commands over SSH, bytes received, seconds of processor time."""

    executions: int
    received: int
    cpu: float

    def __sub__(self, other: Counters) -> Counters:
        return Counters(self.executions - other.executions, self.received - other.received, self.cpu - other.cpu)

    def __add__(self, other: Counters) -> Counters:
        return Counters(self.executions + other.executions, self.received + other.received, self.cpu + other.cpu)


class Lab:
    """Hosts app1 to appN. state: the lab's directory."""

    def __init__(self, state: Path, hosts: Sequence[str]) -> None:
        self.state = state
        self.hosts = tuple(hosts)
        (state / "inventory").mkdir(parents=True, exist_ok=True)
        own = {"MOLECULE_SCENARIO_NAME": NAME, "LAB_STATE": str(state)}
        environment = {**os.environ, **READABLE, **own, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
        self.fleet = Fleet(state, (INVENTORY, state / "inventory"), environment, name=NAME)

    def raise_hosts(self) -> None:
        """Start what does not run, and let SSH be counted. Raises FleetError."""
        self._lab_playbook("create.yml", "--limit", ",".join(["localhost", *self.hosts]))
        self.on_hosts(lambda host: self.fleet.ssh(host, COUNTED))

    def renew(self, host: str) -> None:
        """A new host instead of one: nothing is on it. Raises FleetError, subprocess.CalledProcessError."""
        engine = os.environ.get("LAB_ENGINE", "podman")
        container = f"bareforge-{NAME}-{host}"
        subprocess.run([engine, "rm", "--force", "--volumes", container], check=True, capture_output=True)
        self.raise_hosts()

    def remove(self) -> None:
        """Remove hosts, network, key. Raises FleetError."""
        self._lab_playbook("destroy.yml")

    def _lab_playbook(self, name: str, *arguments: str) -> None:
        command = ["ansible-playbook"]
        for item in self.fleet.inventory:
            command += ["-i", str(item)]
        command += [str(ROOT / "lab/playbooks" / name), *arguments]
        done = subprocess.run(
            command, env=self.fleet.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
        )
        if done.returncode:
            raise FleetError(f"{name} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")

    def on_hosts(self, work: Callable[[str], Answer], hosts: Sequence[str] = ()) -> list[Answer]:
        """Do something on these hosts (all if none is named) at once. Raises what one of them raised."""
        chosen = hosts or self.hosts
        with ThreadPoolExecutor(len(chosen)) as pool:
            return list(pool.map(work, chosen))

    def target(self) -> Target:
        """What is built for."""
        python, machine, libc = json.loads(self.fleet.ssh(self.hosts[0], f'python3 -c "{PROGRAM}"'))
        return Target(python, machine, libc)

    def count(self, hosts: Sequence[str]) -> Counters:
        """The counters of these hosts together, with what reading them has cost so far."""
        return sum(self.on_hosts(self._count, hosts), Counters(0, 0, 0.0))

    def _count(self, host: str) -> Counters:
        executions, received, microseconds = map(int, self.fleet.ssh(host, COUNT).split())
        return Counters(executions, received, microseconds / 1e6)

    def start_seconds(self, hosts: Sequence[str]) -> float:
        """How long the application takes from its start until it is ready, on all these hosts at once: the slowest."""
        return max(self.on_hosts(self._start_seconds, hosts))

    def _start_seconds(self, host: str) -> float:
        said = dict(line.split("=", 1) for line in self.fleet.ssh(host, RESTART).splitlines())
        began, ready = said["ExecMainStartTimestampMonotonic"], said["ActiveEnterTimestampMonotonic"]
        return (int(ready) - int(began)) / 1e6

    def url(self, host: str, port: int) -> str:
        """The base URL of a site on a host."""
        return f"http://{self.fleet.reach(host)['private_address']}:{port}"

    def await_build(self, host: str, port: int, build: int, seconds: float) -> None:
        """Return once a site answers with this build three times in a row. Raises FleetError when the time is over."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline, good, said = time.monotonic() + seconds, 0, ""
        while good < 3:
            try:
                with opener.open(f"{self.url(host, port)}/version", timeout=5) as answer:
                    said = answer.read().decode()
            except OSError as error:
                said = str(error)
            good = good + 1 if said == json.dumps({"build": build}, separators=(",", ":")) else 0
            if not good and time.monotonic() >= deadline:
                raise FleetError(f"{host} answers {said!r} at port {port} and not build {build}")
