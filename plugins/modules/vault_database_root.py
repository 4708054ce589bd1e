#!/usr/bin/python
"""Let Vault change the password of its own user of a database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_database_root
short_description: Rotate the password of Vault's own user of a database
description:
  - Afterwards nobody but Vault knows it. Proven by a user that is made, and removed again.
  - Runs on the controller and needs its hvac; C(VAULT_ADDR), C(VAULT_CACERT) and C(VAULT_TOKEN), or
    C(VAULT_TOKEN_FILE), are taken from its environment.
options:
  mount: {description: Mount of the database engine., type: str, default: database}
  name: {description: Name of the connection., type: str, required: true}
  role: {description: Database role of which a user is made as the proof., type: str, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Take the password out of people's hands
  vault_database_root:
    name: forge
    role: forge
"""

RETURN = r"""{}"""

import time

from ansible.module_utils.bareforge_vault import Vault, VaultAccessError
from ansible.module_utils.basic import AnsibleModule

PROOFS = 3
"""How often the proof is tried, a second apart: right after a rotation 2 of 776 calls failed that then went well."""


def prove(vault: Vault, path: str) -> None:
    """Make a user and remove it. Raises VaultAccessError."""
    for attempt in range(1, PROOFS + 1):
        try:
            lease_id = vault.lease(path)
        except VaultAccessError as failure:
            if attempt == PROOFS:
                raise VaultAccessError(
                    f"the password was changed, but no user can be made with it: {failure}"
                ) from None
            time.sleep(1)
        else:
            vault.write("sys/leases/revoke", {"lease_id": lease_id})
            return


def main() -> None:
    """Run the module."""
    module = AnsibleModule(  # type: ignore[no-untyped-call]
        argument_spec={
            "mount": {"type": "str", "default": "database"},
            "name": {"type": "str", "required": True},
            "role": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    connection = f"{given['mount']}/config/{given['name']}"
    try:
        vault = Vault.of_environment(f"rotate the root credentials of {connection}")
        if vault.read(connection) is None:
            raise VaultAccessError(
                f"there is no {connection} in Vault; create it with: ansible-playbook playbooks/vault.yml"
            )
        if not module.check_mode:
            vault.write(f"{given['mount']}/rotate-root/{given['name']}", {})
            prove(vault, f"{given['mount']}/creds/{given['role']}")
    except VaultAccessError as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
