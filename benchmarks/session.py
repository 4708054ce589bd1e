"""One run of a benchmark against the lab: variants deployed, hosts asked side by side, progress told, all put back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks.figures import Tally, Window
from benchmarks.fleet import ROOT, Fleet, FleetError, trial
from benchmarks.trial.variants import Fault, make
from witness.load import Result, Witness
from witness.plan import MAXIMUM_SECONDS

Answer = TypeVar("Answer")

HOSTS = ("app1", "app2")
# What asking a host or a playbook for something may end with.
FAILURES = (FleetError, subprocess.TimeoutExpired)
# Seconds of traffic before the first event, and after one.
STEADY = 5.0
PAUSE = 3.0
# The output is read: no colours, results as JSON.
READABLE = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
PACKAGES = ("gunicorn", "uvicorn", "uvicorn-worker", "fastapi")


def connect(environment: dict[str, str]) -> Fleet:
    """The lab of an environment that `scripts/demo env` printed. Raises FleetError where none answers."""
    cure = "raise it with scripts/demo"
    inventory = tuple(Path(item) for item in environment.get("ANSIBLE_INVENTORY", "").split(",") if item)
    if not any((item / "instances.yml").is_file() for item in inventory):
        raise FleetError(f"no demo lab runs; {cure}")
    fleet = Fleet(Path(environment["LAB_STATE"]), inventory, {**environment, **READABLE})
    for host in HOSTS:
        try:
            fleet.status(host)
        except (*FAILURES, ValueError, KeyError) as error:
            raise FleetError(f"{host} does not serve {fleet.name} ({str(error).strip()}); {cure}") from None
    return fleet


class Session:
    """What the sections share. Variants are directories below `directory`."""

    def __init__(self, fleet: Fleet, directory: Path, repetitions: int, every: int) -> None:
        self.fleet = fleet
        self.directory = directory
        self.repetitions = repetitions
        self.every = every
        self.releases: dict[str, str] = {}
        self._activations: dict[str, dict[str, str]] = {}
        self._sources: dict[str, Path] = {}
        self._began = time.monotonic()
        inventory = yaml.safe_load((ROOT / "inventory/lab/group_vars/all.yml").read_text())
        self._settings: dict[str, str] = inventory["asgi_app_environment"]

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Tell progress on standard error."""
        print(f"[{self.seconds:.0f} s] {text}", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------------------------------------------- hosts

    def on_hosts(self, work: Callable[[str], Answer], hosts: Sequence[str] = HOSTS) -> dict[str, Answer]:
        """Do something on every host at the same time; returns the answers by host. Raises what one of them raised."""
        with ThreadPoolExecutor(len(hosts)) as pool:
            pending = {host: pool.submit(work, host) for host in hosts}
        return {host: answer.result() for host, answer in pending.items()}

    def ssh_all(self, command: str, hosts: Sequence[str] = HOSTS, check: bool = True) -> dict[str, str]:
        """Run a command as root on every host at the same time. Raises FleetError."""
        return self.on_hosts(lambda host: self.fleet.ssh(host, command, check=check), hosts)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """What the engine says of every host."""
        return self.on_hosts(self.fleet.status)

    def restarts(self) -> dict[str, int]:
        """How often systemd has restarted the service by itself, by host."""
        return self.on_hosts(self.fleet.restarts)

    def more_restarts(self, before: dict[str, int]) -> list[str]:
        """Sentences about hosts where a crash was hidden by a restart since `before`."""
        now = self.restarts()
        return [
            f"{host}: NRestarts rose from {before[host]} to {now[host]}" for host in now if now[host] > before[host]
        ]

    def wrong(self, release: str = "", hosts: Sequence[str] = HOSTS, patience: float = 0) -> list[str]:
        """Sentences about hosts where record, link, processes and systemd differ, or that serve another release.

        patience: seconds a host may take to come to rest.
        """
        found = self.on_hosts(lambda host: self._settle(host, release, patience), hosts)
        return [f"{host}: {sentence}" for host, sentences in found.items() for sentence in sentences]

    def _settle(self, host: str, release: str, patience: float) -> list[str]:
        deadline = time.monotonic() + patience
        while True:
            found = self._differences(host, release)
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.5)

    def _differences(self, host: str, release: str) -> list[str]:
        try:
            found = self.fleet.truth(host)
            serving = self.fleet.release(host)
        except FAILURES as error:
            return [str(error).strip()]
        return [*found, f"serves {serving} instead of {release}"] if release and serving != release else found

    # ------------------------------------------------------------------------------------------------- variants

    def variables(self, name: str, fault: Fault | None = None, **changes: Any) -> dict[str, Any]:
        """The extra variables that deploy a variant of the reference application, made when it is first asked for."""
        if name not in self._sources:
            self._sources[name] = make(ROOT / "app", self.directory, name=name, fault=fault)
        return trial(self._sources[name], self._settings, **changes)

    def deploy(self, name: str, **changes: Any) -> str:
        """Deploy a variant to both hosts with the playbook; returns its release id. Raises FleetError."""
        self.say(f"deploy.yml with variant {name}")
        self.fleet.good("deploy.yml", **self.variables(name, **changes))
        found = self.statuses()
        releases = {str(status["release"]) for status in found.values()}
        if len(releases) != 1:
            raise FleetError(f"the hosts serve different releases after a deploy: {', '.join(sorted(releases))}")
        if not changes:
            self.releases[name] = min(releases)
            self._activations[name] = {host: status["serving"] for host, status in found.items()}
        return min(releases)

    def ensure(self, *names: str) -> None:
        """See to it that the hosts have the activations of these variants; deploys what they lack."""
        for name in names:
            if not self._has(name):
                self.deploy(name)

    def _has(self, name: str) -> bool:
        if name not in self._activations:
            return False
        answers = self.on_hosts(
            lambda host: self.fleet.ssh(
                host, f"test -f {self._path(name, host)}/release/release.json && echo there", check=False
            )
        )
        return all(answer.strip() == "there" for answer in answers.values())

    def _path(self, name: str, host: str) -> str:
        return f"/etc/{self.fleet.name}/activations/{self._activations[name][host]}"

    def activation(self, name: str, host: str) -> str:
        """The activation of a variant that `ensure` has seen to."""
        return self._activations[name][host]

    def serve(self, name: str) -> str:
        """Let both hosts serve a variant, by the engine where they have it; returns its release id."""
        self.ensure(name)
        application = self.fleet.name

        def activate(host: str) -> None:
            wanted = self.activation(name, host)
            status = self.fleet.status(host)
            if status["serving"] == status["running"] == wanted and not status["pending"]:
                return
            # the lock of a run that was killed; nobody else deploys to this lab
            self.fleet.ssh(host, f"bareforge unlock {application}; bareforge activate {application} {wanted}")

        self.on_hosts(activate)
        return self.releases[name]

    def restore(self) -> None:
        """Deploy what the inventory says, as the lab was raised. Raises FleetError."""
        self.say("deploy.yml as the inventory says")
        self.fleet.good("deploy.yml")

    # -------------------------------------------------------------------------------------------------- traffic

    def watch(self, *hosts: str, **changes: Any) -> Witness:
        """A witness on these hosts, both if none is named; for `with`."""
        return self.fleet.witness(*(hosts or HOSTS), **{"connections": "both", **changes})

    @contextmanager
    def window(
        self, witness: Witness, windows: list[Window], name: str, hosts: Sequence[str] = HOSTS
    ) -> Iterator[None]:
        """Note the time of an event on these hosts, also of one that fails."""
        begin = witness.seconds
        witness.mark(name)
        try:
            yield
        finally:
            windows.append(Window(name, begin, witness.seconds, hosts[0] if len(hosts) == 1 else ""))


