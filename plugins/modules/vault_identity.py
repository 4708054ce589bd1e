#!/usr/bin/python
"""The AppRole identity of a host in Vault: which secret_ids it has, and their end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_identity
short_description: List or end the secret_ids of an AppRole role, or all access that it gives
description:
  - A secret_id is known by its accessor, which opens nothing.
  - Runs on the controller and needs its hvac; C(VAULT_ADDR), C(VAULT_CACERT) and C(VAULT_TOKEN), or
    C(VAULT_TOKEN_FILE), are taken from its environment.
options:
  role: {description: AppRole role., type: str, required: true}
  approle_mount: {description: Mount of the AppRole auth method., type: str, default: approle}
  state:
    description:
      - C(listed) returns the accessors.
      - C(retired) destroys the secret_ids of O(accessors) that are still there.
      - C(revoked) deletes the role, and with it all of its secret_ids, and revokes every token that it has given, and
        with those all their leases.
    type: str
    choices: [listed, retired, revoked]
    default: listed
  accessors: {description: Of the secret_ids to destroy., type: list, elements: str, default: []}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Take everything from a host that was lost
  vault_identity:
    role: web1
    state: revoked
"""

RETURN = r"""
accessors: {description: Of all secret_ids of the role., type: list, returned: with state listed}
destroyed: {description: "How many secret_ids were destroyed, or would be.", type: int, returned: with state retired}
existed: {description: Whether there was such a role., type: bool, returned: with state revoked}
tokens: {description: "How many tokens were revoked, or would be.", type: int, returned: with state revoked}
"""

from ansible.module_utils.bareforge_vault import Vault, VaultAccessError
from ansible.module_utils.basic import AnsibleModule

PURPOSES = {
    "listed": "list the secret_ids of AppRole role '{role}'",
    "retired": "destroy secret_ids of AppRole role '{role}'",
    "revoked": "delete AppRole role '{role}' and revoke its tokens",
}


def retire(vault: Vault, role: str, accessors: list[str], check_mode: bool) -> dict[str, object]:
    """Destroy those secret_ids of a role, by path, that are still there."""
    present = [accessor for accessor in vault.names(f"{role}/secret-id") if accessor in accessors]
    if not check_mode:
        for accessor in present:
            vault.write(f"{role}/secret-id-accessor/destroy", {"secret_id_accessor": accessor})
    return {"changed": bool(present), "destroyed": len(present)}


def revoke(vault: Vault, role: str, check_mode: bool) -> dict[str, object]:
    """End all access that a role, by path, gives; first that nothing new can begin, then what there is."""
    existed = vault.read(role) is not None
    if existed and not check_mode:
        vault.delete(role)
    # a token outlives its role
    accessors = vault.names("auth/token/accessors")
    tokens = [accessor for accessor in accessors if vault.login_role(accessor) == role.lower()]
    if not check_mode:
        for accessor in tokens:
            vault.write("auth/token/revoke-accessor", {"accessor": accessor})
    return {"changed": existed or bool(tokens), "existed": existed, "tokens": len(tokens)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(  # type: ignore[no-untyped-call]
        argument_spec={
            "role": {"type": "str", "required": True},
            "approle_mount": {"type": "str", "default": "approle"},
            "state": {"type": "str", "choices": ["listed", "retired", "revoked"], "default": "listed"},
            "accessors": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    role = f"auth/{given['approle_mount']}/role/{given['role']}"
    try:
        vault = Vault.of_environment(PURPOSES[given["state"]].format(role=given["role"]))
        if given["state"] == "listed":
            result: dict[str, object] = {"changed": False, "accessors": vault.names(f"{role}/secret-id")}
        elif given["state"] == "retired":
            result = retire(vault, role, given["accessors"], module.check_mode)
        else:
            result = revoke(vault, role, module.check_mode)
    except VaultAccessError as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
