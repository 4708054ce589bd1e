#!/usr/bin/python
"""Keep objects of Vault as declared: mounts, policies, roles, database connections, secrets."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vault_object
short_description: Keep one object of Vault, or several in order, as declared
description:
  - Reads the object, compares the declared keys and writes the whole document if one of them differs.
  - Durations, lists against comma-separated strings, the order of lists and white space of policies are not
    differences, except in the contents of a KV v2 secret.
  - Mounts (C(sys/mounts/X), C(sys/auth/X)) are created once and tuned from then on.
  - A KV v2 secret keeps the keys that are not declared.
  - Several objects take one execution and one connection; they are applied in the order given, so a mount comes
    before what it holds.
  - Runs on the controller and needs its hvac.
options:
  objects:
    description:
      - The objects, each with the keys that a single one has; instead of O(path) and the other keys.
      - When one fails, the message names it and those written before it; later ones are not touched. Repeat the run.
    type: list
    elements: dict
    suboptions: &object
      path:
        description: Path of Vault's API without v1, such as C(auth/approle/role/web1) or C(secret/data/forge).
        type: str
      data: {description: The body as Vault's API documents it; nothing by default., type: dict}
      secret_data:
        description:
          - Merged into what is written; never compared, never shown.
          - An empty value is refused when it would be written.
        type: dict
      secret_data_create_only:
        description:
          - Write O(secret_data) only when the object does not exist yet; later writes leave it to Vault.
          - For the first password of a database connection, which Vault may have rotated since.
        type: bool
      create_only: {description: Leave an existing object as it is., type: bool}
      generate:
        description:
          - "KV v2 only: key names and lengths."
          - A key the secret lacks is written with so many random hexadecimal digits.
          - Existing keys are never changed. The values are made here and never shown.
        type: dict
  <<: *object
  address: {description: URL of Vault; default is C(VAULT_ADDR)., type: str}
  token:
    description:
      - Token; default is C(VAULT_TOKEN), else the content of the file that C(VAULT_TOKEN_FILE) names.
      - The file ~/.vault-token is not read.
    type: str
  ca_certificate:
    description: PEM file of Vault's certificate authority; default is C(VAULT_CACERT).
    type: path
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Let the host log in
  vault_object:
    path: auth/approle/role/web1
    data: {token_policies: [forge], token_period: 1h, secret_id_bound_cidrs: [10.0.0.5/32]}

- name: Generate the secret key once
  vault_object:
    path: secret/data/forge
    generate: {secret_key: 64}

- name: Enable an engine and put a secret into it
  vault_object:
    objects:
      - {path: sys/mounts/secret, data: {type: kv, options: {version: "2"}}}
      - {path: secret/data/forge, generate: {secret_key: 64}}
"""

RETURN = r"""
created: {description: Whether the object did not exist before., type: bool, returned: success with path}
differing: {description: Names of the keys that differed., type: list, returned: success with path}
objects:
  description: Path, changed, created and differing of each object; those before the failed one after a failure.
  type: list
  returned: with objects
"""

import re
import secrets
from typing import Any, NamedTuple

from ansible.module_utils.bareforge_vault import Vault, VaultAccessError, token_from_environment
from ansible.module_utils.bareforge_vault_compare import differing, merge
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import env_fallback

MOUNT = re.compile(r"^sys/(mounts|auth)/")
KV = re.compile(r"^(?!sys/|auth/)[^/].*?/data/")
GENERATED_DIGITS = range(16, 1025)
"""Lengths that can be asked for: 64 bits of randomness at least, what one line of a file can hold at most."""

OBJECT: dict[str, dict[str, Any]] = {
    "path": {"type": "str"},
    "data": {"type": "dict"},
    "secret_data": {"type": "dict", "no_log": True},
    "secret_data_create_only": {"type": "bool", "no_log": False},
    "create_only": {"type": "bool"},
    "generate": {"type": "dict"},
}
"""Options that declare one object, without defaults: Ansible would take a default for given beside O(objects)."""