def counted(result: Result, windows: Sequence[Window], name: str, tally: Tally) -> Tally:
    """Add what a witness saw in the time of one kind of event. Raises FleetError where it ended before the event."""
    if result.document["seconds"] >= MAXIMUM_SECONDS - 1:
        raise FleetError(f"the witness watches {MAXIMUM_SECONDS} s at most; ask for fewer repetitions")
    tally.add(result.records, windows, name, result.document["stall_ms"])
    return tally


def machine(session: Session) -> dict[str, Any]:
    """What the figures were measured on: this machine, its tools, and what each host runs."""
    names = ", ".join(repr(name) for name in PACKAGES)
    program = f"import importlib.metadata as m; [print(f'{{n}}={{m.version(n)}}') for n in ({names})]"
    python = f"/srv/{session.fleet.name}/current/venv/bin/python"
    command = (
        ". /etc/os-release; echo system=$PRETTY_NAME; echo systemd=$(systemctl --version | head -n 1); "
        f'echo nginx=$(nginx -v 2>&1); echo python=$({python} --version); {python} -I -c "{program}"'
    )
    answers = session.ssh_all(command, check=False)
    hosts = {
        host: dict(line.split("=", 1) for line in text.splitlines() if "=" in line) for host, text in answers.items()
    }
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "cores": os.cpu_count(),
        "memory_mb": int(meminfo["MemTotal"].split()[0]) // 1024,
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "ansible-core": version("ansible-core"),
        "hosts": hosts,
    }
