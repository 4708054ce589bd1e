"""Controller half of bareforge: says who acts, asks the host's own engine, waits for the lock, ships a release."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PLUGINS = Path(__file__).resolve().parents[1]
# Ansible puts the configured module_utils path into modules only; an action plugin has to add it itself
if str(PLUGINS / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
from ansible.module_utils.bareforge_bundle import (  # noqa: E402
    BundleError,
    Plan,
    Target,
    build_layer,
    build_release,
    compressed,
    make_plan,
)
from ansible.module_utils.bareforge_targets import host_key, remember, remembered  # noqa: E402

INTERVAL = 5  # seconds between two questions for a lock that is waited for
# Where role asgi_app puts the engine, by the host's own Python
ENGINE = "/usr/bin/python3 -I /usr/local/lib/bareforge/bareforge.py module"
STARTED = "bareforge: started"
# A host may correct what it was taken for (its Python), then ask for layer and release
QUESTIONS = 4


def process_start(pid: int) -> str:
    """When a process of this machine was started, in clock ticks since the boot; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # what its parent has not collected has ended all the same
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def machine() -> str:
    """This machine, or the container on it, since its last boot: a process number means nothing beyond any of them."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def identity(pid: int) -> dict[str, Any]:
    """The run of ansible-playbook whose main process is pid: its id, its owner, and how to tell whether it lives."""
    started = process_start(pid)
    return {
        "id": hashlib.sha256(f"{machine()} {pid} {started}".encode()).hexdigest()[:12],
        "owner": f"{getpass.getuser()}@{socket.gethostname()}",
        "machine": machine(),
        "pid": pid,
        "pid_started": started,
    }


def is_dead(run: dict[str, Any]) -> bool:
    """Whether a run is known to have ended: it was one of this machine and its process is gone."""
    return run.get("machine") == machine() and process_start(int(run.get("pid", 0))) != run.get("pid_started")


def engine_digest() -> str:
    """SHA-256 of the engine's files in this checkout, as the engine itself computes it."""
    files = (PLUGINS / "modules/bareforge.py", PLUGINS / "modules/bareforge_release.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def read_answer(output: str, errors: str = "") -> dict[str, Any] | None:
    """The engine's answer in what a host has printed; None where it was not this engine that ran.

    One that has started and not answered is a failure: nobody may take it for one that did nothing.
    """
    lines = output.splitlines()
    if STARTED not in lines:
        return None
    said = lines[lines.index(STARTED) + 1 :]
    try:
        answer: dict[str, Any] = json.loads(said[-1])
    except (IndexError, ValueError):
        last = ": " + errors.strip().splitlines()[-1] if errors.strip() else ""
        return {"failed": True, "msg": f"the engine on this host ended without an answer{last}; run again"}
    return answer


class ActionModule(ActionBase):
    """Runs the engine with the identity of this run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the engine's result; where another run has the lock, a failure that names it."""
        super().run(tmp, task_vars)
        # every task runs in a child of ansible-playbook's main process
        arguments = {**self._task.args, "run": identity(os.getppid())}
        if arguments.get("state") == "released":
            return self._release(arguments, task_vars or {})
        if arguments.get("state") == "locked":
            return self._unlocked(arguments, task_vars)
        return self._ask(arguments, task_vars)

    def _unlocked(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None, bundle: bytes = b""
    ) -> dict[str, Any]:
        """Ask what needs the lock, again while another run has it and there is time to wait."""
        deadline = time.monotonic() + int(arguments.get("wait", 0))
        while True:
            answer = self._ask(arguments, task_vars, bundle)
            held = answer.get("held")
            if not held:
                return answer
            if is_dead(held):
                Display().display(f"taking over the lock of {held['owner']}, whose run has ended without giving it up")
                arguments["steal"] = held["id"]
                continue
            if time.monotonic() >= deadline:
                return {**answer, "failed": True, "msg": answer["text"]}
            Display().display(f"waiting for the lock: {answer['text']}")
            time.sleep(INTERVAL)

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None, bundle: bytes = b"") -> dict[str, Any]:
        answer = self._ask_host(arguments, bundle)
        if answer is None and arguments.get("state") == "released":
            if not self._is_pipelining_enabled("new"):
                raise AnsibleActionFail(
                    "a release needs pipelining, which this connection does not have; see ansible.cfg"
                )
            raise AnsibleActionFail(
                "the engine on this host is not the one of this checkout; run playbooks/deploy.yml, which brings it"
            )
        if answer is None:
            answer = dict(self._execute_module(module_name="bareforge", module_args=arguments, task_vars=task_vars))
        # the message says it all, unless it points at the lines above itself; -v shows them in any case
        if "above" not in str(answer.get("msg", "")) and Display().verbosity == 0:
            answer.pop("details", None)
        return answer

    def _ask_host(self, arguments: dict[str, Any], bundle: bytes) -> dict[str, Any] | None:
        """What the host's own engine answers: arguments are all that has to be sent. None where it is another one."""
        # the same that lets Ansible hand a module over on standard input: not with su, not with a terminal
        if not self._is_pipelining_enabled("new"):
            return None
        asked = {"engine": engine_digest(), "check_mode": bool(self._task.check_mode), "arguments": arguments}
        sent = json.dumps(asked).encode() + b"\n" + bundle
        done = self._low_level_execute_command(ENGINE, in_data=sent, sudoable=True)
        return read_answer(done["stdout"], done["stderr"])

    # ------------------------------------------------------------------------------------------------------ release

    def _release(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Build what is missing, ship it with the question; returns what the engine says, id, path and version."""
        cache = Path(arguments.get("cache", "~/.cache/bareforge")).expanduser()
        key = host_key(str(arguments["name"]), task_vars)
        known = remembered(cache, key)
        kinds: set[str] = set()
        try:
            for _ in range(QUESTIONS):
                plan = self._plan(arguments, known["target"], cache) if "target" in known else None
                if plan and plan.release_id not in known.get("releases", []):
                    kinds.add("release")
                bundle, parts = self._archives(plan, kinds, cache)
                want = {
                    "id": plan.release_id if plan else "",
                    "layer": plan.layer if plan else "",
                    "target": known.get("target", {}),
                    "parts": parts,
                }
                answer = self._unlocked({**arguments, "bundle": want}, task_vars, bundle)
                known["releases"] = answer.get("releases", [])
                if answer.get("needs") == "target":
                    known["target"], kinds = answer["target"], set()
                elif answer.get("needs"):
                    kinds.add(answer["needs"])
                else:
                    break
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        if answer.get("failed") or plan is None:
            return answer
        if not self._task.check_mode:
            remember(cache, key, **known)
        path = f"/srv/{arguments['name']}/releases/{plan.release_id}"
        return {**answer, "id": plan.release_id, "path": path, "version": plan.source.version}

    @staticmethod
    def _plan(arguments: dict[str, Any], target: dict[str, str], cache: Path) -> Plan:
        extras = [str(item) for item in arguments.get("extras", [])]
        lock = str(arguments.get("lock", "requirements.lock"))
        return make_plan(str(arguments["source"]), lock, extras, Target(**target), cache, server=True)

    def _archives(self, plan: Plan | None, kinds: set[str], cache: Path) -> tuple[bytes, list[tuple[str, int, str]]]:
        """The archives of these kinds in a row, and for each kind, size and SHA-256."""
        bundle, parts = b"", list[tuple[str, int, str]]()
        if plan and not self._task.check_mode:
            for kind in sorted(kinds):
                # a layer is wheels, which are compressed already
                archive = build_layer(plan, cache) if kind == "layer" else compressed(build_release(plan, cache))
                content = archive.read_bytes()
                bundle += content
                parts.append((kind, len(content), hashlib.sha256(content).hexdigest()))
        return bundle, parts
