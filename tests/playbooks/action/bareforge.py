"""Stands for the engine: records what it is asked, and fails or is lost where the test says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """FLEET names a directory; its faults.json has STATE or STATE:lost by host, the state at which that happens."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        fleet = Path(os.environ["FLEET"])
        asked = str(self._task.args["state"])
        host = str(self._task.delegate_to or (task_vars or {})["inventory_hostname"])
        fault = json.loads((fleet / "faults.json").read_text()).get(host, "")
        gone = fleet / f"gone {host}"
        if fault == f"{asked}:lost":
            gone.touch()
        if gone.exists():
            raise AnsibleConnectionFailure("it is gone")
        if fault == asked:
            return {"failed": True, "msg": f"{host} failed when it was to be {asked}"}
        if self._task.check_mode:
            return self._answer(asked, host, fleet)
        with (fleet / "calls").open("a") as calls:
            unfinished = " unfinished" if self._task.args.get("unfinished") else ""
            calls.write(f"{host} {asked}{unfinished}\n")
        if asked == "activated":
            (fleet / f"serving {host}").write_text("new")
        if asked == "reverted":
            (fleet / f"serving {host}").write_text("old")
        idle = (fleet / f"idle {host}").exists()
        kept = not idle or (fleet / f"inherited {host}").exists()
        if asked == "locked" or (asked == "released" and kept):
            (fleet / f"lock {host}").touch()
        if asked == "unlocked" or (asked == "released" and not kept):
            (fleet / f"lock {host}").unlink(missing_ok=True)
        if fault == f"{asked}:lost afterwards":
            gone.touch()
        return self._answer(asked, host, fleet)

    def _answer(self, asked: str, host: str, fleet: Path) -> dict[str, Any]:
        answer: dict[str, Any] = {"changed": not self._task.check_mode}
        if asked in ("staged", "planned"):
            answer |= {"activation": "a", "release": "r", "pending": True, "serving": True}
        if asked == "released":
            idle, unproven = ((fleet / f"{word} {host}").exists() for word in ("idle", "unproven"))
            answer |= {"activation": "a", "pending": not idle, "serving": True, "proven": not unproven}
            inherited = (fleet / f"inherited {host}").exists()
            answer["locked"] = (not idle or inherited) and not self._task.check_mode
        if asked == "activated":
            answer |= {"activation": "a", "secrets": []}
        return answer
