"""Controller half of bareforge_release: build what the host lacks, ship it, let the module install it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible puts the configured module_utils path into modules only; an action plugin has to add it itself
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.bareforge_bundle import (  # noqa: E402
    BundleError,
    Target,
    build_layer,
    build_release,
    make_plan,
)
from ansible.module_utils.bareforge_targets import host_key, remember  # noqa: E402


class ActionModule(ActionBase):
    """Probe the host, plan, and only if the release is missing: build, transfer, install."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the release's id, path and version; changed where it had to be installed."""
        super().run(tmp, task_vars)
        given = dict(self._task.args)
        root = str(given["root"])
        on_host = {"root": root, "python": given.get("python", "/usr/bin/python3"), "keep": given.get("keep", 5)}
        cache = Path(given.get("cache", "~/.cache/bareforge")).expanduser()

        probe = self._module(task_vars, **on_host, state="probe")
        target = Target(probe["python_version"], probe["machine"], probe["libc_version"])
        try:
            plan = make_plan(
                str(given["source"]),
                str(given.get("lock", "requirements.lock")),
                [str(item) for item in given.get("extras", [])],
                target,
                cache,
                server=bool(given.get("server", False)),
            )
            result = {
                "id": plan.release_id,
                "path": f"{root}/releases/{plan.release_id}",
                "version": plan.source.version,
            }
            if not self._task.check_mode:
                facts = {name: probe[name] for name in ("python_version", "machine", "libc_version")}
                has = sorted({*probe["releases"], plan.release_id})
                remember(cache, host_key(Path(root).name, task_vars or {}), target=facts, releases=has)
            if plan.release_id in probe["releases"]:
                return {**result, "changed": False}
            if self._task.check_mode:
                return {**result, "changed": True}
            layer = None if plan.layer in probe["layers"] else build_layer(plan, cache)
            release = build_release(plan, cache)
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None

        self._connection._shell.tmpdir = self._make_tmp_path()
        try:
            shipped = self._ship(layer), self._ship(release)
            installed = self._module(
                task_vars,
                **on_host,
                state="present",
                release_id=plan.release_id,
                layer=plan.layer,
                layer_archive=shipped[0],
                release_archive=shipped[1],
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return {**result, "changed": True, "removed": installed["removed"]}

    def _ship(self, archive: Path | None) -> str | None:
        if archive is None:
            return None
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, archive.name)
        self._transfer_file(str(archive), remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return str(remote)

    def _module(self, task_vars: dict[str, Any] | None, **args: Any) -> dict[str, Any]:
        answer = self._execute_module(module_name="bareforge_release", module_args=args, task_vars=task_vars)
        if answer.get("failed") or ("msg" in answer and "changed" not in answer):
            raise AnsibleActionFail(answer.get("msg", "the module gave no reason"), result=answer)
        return dict(answer)
