#!/usr/bin/python
"""Host half of vault_enroll: ask the installed agent whether it can log in, and hand it a wrapped secret_id.

Standard library only. The action plugin of the same name talks to Vault on the controller and calls this.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_enroll
short_description: Give a host its Vault identity if it has none
description:
  - Runs the agent's C(check) on the host exactly as its unit would, with the host's encrypted credential.
  - If the host has no identity, or Vault refuses it, the controller requests a response-wrapped secret_id of
    the AppRole role and the agent unwraps and encrypts it on the host. Only the wrapping token crosses, on
    standard input.
  - A failure other than the missing identity (settings Vault denies, Vault sealed) fails the task and enrols
    nothing.
  - The controller needs C(VAULT_ADDR), C(VAULT_CACERT) and C(VAULT_TOKEN) only to enrol a host.
options:
  role: {description: AppRole role of this host., type: str, required: true}
  approle_mount: {description: Mount of the AppRole auth method., type: str, default: approle}
  python: {description: Python of the agent's virtual environment on the host., type: path, required: true}
  config: {description: Agent configuration on the host to check., type: path, required: true}
  set:
    description: The set of the configuration that must be readable; without it all of them must be.
    type: str
  certificate:
    description: Whether the configuration's certificate, if it names one, must be signed by Vault too.
    type: bool
    default: true
  credential:
    description: Encrypted systemd credential.
    type: path
    default: /etc/bareforge-agent/approle.cred
  user: {description: User of the agent's unit., type: str, default: bareforge-agent}
  group: {description: Group of the agent's unit., type: str, required: true}
  force: {description: Enrol even if the present identity works., type: bool, default: false}
  wrap_ttl: {description: How long the wrapped secret_id can be unwrapped., type: str, default: 120s}
  state: {description: Set by the action plugin., type: str, choices: [query, enroll], default: query}
  role_id: {description: Set by the action plugin., type: str}
  wrap_token: {description: Set by the action plugin., type: str}
  creation_path: {description: Set by the action plugin., type: str}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Give the host its Vault identity
  vault_enroll:
    role: web1
    python: /opt/bareforge-agent/current/venv/bin/python
    config: /etc/bareforge-agent/config.json
    group: forge
"""

RETURN = r"""
msg: {description: "What was found, or why the host was enrolled.", type: str, returned: always}
"""

import json
import os
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

CHECK_SECONDS = 90
"""Time limit of the agent's check: its requests to Vault end sooner, this bounds a hanging name server."""

CREDENTIAL_EXIT = 243
"""Exit status with which systemd reports that it could not set up a unit's credentials."""

NEEDS_ENROLMENT = 3
"""The agent's exit code for a missing credential or a refused login."""


def query(given: dict[str, str]) -> dict[str, object]:
    """Return installed, and for an installed agent rc (the agent's exit code) and msg (its single line)."""
    if not os.access(given["python"], os.X_OK) or not Path(given["config"]).exists():
        return {"installed": False}
    if not Path(given["credential"]).exists():
        return {
            "installed": True,
            "rc": NEEDS_ENROLMENT,
            "msg": f"credential {given['credential']} does not exist",
        }
    command = [
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect"),
        *("--property", f"User={given['user']}", "--property", f"Group={given['group']}"),
        *("--property", f"LoadCredentialEncrypted=approle:{given['credential']}"),
        *("--property", f"RuntimeMaxSec={CHECK_SECONDS}"),
        *(given["python"], "-m", "bareforge_agent", "check", "--config", given["config"]),
        *(("--set", given["set"]) if given["set"] is not None else ()),
        *(() if given["certificate"] else ("--no-certificate",)),
    ]
    done = run(command, "")
    if done.returncode == CREDENTIAL_EXIT:
        return {
            "installed": True,
            "rc": NEEDS_ENROLMENT,
            "msg": f"systemd cannot decrypt credential {given['credential']} on this host",
        }
    return {"installed": True, "rc": done.returncode, "msg": last_line(done)}


def enroll(given: dict[str, str]) -> dict[str, object]:
    """Hand the agent the wrapped secret_id on standard input; return its exit code and its single line."""
    command = [
        *(given["python"], "-m", "bareforge_agent", "enroll"),
        *("--config", given["config"], "--credential", given["credential"]),
    ]
    handed = {key: given[key] for key in ("role_id", "wrap_token", "creation_path")}
    done = run(command, json.dumps(handed))
    return {"rc": done.returncode, "msg": last_line(done), "changed": done.returncode == 0}


def run(command: list[str], given: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; a command that hangs or cannot start answers like one that failed."""
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=CHECK_SECONDS + 10, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} did not end within {CHECK_SECONDS + 10} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"cannot run {command[0]}: {error.strerror}")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line a command had to say, the place of the agent's message."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].strip() if lines else f"it ended with status {done.returncode} and without a message"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["query", "enroll"], "default": "query"},
            "python": {"type": "path", "required": True},
            "config": {"type": "path", "required": True},
            "set": {"type": "str"},
            "certificate": {"type": "bool", "default": True},
            "credential": {"type": "path", "default": "/etc/bareforge-agent/approle.cred"},
            "user": {"type": "str", "default": "bareforge-agent"},
            "group": {"type": "str", "required": True},
            "role_id": {"type": "str"},
            "wrap_token": {"type": "str", "no_log": True},
            "creation_path": {"type": "str"},
        },
        required_if=[("state", "enroll", ("role_id", "wrap_token", "creation_path"))],
        supports_check_mode=True,
    )
    answer = query(module.params) if module.params["state"] == "query" else enroll(module.params)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
