"""A lab's fleet that keeps what playbooks have said and which secrets there were, to search the one for the other."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fleet import Fleet

# As much as Ansible says; one line for each result all the same, since tests look for lines.
TALKATIVE = {"ANSIBLE_VERBOSITY": "3", "ANSIBLE_DIFF_ALWAYS": "1", "ANSIBLE_CALLBACK_FORMAT_PRETTY": "0"}

# Prints everything on a host that is secret, {name: value}.
HARVEST = r"""
import json, pathlib, subprocess
found = {}
directory = pathlib.Path("/run/bareforge-agent")
for file in directory.glob("*/*.json"):
    found.update({f"{name} in {file.parent.name}": value for name, value in json.loads(file.read_text()).items()})
if (directory / "token").exists():
    found["token"] = (directory / "token").read_text().strip()
if (directory / "state.json").exists():
    for path, leased in json.loads((directory / "state.json").read_text()).get("databases", {}).items():
        found["password of " + path] = leased["password"]
site = pathlib.Path("/run/bareforge-certificate/site.pem")
if site.exists():
    found["key"] = "\n".join(site.read_text().partition("-----END")[0].splitlines()[1:])
command = ["systemd-creds", "decrypt", "--name=approle", "/etc/bareforge-agent/approle.cred", "-"]
decrypted = subprocess.run(command, capture_output=True, text=True)
if decrypted.returncode == 0:
    found["secret_id"] = json.loads(decrypted.stdout)["secret_id"]
print(json.dumps(found))
"""


def python(code: str) -> str:
    """The command that runs a program on a host."""
    return f"/usr/bin/python3 -c {shlex.quote(code)}"


@dataclass(frozen=True)
class RecordedFleet(Fleet):
    """secrets: every value that a host has had, by a name of its own. Values are never shown."""

    # not in a representation: pytest shows what a failed test was given
    outputs: list[str] = field(default_factory=list, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def play(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """As Fleet does it; its output is kept."""
        run = super().play(playbook, *arguments, **variables)
        self.outputs.append(run.stdout + run.stderr)
        return run

    def harvest(self, *hosts: str) -> None:
        """Remember the secrets that the hosts have now."""
        for host in hosts:
            found: dict[str, str] = json.loads(self.ssh(host, python(HARVEST)))
            known = set(self.secrets.values())
            for name, value in found.items():
                if value not in known:
                    self.secrets[f"{name} of {host}, {len(self.secrets) + 1}"] = value
