"""The lab's fleet as tests and benchmarks see it: playbooks, commands as root on a host, the witness on every host."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from witness.load import Witness
from witness.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
HEADER = "X-Release"
# arguments of deploy.yml where only the code differs
CODE = ("--skip-tags", "secrets,site")
MODULE = "forge_app.trial:create_app()"


class FleetError(Exception):
    """A host or a playbook did not do what was asked; the text ends with its output."""


# The kernel may weigh sessions, not processes (sched_autogroup); one without that has no such file.
STAND_BACK = ("sh", "-c", '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"', "sh")


def stood_back(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run what a controller runs, which in earnest is another machine than the hosts: here it leaves them the cores.

    Raises subprocess.TimeoutExpired after 900 s.
    """
    with subprocess.Popen(
        [*STAND_BACK, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=900)
        except BaseException:
            # in a session of its own it has not heard what ended this process
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Fleet:
    """One lab: state is its directory (LAB_STATE), inventory what ansible-playbook gets, name the application's."""

    state: Path
    inventory: tuple[Path, ...]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    name: str = "forge"

    def reach(self, host: str) -> dict[str, Any]:
        """How a host is reached: port and key of SSH, its address for everybody else."""
        files = [item / "instances.yml" for item in self.inventory if (item / "instances.yml").is_file()]
        hosts: dict[str, dict[str, Any]] = yaml.safe_load(files[0].read_text())["lab"]["hosts"]
        return hosts[host]

    def play(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the project with extra variables; returns with whatever status it ended."""
        command = ["ansible-playbook"]
        for item in self.inventory:
            command += ["-i", str(item)]
        command += [str(ROOT / "playbooks" / playbook), *arguments]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        return stood_back(command, self.environment)

    def good(self, playbook: str, *arguments: str, **variables: Any) -> str:
        """Run a playbook that has to succeed; returns its output. Raises FleetError."""
        run = self.play(playbook, *arguments, **variables)
        if run.returncode:
            raise FleetError(f"{playbook} failed:\n{run.stdout[-8000:]}{run.stderr[-2000:]}")
        return run.stdout

    def ssh(self, host: str, command: str, check: bool = True, timeout: float = 180, given: str = "") -> str:
        """Run a shell command as root on a host; returns its standard output. Raises FleetError.

        given: its standard input.
        """
        reach = self.reach(host)
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        ssh = ["ssh", "-i", reach["ansible_ssh_private_key_file"], "-p", str(reach["ansible_port"])]
        for option in options:
            ssh += ["-o", option]
        run = subprocess.run(
            [*ssh, "admin@127.0.0.1", f"sudo sh -c {shlex.quote(command)}"],
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and run.returncode:
            raise FleetError(f"{host}: {command}: {run.stdout[-3000:]}{run.stderr[-3000:]}")
        return run.stdout

    def status(self, host: str) -> dict[str, Any]:
        """What the engine says of a host."""
        document: dict[str, Any] = json.loads(self.ssh(host, f"bareforge status {self.name}"))
        return document

    def truth(self, host: str) -> list[str]:
        """What is wrong on a host: link, record, processes and systemd must agree. Empty is good.

        Asked up to three times within 2 s: between two questions a worker may be replaced.
        """
        for _ in range(2):
            if not (wrong := self._differences(host)):
                return wrong
            time.sleep(1)
        return self._differences(host)

    def wait_for_truth(self, host: str, seconds: float = 60) -> list[str]:
        """What is still wrong on a host when the time is over, as truth() says it; empty as soon as nothing is."""
        deadline = time.monotonic() + seconds
        while (wrong := self.truth(host)) and time.monotonic() < deadline:
            time.sleep(1)
        return wrong

    def _differences(self, host: str) -> list[str]:
        found = self.status(host)
        pid = self.ssh(host, f"cat /run/{self.name}/gunicorn/gunicorn.pid").strip()
        masters = {str(worker["master"]) for worker in found["workers"]}
        wrong = []
        if not found["serving"] == found["active"] == found["running"]:
            wrong.append(f"record {found['serving']}, link {found['active']}, processes {found['running']} differ")
        if found["unit"].get("ActiveState") != "active":
            wrong.append(f"the unit is {found['unit'].get('ActiveState')}")
        if not {pid} == masters == {found["unit"].get("MainPID")}:
            wrong.append(f"pid file {pid}, workers' masters {masters}, MainPID {found['unit'].get('MainPID')} differ")
        if found["unit"].get("NeedDaemonReload") != "no":
            wrong.append("systemd has not read the unit")
        if found["pending"]:
            wrong.append(f"a switch is pending: {found['pending']}")
        return wrong

    def restarts(self, host: str) -> int:
        """How often systemd has restarted the service by itself."""
        return int(self.status(host)["unit"].get("NRestarts", "0"))

    def release(self, host: str) -> str:
        """The release that serves on a host, by the record."""
        return str(self.status(host)["release"])

    def plan(self, *hosts: str, **changes: Any) -> Plan:
        """A witness's plan for hosts that serve a trial application, through each host's own nginx."""
        settings: dict[str, Any] = {
            "urls": tuple(f"https://{self.reach(host)['private_address']}" for host in hosts),
            "host": "localhost",
            "ca": str(self.state / "ca.pem"),
            "get": "/health",
            "post": "/trial/echo",
            "slow": "/trial/slow?seconds=2",
            "slow_post": "/trial/slow?seconds=2",
            "stream": "/trial/stream?seconds=1.5&parts=15",
            "echo": True,
            "rate": 40,
            "slow_rate": 2,
            "release_header": HEADER,
        }
        return Plan(**{**settings, **changes})

    def witness(self, *hosts: str, **changes: Any) -> Witness:
        """A witness on these hosts, to be used as a context manager."""
        return Witness(self.plan(*hosts, **changes))


def trial(source: Path, environment: dict[str, str], **changes: Any) -> dict[str, Any]:
    """The extra variables that deploy a variant of the reference application.

    environment: the inventory's asgi_app_environment, to which the release header is added.
    """
    return {
        "asgi_app_source": str(source),
        "asgi_app_module": MODULE,
        "asgi_app_environment": {**environment, "BAREFORGE_RELEASE_HEADER": HEADER},
        # a machine that bears controller, load and hosts takes its time
        "asgi_app_start_timeout": 60,
        **changes,
    }
