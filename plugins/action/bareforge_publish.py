"""bareforge_publish: the whole of it runs on the controller."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

CHECKOUT = Path(__file__).resolve().parents[2]
# Ansible puts the configured module_utils path into modules only; an action plugin has to add it itself
if str(CHECKOUT / "plugins/module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(CHECKOUT / "plugins/module_utils"))
from ansible.module_utils.bareforge_bundle import BundleError, Target  # noqa: E402
from ansible.module_utils.bareforge_publish import Publication, publish  # noqa: E402


class ActionModule(ActionBase):
    """Publishes; nothing is done on the host."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return changed, release, manifest and sequence."""
        super().run(tmp, task_vars)
        given = self._task.args
        store = Path(given["store"]).expanduser().absolute()
        wanted = Publication(
            name=str(given["name"]),
            store=store,
            url=str(given.get("url") or store),
            key=Path(given["key"]).expanduser().absolute(),
            source=str(given["source"]),
            lock=str(given["lock"]),
            inventories=tuple(Path(item).absolute() for item in given["inventories"]),
            agent=bool(given["agent"]),
            target=Target(**{key: str(value) for key, value in given["target"].items()}),
            by=f"{getpass.getuser()}@{socket.gethostname()}",
        )
        if self._task.check_mode:
            return {"skipped": True, "msg": "what would be published is known only once it is built"}
        try:
            return publish(wanted, CHECKOUT, Path("~/.cache/bareforge").expanduser())
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        except OSError as error:
            where = error.filename or store
            raise AnsibleActionFail(f"{error.strerror} at {where}; correct it and run again") from None
