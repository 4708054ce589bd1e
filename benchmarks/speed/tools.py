"""The tools that are compared: what each is given, and the command that does one of its steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.fleet import ROOT
from benchmarks.speed.builds import Build
from benchmarks.speed.figures import COLD, IDLE_DEPLOY, OURS, PLAIN, PYINFRA, RAW, ROLLBACK
from benchmarks.speed.lab import Lab

PEERS = Path(__file__).with_name("peers")
PYINFRA_PROGRAM = ROOT / ".venv-pyinfra/bin/pyinfra"
# what a peer's host is given, beside what is rendered
SCRIPTS = (PEERS / "install.sh", PEERS / "switch.sh", PEERS / "raw/site.sh")
RENDERED = ("peer.service", "peer.gunicorn.py", "peer.site")
PLAYBOOKS = {"site": "deploy.yml", "release": "release.yml", "rollback": "rollback.yml"}


def step(work: str) -> str:
    """Which of a tool's steps does a work: site (host and release), release, rollback."""
    return {COLD: "site", IDLE_DEPLOY: "site", ROLLBACK: "rollback"}.get(work, "release")


@dataclass(frozen=True)
class Call:
    """A command and the environment beside the benchmark's own."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


class Tool:
    """One of the tools. directory: where what it is given lies; served: the builds that its hosts have served."""

    def __init__(self, name: str, port: int, lab: Lab, directory: Path) -> None:
        self.name = name
        self.port = port
        self.lab = lab
        self.directory = directory
        self.application = name.replace(" ", "-")
        self.served: list[Build] = []
        directory.mkdir()
        if name != OURS:
            self._give()

    def _give(self) -> None:
        host = self.directory / "host"
        host.mkdir()
        for script in SCRIPTS:
            shutil.copy(script, host)
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PEERS),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,  # noqa: S701 (no HTML)
        )
        for file in RENDERED:
            text = environment.get_template(f"{file}.j2").render(peer_name=self.application, peer_port=self.port)
            (host / file).write_text(text)

    def call(self, which: str, hosts: Sequence[str], build: Build) -> Call:
        """The command of a step on these hosts."""
        if self.name != OURS:
            bundle = self.directory / "bundle.tar"
            bundle.unlink(missing_ok=True)
            bundle.hardlink_to(build.bundle)
            self._describe_hosts(hosts, build)
        if self.name == OURS:
            return self._ansible(ROOT / "playbooks" / PLAYBOOKS[which], hosts, {"asgi_app_source": str(build.source)})
        if self.name == PLAIN:
            plain = PEERS / "plain"
            environment = {"ANSIBLE_CONFIG": str(plain / "ansible.cfg")}
            return self._ansible(plain / f"{which}.yml", hosts, self._data(build), environment)
        if self.name == PYINFRA:
            steps = ["site", "release", "switch"][{"site": 0, "release": 1, "rollback": 2}[which] :]
            files = [str(PEERS / f"pyinfra/{name}.py") for name in steps]
            return Call([str(PYINFRA_PROGRAM), "-y", "--sudo", str(self.directory / "hosts.py"), *files])
        peer = {key.upper(): str(value) for key, value in self._data(build).items()}
        return Call([str(PEERS / "raw/deploy"), which, str(self.directory), *hosts], peer)

    def _data(self, build: Build) -> dict[str, Any]:
        return {
            "peer_name": self.application,
            "peer_port": self.port,
            "peer_build": build.number,
            "peer_directory": str(self.directory),
        }

    def _ansible(
        self,
        playbook: Path,
        hosts: Sequence[str],
        variables: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> Call:
        command = ["ansible-playbook"]
        for item in self.lab.fleet.inventory:
            command += ["-i", str(item)]
        command += [str(playbook), "--limit", ",".join(hosts), "--extra-vars", json.dumps(dict(variables))]
        # each run connects anew, as the first one of a day does
        sockets = self.directory / "cp"
        return Call(command, {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets), **(environment or {})})

    def _describe_hosts(self, hosts: Sequence[str], build: Build) -> None:
        """How raw ssh and pyinfra reach the hosts: in the words of each."""
        known = self.directory / "known_hosts"
        known.write_text("")
        described, targets = [], []
        for host in hosts:
            reach = self.lab.fleet.reach(host)
            described.append(
                f"Host {host}\n  HostName {reach['ansible_host']}\n  Port {reach['ansible_port']}\n"
                f"  User {reach['ansible_user']}\n  IdentityFile {reach['ansible_ssh_private_key_file']}\n"
                f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
            )
            data = {
                "ssh_hostname": reach["ansible_host"],
                "ssh_port": reach["ansible_port"],
                "ssh_user": reach["ansible_user"],
                "ssh_key": reach["ansible_ssh_private_key_file"],
                "ssh_known_hosts_file": str(known),
                "ssh_strict_host_key_checking": "no",
                **self._data(build),
            }
            targets.append((host, data))
        (self.directory / "ssh_config").write_text("".join(described))
        (self.directory / "hosts.py").write_text(f"targets = {targets!r}\n")


def make_tools(lab: Lab, directory: Path, names: Sequence[str]) -> list[Tool]:
    """The tools of these names, each with a site of its own on every host."""
    ports = {OURS: 80, PLAIN: 8101, PYINFRA: 8102, RAW: 8103}
    return [Tool(name, ports[name], lab, directory / name.replace(" ", "-")) for name in names]