class Declared(NamedTuple):
    """One object as it should be."""

    path: str
    data: dict[str, Any]
    secret_data: dict[str, Any]
    secret_data_create_only: bool
    create_only: bool
    generate: dict[str, Any]

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Declared:
        """Take the options of OBJECT; what is not given is empty or false."""
        return cls(
            path=options["path"].strip("/"),
            data=options["data"] or {},
            secret_data=options["secret_data"] or {},
            secret_data_create_only=bool(options["secret_data_create_only"]),
            create_only=bool(options["create_only"]),
            generate=options["generate"] or {},
        )


class VaultObject:
    """One object at a path; knows how its kind is read and written."""

    def __init__(self, vault: Vault, path: str) -> None:
        self.vault = vault
        self.path = path
        self.is_mount = bool(MOUNT.match(self.path))
        self.is_kv = bool(KV.match(self.path))

    def current(self) -> dict[str, Any] | None:
        """Return the object in the shape in which it is written; None when it does not exist."""
        found = self.vault.read(self.path)
        if found is not None and self.is_kv and found.get("data") is None:
            version = found.get("metadata", {}).get("version")
            raise VaultAccessError(
                f"the current version ({version}) of {self.path} is deleted; undelete it, "
                "or delete the metadata of the secret to start afresh"
            )
        # a database connection is written flat and returned with its details one level down
        return merge(found, found.get("connection_details") or {}) if found is not None else None

    def write(self, current: dict[str, Any] | None, body: dict[str, Any]) -> None:
        """Create the object or bring it to body."""
        if self.is_mount and current is not None:
            self._tune(current, body)
        elif self.is_kv:
            # a write replaces all keys of a secret: keep the others, fail if someone writes at the same time
            kept = current["data"] if current else {}
            version = current["metadata"]["version"] if current else 0
            self.vault.write(self.path, {**merge({"data": kept}, body), "options": {"cas": version}})
        else:
            self.vault.write(self.path, body)

    def _tune(self, current: dict[str, Any], body: dict[str, Any]) -> None:
        fixed = {key: value for key, value in body.items() if key not in ("config", "options", "description")}
        for key in differing(fixed, current):
            raise VaultAccessError(
                f"{self.path} exists with {key} {current.get(key)!r}, which cannot become {fixed[key]!r}; "
                "choose another path, or disable the mount (this deletes what it holds)"
            )
        tunable = {key: value for key, value in body.items() if key in ("options", "description")}
        self.vault.write(f"{self.path}/tune", {**body.get("config", {}), **tunable})


def ensure(vault: Vault, declared: Declared, check_mode: bool) -> dict[str, Any]:
    """Bring one object to what is declared; return the module's result for it."""
    data = declared.data
    target = VaultObject(vault, declared.path)
    current = target.current()
    created = current is None
    if current is not None and declared.create_only:
        return {"changed": False, "created": False, "differing": []}

    wanted = differing(data, current or {}, exact=target.is_kv)
    generated = missing_keys(target, current, declared.generate)
    changed = created or bool(wanted or generated)
    result = {
        "changed": changed,
        "created": created,
        "differing": wanted + [f"data.{key}" for key in generated],
        "diff": difference(target, current, data, generated),
    }
    if not changed:
        return result

    body = data
    if created or not declared.secret_data_create_only:
        refuse_empty(target.path, declared.secret_data)
        body = merge(body, declared.secret_data)
    if check_mode:
        return result
    if generated:
        body = merge(body, {"data": {key: secrets.token_hex(length)[:length] for key, length in generated.items()}})
    target.write(current, body)

    ignored = differing(data, target.current() or {}, exact=target.is_kv)
    if ignored:
        raise VaultAccessError(
            f"Vault accepted {target.path} but did not keep {', '.join(ignored)}; check the spelling of the "
            "key and the form of its value"
        )
    return result


def missing_keys(target: VaultObject, current: dict[str, Any] | None, generate: dict[str, Any]) -> dict[str, int]:
    """Return the keys to generate with their lengths; refuse what cannot be generated."""
    if not generate:
        return {}
    if not target.is_kv:
        raise VaultAccessError(f"generate needs the path of a KV v2 secret (MOUNT/data/NAME), not {target.path}")
    for key, length in generate.items():
        if not isinstance(length, int) or length not in GENERATED_DIGITS:
            raise VaultAccessError(
                f"{target.path}: the length of generated key {key!r} must be a number from "
                f"{GENERATED_DIGITS.start} to {GENERATED_DIGITS.stop - 1}"
            )
    held = current["data"] if current else {}
    return {key: length for key, length in generate.items() if key not in held}


