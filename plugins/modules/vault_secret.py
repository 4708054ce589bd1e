#!/usr/bin/python
"""A new value for one key of a KV v2 secret, and the way back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_secret
short_description: Change one key of a KV v2 secret, or put an earlier version back
description:
  - A change is a new version, in which the other keys stay as they are; so is an earlier version that is put back.
  - Values are never shown, and are in no argument; one that is not generated comes from C(VAULT_NEW_VALUE).
  - Runs on the controller and needs its hvac; C(VAULT_ADDR), C(VAULT_CACERT) and C(VAULT_TOKEN), or
    C(VAULT_TOKEN_FILE), are taken from its environment.
options:
  path: {description: "The secret, MOUNT/PATH.", type: str, required: true}
  state:
    description:
      - C(read) returns which version is the latest.
      - C(changed) gives O(key) a new value. Fails if O(version) is not the latest any more.
      - C(restored) makes the content of O(version) the latest one. Fails if there is more than one version after that,
        since somebody else has written it.
    type: str
    choices: [read, changed, restored]
    default: read
  key: {description: Key that gets a new value., type: str, default: ""}
  generate:
    description: Length of a value of random hexadecimal digits; 0 takes it from C(VAULT_NEW_VALUE).
    type: int
    default: 0
  version: {description: "The version to put back, or that has to be the latest one.", type: int, default: 0}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Give the key a new value
  vault_secret:
    path: secret/forge
    key: secret_key
    state: changed
    generate: 64
    version: 3
"""

RETURN = r"""
version: {description: The latest version of the secret., type: int, returned: always}
"""

import os
import secrets
from typing import Any

from ansible.module_utils.bareforge_vault import Vault, VaultAccessError
from ansible.module_utils.basic import AnsibleModule

NEW_VALUE = "VAULT_NEW_VALUE"


def data_path(path: str) -> str:
    """The path of Vault's API of a secret that people write MOUNT/PATH."""
    mount, _, name = path.strip("/").partition("/")
    return f"{mount}/data/{name}"


def read(vault: Vault, path: str, version: int = 0) -> tuple[dict[str, Any], int]:
    """Return content and number of a version, 0 being the latest. Raises VaultAccessError where it has no content."""
    which = f"version {version}" if version else "the latest version"
    found = vault.read(data_path(path), version=version or None)
    if found is None:
        raise VaultAccessError(
            f"there is no secret {path} in Vault; create it first: playbooks/vault.yml, or vault kv put {path}"
        )
    if found.get("data") is None:
        raise VaultAccessError(
            f"{which} of {path} is deleted or destroyed; undelete it, or write a new one: vault kv put {path}"
        )
    return found["data"], int(found["metadata"]["version"])


def new_value(key: str, length: int) -> str:
    """What the key becomes. Raises VaultAccessError where nobody has said it."""
    given = os.environ.get(NEW_VALUE, "")
    if given and length:
        raise VaultAccessError(
            f"{NEW_VALUE} is set, but {key!r} is a generated secret; unset it, or take {key!r} out of "
            "vault_generated_secrets"
        )
    if given or length:
        return given or secrets.token_hex(length)[:length]
    raise VaultAccessError(
        f"{key!r} is no generated secret and {NEW_VALUE} is not set; export the new value, without it being on a "
        f"command line: read -rs {NEW_VALUE}; export {NEW_VALUE}"
    )


def change(vault: Vault, given: dict[str, Any], check_mode: bool) -> int:
    """Write a new version in which one key has a new value; returns its number."""
    path, key = given["path"], given["key"]
    content, version = read(vault, path)
    if given["version"] and version != given["version"]:
        raise VaultAccessError(
            f"{path} is at version {version}, not {given['version']}: somebody else has changed it meanwhile; run again"
        )
    if key not in content:
        raise VaultAccessError(f"{path} has no key {key!r}, only: {', '.join(sorted(content)) or 'none'}")
    value = new_value(key, given["generate"])
    if value == content[key]:
        raise VaultAccessError(f"{NEW_VALUE} is the value that {key!r} of {path} has already; export another one")
    if check_mode:
        return version
    return write(vault, path, {**content, key: value}, version)


def restore(vault: Vault, given: dict[str, Any], check_mode: bool) -> tuple[bool, int]:
    """Make the content of a version the latest one; returns whether it was not, and the number of the latest."""
    path, old = given["path"], given["version"]
    wanted, _ = read(vault, path, old)
    content, version = read(vault, path)
    if content == wanted:
        return False, version
    if version > old + 1:
        raise VaultAccessError(
            f"{path} is at version {version}, {version - old} after {old}: somebody else has written it too; "
            f"put right by hand what is to be kept: vault kv get -version={old} {path}"
        )
    return True, version if check_mode else write(vault, path, wanted, version)


def write(vault: Vault, path: str, content: dict[str, Any], version: int) -> int:
    """Write the version after `version`; fails if somebody else has. Returns its number."""
    answer = vault.write(data_path(path), {"data": content, "options": {"cas": version}})
    return int(answer["data"]["version"])


def main() -> None:
    """Run the module."""
    module = AnsibleModule(  # type: ignore[no-untyped-call]
        argument_spec={
            "path": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["read", "changed", "restored"], "default": "read"},
            # the name of a key, not its value
            "key": {"type": "str", "default": "", "no_log": False},
            "generate": {"type": "int", "default": 0},
            "version": {"type": "int", "default": 0},
        },
        required_if=[("state", "changed", ("key",)), ("state", "restored", ("version",))],
        supports_check_mode=True,
    )
    given = module.params
    try:
        vault = Vault.of_environment(f"write {data_path(given['path'])}")
        if given["state"] == "changed":
            result = {"changed": True, "version": change(vault, given, module.check_mode)}
        elif given["state"] == "restored":
            changed, version = restore(vault, given, module.check_mode)
            result = {"changed": changed, "version": version}
        else:
            result = {"changed": False, "version": read(vault, given["path"])[1]}
    except VaultAccessError as failure:
        module.fail_json(msg=str(failure))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
