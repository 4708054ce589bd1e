"""Controller half of vault_enroll: ask the host's agent, and fetch a wrapped secret_id if it needs one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

# Ansible puts the configured module_utils path into modules only; an action plugin has to add it itself
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.bareforge_vault import (  # noqa: E402
    Vault,
    VaultAccessError,
    token_from_environment,
)

NEEDS_ENROLMENT = 3
"""The agent's exit code for a missing credential or a refused login."""

ARGUMENTS = {
    "role": {"type": "str", "required": True},
    "approle_mount": {"type": "str", "default": "approle"},
    "python": {"type": "path", "required": True},
    "config": {"type": "path", "required": True},
    "set": {"type": "str"},
    "certificate": {"type": "bool", "default": True},
    "credential": {"type": "path", "default": "/etc/bareforge-agent/approle.cred"},
    "user": {"type": "str", "default": "bareforge-agent"},
    "group": {"type": "str", "required": True},
    "force": {"type": "bool", "default": False},
    "wrap_ttl": {"type": "str", "default": "120s"},
}
ON_HOST = ("python", "config", "set", "certificate", "credential", "user", "group")


class ActionModule(ActionBase):
    """Query, enrol if needed, query again as the proof."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return changed and msg; fail with the one line that says what to do."""
        super().run(tmp, task_vars)
        checked = ArgumentSpecValidator(ARGUMENTS).validate(dict(self._task.args))
        if checked.error_messages:
            raise AnsibleActionFail("; ".join(checked.error_messages))
        given = checked.validated_parameters
        on_host = {key: given[key] for key in ON_HOST}

        found = self._module(task_vars, **on_host, state="query")
        if not found["installed"]:
            if self._task.check_mode:
                return {"changed": True, "msg": "the agent is not installed yet; the host would be enrolled"}
            raise AnsibleActionFail(
                f"{given['python']} or {given['config']} does not exist on the host; install the agent first"
            )
        if found["rc"] == 0 and not given["force"]:
            return {"changed": False, "msg": "the host is enrolled"}
        # a new identity cures nothing else, and would be one more that works
        if found["rc"] not in (0, NEEDS_ENROLMENT):
            raise AnsibleActionFail(found["msg"])
        why = found["msg"] if found["rc"] else "a new identity was asked for"
        if self._task.check_mode:
            return {"changed": True, "msg": f"the host would be enrolled: {why}"}

        self._enroll(given, on_host, task_vars)
        proof = self._module(task_vars, **on_host, state="query")
        if proof["rc"] != 0:
            raise AnsibleActionFail(f"the host was enrolled, but its check still fails: {proof['msg']}")
        return {"changed": True, "msg": f"the host was enrolled: {why}"}

    def _enroll(self, given: dict[str, Any], on_host: dict[str, Any], task_vars: dict[str, Any] | None) -> None:
        if not self._is_pipelining_enabled("new"):
            raise AnsibleActionFail(
                "pipelining is off, so the host's disk would see the wrapping token; "
                "set pipelining = True under [connection] in ansible.cfg"
            )
        creation_path = f"auth/{given['approle_mount']}/role/{given['role']}/secret-id"
        try:
            role_id, wrap_token = wrapped_secret_id(given["approle_mount"], given["role"], given["wrap_ttl"])
        except VaultAccessError as failure:
            raise AnsibleActionFail(str(failure)) from None
        handed = {"role_id": role_id, "wrap_token": wrap_token, "creation_path": creation_path}
        answer = self._module(task_vars, **on_host, **handed, state="enroll")
        if answer["rc"] != 0:
            raise AnsibleActionFail(answer["msg"])

    def _module(self, task_vars: dict[str, Any] | None, **args: Any) -> dict[str, Any]:
        answer = self._execute_module(module_name="vault_enroll", module_args=args, task_vars=task_vars)
        if answer.get("failed") or not {"installed", "rc"} & set(answer):
            raise AnsibleActionFail(answer.get("msg", "the host did not answer"), result=answer)
        return dict(answer)


def wrapped_secret_id(mount: str, role: str, wrap_ttl: str) -> tuple[str, str]:
    """Return the role_id of a role and the token that unwraps a new secret_id of it.

    Takes address, token and certificate from the environment; raises VaultAccessError.
    """
    address, token = os.environ.get("VAULT_ADDR", ""), token_from_environment()
    for name, value in (("VAULT_ADDR", address), ("VAULT_TOKEN", token)):
        if not value:
            raise VaultAccessError(
                f"this host is not enrolled and {name} is not set; export VAULT_ADDR, VAULT_CACERT and a "
                f"VAULT_TOKEN that may issue secret_ids for AppRole role '{role}', then run the play again"
            )
    vault = Vault.of_environment(f"issue secret_ids for AppRole role '{role}'")
    path = f"auth/{mount}/role/{role}"
    found = vault.read(f"{path}/role-id")
    if found is None:
        raise VaultAccessError(
            f"AppRole role '{role}' does not exist at auth/{mount} of {vault.address}; "
            "create it with: ansible-playbook playbooks/vault.yml"
        )
    answer = vault.write(f"{path}/secret-id", {}, wrap_ttl=wrap_ttl)
    wrapped = answer.get("wrap_info") or {}
    if "token" not in wrapped:
        raise VaultAccessError(f"Vault at {vault.address} answered {path}/secret-id without a wrapping token")
    return str(found["role_id"]), str(wrapped["token"])