def refuse_empty(path: str, secret_data: dict[str, Any]) -> None:
    """Refuse to write a secret that was not given."""
    for key, value in secret_data.items():
        if isinstance(value, dict):
            refuse_empty(path, value)
        elif value in (None, ""):
            raise VaultAccessError(
                f"{path} must be written but its secret {key!r} is empty; provide it, see docs/vault.md"
            )


def difference(
    target: VaultObject, current: dict[str, Any] | None, data: dict[str, Any], generated: dict[str, int]
) -> dict[str, Any]:
    """Return Ansible's diff of the declared keys; of a secret only the names of its keys."""
    header = {"before_header": target.path, "after_header": target.path}
    if target.is_kv:
        held = set(current["data"]) if current else set()
        wanted = held | set(data.get("data", {})) | set(generated)
        return {**header, "before": {"keys": sorted(held)}, "after": {"keys": sorted(wanted)}}
    before = {key: (current or {}).get(key) for key in data if current is not None}
    # equal values in another spelling are shown alike
    after = {key: data[key] if differing({key: data[key]}, current or {}) else before.get(key) for key in data}
    return {**header, "before": before, "after": after}


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the module's result for a list: what became of each object, the differences of those that changed."""
    changed = [one for one in done if one["changed"]]
    return {
        "changed": bool(changed),
        "objects": [{key: one[key] for key in ("path", "changed", "created", "differing")} for one in done],
        "diff": [one["diff"] for one in changed],
    }


def progress(declared: list[Declared], done: list[dict[str, Any]], check_mode: bool) -> str:
    """Say at which object of a list a run ended and what it had written by then."""
    written = [] if check_mode else [one["path"] for one in done if one["changed"]]
    before = f"written before it: {', '.join(written)}" if written else "nothing was written before it"
    return f"(at object {len(done) + 1} of {len(declared)}, {declared[len(done)].path}; {before})"


class Module(AnsibleModule):
    """Keeps the arguments out of syslog: in the text of a list Ansible misses secrets with quotes or backslashes."""

    def log(self, msg: str, log_args: dict[str, Any] | None = None) -> None:
        """Log the message; of an invocation (with log_args) only the paths."""
        if log_args is not None:
            several = self.params["objects"]
            msg = "Invoked for " + ", ".join(one["path"] for one in ([self.params] if several is None else several))
        super().log(msg)  # type: ignore[no-untyped-call]


def main() -> None:
    """Run the module."""
    module = Module(  # type: ignore[no-untyped-call]
        argument_spec={
            **OBJECT,
            "objects": {
                "type": "list",
                "elements": "dict",
                "options": {**OBJECT, "path": {"type": "str", "required": True}},
            },
            "address": {"type": "str", "fallback": (env_fallback, ["VAULT_ADDR"])},
            "token": {"type": "str", "no_log": True},
            "ca_certificate": {"type": "path", "fallback": (env_fallback, ["VAULT_CACERT"])},
        },
        mutually_exclusive=[("objects", key) for key in OBJECT],
        required_one_of=[("objects", "path")],
        supports_check_mode=True,
    )
    given, check_mode = module.params, module.check_mode
    several = given["objects"] is not None
    declared = [Declared.from_options(one) for one in (given["objects"] if several else [given])]
    done: list[dict[str, Any]] = []
    try:
        vault = Vault(
            given["address"] or "",
            given["token"] or token_from_environment(),
            given["ca_certificate"] or "",
            purpose=f"write {', '.join(one.path for one in declared)}",
        )
    except VaultAccessError as failure:
        module.fail_json(msg=str(failure))
    try:
        for one in declared:
            done.append({"path": one.path, **ensure(vault, one, check_mode)})
    except VaultAccessError as failure:
        if not several:
            module.fail_json(msg=str(failure))
        module.fail_json(msg=f"{failure} {progress(declared, done, check_mode)}", **summary(done))
    if several:
        module.exit_json(**summary(done))
    # a result with a path of its own would be taken for a file
    module.exit_json(**{key: value for key, value in done[0].items() if key != "path"})


if __name__ == "__main__":
    main()
