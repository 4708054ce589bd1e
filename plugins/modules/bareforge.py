#!/usr/bin/python3
"""The engine: moves releases on one host without losing a request. Standard library only.

One file with three faces: an Ansible module (the playbooks), a command on the host (`bareforge --help`, also the unit's
`ExecReload=`), and an import for unit tests.

An *activation* is one release with its configuration, immutable, below /etc/NAME/activations. /etc/NAME/active names
the one that serves, /srv/NAME/current leads through it to the release, and the units are links through it too: one
atomic rename switches all of them together, so that no reboot and no kill can meet half of a switch.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: bareforge
short_description: Stage, prove, switch and take back releases of an application on one host
description:
  - C(staged) stores a release with its configuration as an activation, beside what serves, and verifies it.
  - C(migrated) runs the release's migration. C(proven) starts it on a private socket and asks whether it is ready.
  - C(activated) switches to it, by USR2 hand-over, HUP or a restart behind the held socket, and back on any failure.
  - C(planned) chooses the activation to roll back to. C(locked), C(unlocked) and C(recorded) keep lock and history.
  - C(released) locks, installs a release, stages it with the configuration that serves and proves it, in one step.
options:
  name: {description: Name of the application., type: str, required: true}
  state:
    description: What to reach.
    type: str
    choices:
      [staged, migrated, proven, activated, reverted, planned, locked, unlocked, recorded, released, status, history]
    required: true
  release:
    description: Release id. Empty keeps the active one (staged), or takes the last good one (planned).
    type: str
    default: ""
  activation: {description: The activation to prove or to switch to., type: str, default: ""}
  files:
    description: Content of environment, gunicorn.conf.py, NAME.service and NAME.socket.
    type: dict
    default: {}
  settings: {description: "What the engine must know: module, workers, ready_path and more.", type: dict, default: {}}
  command: {description: Module with arguments that migrates., type: list, elements: str, default: []}
  soak: {description: Seconds the candidate has to stay ready., type: float, default: 0}
  secrets: {description: Directory of secrets for the candidate instead of its own., type: str, default: ""}
  method: {description: How to switch where there is a choice., type: str, choices: [handover, hup], default: handover}
  action: {description: What the history calls it., type: str, default: deploy}
  keep: {description: How many activations to keep., type: int, default: 5}
  ignore_schema: {description: Roll back although the database may be too new., type: bool, default: false}
  run: {description: Who acts; set by the action plugin., type: dict, default: {}}
  steal: {description: "Run whose lock is taken over; for unlocked, * is any.", type: str, default: ""}
  wait: {description: Seconds to wait for the lock., type: int, default: 0}
  minutes: {description: Minutes after which a lock that nobody renews expires., type: int, default: 30}
  witness: {description: Result of the traffic witness for the history., type: dict, default: {}}
  source: {description: "What to release, as for bareforge_release (released).", type: str, default: ""}
  lock:
    description: Hashed lock file, absolute or relative to the source (released).
    type: str
    default: requirements.lock
  extras:
    description: Further source directories on the controller whose wheels belong to the release (released).
    type: list
    elements: str
    default: []
  python: {description: Interpreter of the host (released)., type: str, default: /usr/bin/python3}
  cache: {description: Bundle cache on the controller (released)., type: str, default: ~/.cache/bareforge}
  bundle: {description: What the controller has planned (released)., type: dict, default: {}}
  unfinished:
    description: Whether the run ends before it has switched anything; what a dead run has left stays known (unlocked).
    type: bool
    default: false
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Switch to the release
  bareforge:
    name: forge
    state: activated
    activation: "{{ staged.activation }}"
"""

RETURN = r"""
activation: {description: Id of the activation., type: str, returned: staged and activated and planned}
proven: {description: Whether the candidate was ready., type: bool, returned: released}
previous: {description: Id of the activation that served before., type: str, returned: activated}
method: {description: How it was switched., type: str, returned: activated}
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

INTERVAL = 0.1  # seconds between two looks at something that is waited for
PROMOTION = 15  # seconds a new gunicorn master may take to notice that the old one is gone; it looks once a second
COLLECTED = 10  # seconds for gunicorn to note that a child has ended: milliseconds, unless the host has no time for it
STARTED_BY_SIGNAL = 20  # seconds from USR2 until the new master is there
LOCK_PATIENCE = 10  # seconds for whoever reads or writes the lock at the same moment; that takes milliseconds
# What of a unit is about running the service; the rest is its sandbox, under which candidate and migration run too
ABOUT_RUNNING = re.compile(
    r"(Type|NotifyAccess|PIDFile|Exec(Start|Reload|Stop|Condition)\w*|Restart\w*|RuntimeDirectory\w*|KillMode|Timeout\w*"
    r"|EnvironmentFile|Sockets|WatchdogSec|RemainAfterExit)="
)
# What the role takes as asgi_app_name
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
WITNESSED = ("requests", "failed", "failures", "stalls", "longest_ms")  # of the witness's document, for the history
INSTALLER = "bareforge_release.py"  # the engine's other file, beside this one
ORPHAN_PATIENCE = 60  # seconds for a step that goes on without its run, as after Ctrl-C on the controller
PIECE = 1 << 20  # bytes
STARTED = "bareforge: started"  # what a controller reads before the answer: from then on it was the engine that ran
ROUTINE = re.compile(r"\[[^]]+\] \[\d+\] \[INFO\] ")  # gunicorn: [time] [pid] [INFO] Worker exiting (pid: 7)
# Alembic, Django and the reference service say so when there was something to do
MIGRATED = re.compile(r"migrated from|Running upgrade|Applying ")


STATES = ("staged", "migrated", "proven", "activated", "reverted", "planned", "locked", "unlocked", "recorded")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "required": True, "choices": [*STATES, "released", "status", "history"]},
    "release": {"type": "str", "default": ""},
    "activation": {"type": "str", "default": ""},
    "files": {"type": "dict", "default": {}},
    "settings": {"type": "dict", "default": {}},
    "command": {"type": "list", "elements": "str", "default": []},
    "soak": {"type": "float", "default": 0},
    # a directory, not what is in it
    "secrets": {"type": "str", "default": "", "no_log": False},
    "method": {"type": "str", "choices": ["handover", "hup"], "default": "handover"},
    "action": {"type": "str", "default": "deploy"},
    "keep": {"type": "int", "default": 5},
    "ignore_schema": {"type": "bool", "default": False},
    "run": {"type": "dict", "default": {}},
    "steal": {"type": "str", "default": ""},
    "wait": {"type": "int", "default": 0},
    "minutes": {"type": "int", "default": 30},
    "witness": {"type": "dict", "default": {}},
    "source": {"type": "str", "default": ""},
    "lock": {"type": "str", "default": "requirements.lock"},
    "extras": {"type": "list", "elements": "str", "default": []},
    "python": {"type": "str", "default": "/usr/bin/python3"},
    "cache": {"type": "str", "default": "~/.cache/bareforge"},
    "bundle": {"type": "dict", "default": {}},
    "unfinished": {"type": "bool", "default": False},
}
"""What the module takes, in Ansible's own form; the command `bareforge module` reads it too."""


class EngineError(Exception):
    """A refusal: one line `cause; cure`. details: lines worth showing above it."""

    def __init__(self, message: str, details: list[str] | None = None) -> None:
        super().__init__(message)
        self.details = details or []


@dataclass(frozen=True)
class Paths:
    """Where everything of one application is, derived from its name; root is / but for unit tests."""

    name: str
    root: Path = Path("/")

    @property
    def releases(self) -> Path:
        """Immutable releases, by id."""
        return self.root / "srv" / self.name / "releases"

    @property
    def current(self) -> Path:
        """Leads to the release that serves."""
        return self.root / "srv" / self.name / "current"

    @property
    def previous(self) -> Path:
        """Leads to the release that served before, which no clean-up may remove."""
        return self.root / "srv" / self.name / "previous"

    @property
    def activations(self) -> Path:
        """Releases with their configuration, by id."""
        return self.root / "etc" / self.name / "activations"

    @property
    def active(self) -> Path:
        """The link that a switch replaces."""
        return self.root / "etc" / self.name / "active"

    @property
    def runtime(self) -> Path:
        """Pid files and markers of gunicorn."""
        return self.root / "run" / self.name / "gunicorn"

    @property
    def state(self) -> Path:
        """Lock, history and what has been switched to."""
        return self.root / "var/lib" / self.name

    @property
    def units(self) -> Path:
        """Directory of the host's own units."""
        return self.root / "etc/systemd/system"

    @property
    def service(self) -> str:
        """Name of the service's unit."""
        return f"{self.name}.service"

    @property
    def socket(self) -> str:
        """Name of the socket's unit."""
        return f"{self.name}.socket"

    def files(self) -> tuple[str, ...]:
        """What an activation consists of, beside activation.json."""
        return ("environment", "gunicorn.conf.py", self.service, self.socket)


# ---------------------------------------------------------------------------------------------- files that survive


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise EngineError(f"{path} is not JSON; remove it if you know why, and run again") from None
    return document


def write_durably(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file so that after a power cut it is the old one or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fchmod(handle.fileno(), mode)
        os.fsync(handle.fileno())
    partial.rename(path)
    sync_directory(path.parent)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file durably."""
    write_durably(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(link: Path, target: str) -> None:
    """Let a symbolic link name another target, atomically and durably; no change, no write."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(link)
    sync_directory(link.parent)


# ---------------------------------------------------------------------------------------------------- activations


def activation_id(files: dict[str, str]) -> str:
    """12 hexadecimal digits that follow from the content of an activation's files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name].encode())}\0{files[name]}\0".encode())
    return digest.hexdigest()[:12]


def active_id(paths: Paths) -> str:
    """The activation that a boot would start, empty if there is none."""
    return paths.active.readlink().name if paths.active.is_symlink() else ""


def serving_id(paths: Paths) -> str:
    """The activation that serves, by the engine's record. Raises EngineError if there is none."""
    serving = read_json(paths.state / "state.json").get("serving", "")
    if not serving:
        raise EngineError(f"{paths.name} serves nothing on {os.uname().nodename}; deploy a release first")
    return str(serving)


def settings_of(paths: Paths, activation: str) -> dict[str, Any]:
    """The activation.json of an activation: release and what the engine must know of the application."""
    settings = read_json(paths.activations / activation / "activation.json") if activation else {}
    if not settings:
        raise EngineError(f"there is no activation {activation or '(none)'} of {paths.name}; deploy it first")
    return settings


def plan_files(paths: Paths, release: str, files: dict[str, str], settings: dict[str, Any]) -> dict[str, str]:
    """All files of an activation by name. Raises EngineError where one is missing or the release is not there."""
    missing = set(paths.files()) - set(files)
    if missing:
        raise EngineError(f"the activation lacks {', '.join(sorted(missing))}; this is a fault of the role")
    chosen = release or settings_of(paths, active_id(paths))["release"]
    document = {**settings, "name": paths.name, "release": chosen}
    return {**files, "activation.json": json.dumps(document, indent=1, sort_keys=True) + "\n"}


def stage(paths: Paths, files: dict[str, str]) -> str:
    """Store an activation beside the others and return its id; what is there already is left as it is."""
    activation = activation_id(files)
    release = json.loads(files["activation.json"])["release"]
    if not (paths.releases / release / "release.json").is_file():
        raise EngineError(f"release {release} is not on this host; run playbooks/deploy.yml, which brings it")
    destination = paths.activations / activation
    if not (destination / "activation.json").is_file():
        partial = paths.activations / f".{activation}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o755)
        for name, text in files.items():
            write_durably(partial / name, text)
        (partial / "release").symlink_to(paths.releases / release)
        sync_directory(partial)
        shutil.rmtree(destination, ignore_errors=True)
        partial.rename(destination)
        sync_directory(paths.activations)
    return activation


def differences(paths: Paths, files: dict[str, str]) -> list[dict[str, str]]:
    """What differs from the active configuration, file by file, as Ansible's --diff shows it."""
    found = []
    for name, after in files.items():
        try:
            before = (paths.active / name).read_text()
        except OSError:
            before = ""
        if before != after:
            header = f"{paths.active}/{name}"
            found.append({"before_header": header, "after_header": header, "before": before, "after": after})
    return found


def secrets_directories(paths: Paths) -> list[str]:
    """Where the activations that are kept read their secrets: all of them must stay for a rollback to find its own."""
    found = set()
    for file in paths.activations.glob("[0-9a-f]*/environment"):
        match = re.search(r'^BAREFORGE_SECRETS="(.+)"$', file.read_text(), re.M)
        found |= {match[1]} if match else set()
    return sorted(found)


def prune(paths: Paths, keep: int) -> None:
    """Forget the oldest activations beyond keep, never one that serves, served before, or is being switched to."""
    state, switch = read_json(paths.state / "state.json"), read_json(paths.state / "switch.json")
    protected = {active_id(paths), switch.get("from"), switch.get("to")}
    protected |= {state.get(name) for name in ("serving", "previous", "before")}
    kept = [item for item in state.get("served", []) if (paths.activations / item / "release").exists()][
        -max(keep, 1) :
    ]
    for item in paths.activations.iterdir():
        if item.name not in protected and item.name not in kept:
            shutil.rmtree(item)


# ------------------------------------------------------------------------------------------------------ processes


def call(command: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a program of the host; returns with whatever status it ended."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


def unit_properties(unit: str) -> dict[str, str]:
    """ActiveState, SubState, MainPID, NRestarts and UnitFileState of a unit."""
    names = "ActiveState,SubState,MainPID,NRestarts,UnitFileState,NeedDaemonReload"
    lines = call(["systemctl", "show", unit, f"--property={names}"]).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def process_stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process, also of one that has ended and was not collected; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def process_status(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None if there is none, or only what its parent has not collected yet."""
    found = process_stat(pid)
    return None if found and found[0] in "ZX" else found


def read_pid(file: Path) -> int:
    """The process that a pid file names, 0 if it names none that lives."""
    try:
        pid = int(file.read_text())
    except (OSError, ValueError):
        return 0
    return pid if process_status(pid) else 0


@dataclass(frozen=True)
class Worker:
    """What a worker says of itself in its marker."""

    pid: int
    master: int
    release: str
    activation: str
    ready: bool
    answer: str = ""


def workers(paths: Paths) -> list[Worker]:
    """The workers that live, by their markers; a marker of a process that is gone, or has another parent, is none."""
    found = []
    directory = paths.runtime / "workers"
    for file in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(file.read_text())
            worker = Worker(**{name: said[name] for name in Worker.__dataclass_fields__})
            status = process_status(worker.pid)
            if status and status[1] == worker.master:
                found.append(worker)
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(INTERVAL)
    return True


def processes() -> list[int]:
    """All processes of this host."""
    return [int(item.name) for item in Path("/proc").iterdir() if item.name.isdigit()]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    return [number for number in processes() if (process_status(number) or ("", 0))[1] == pid]


def has_collected(pid: int) -> bool:
    """Whether a process has taken note of every one of its children that has ended."""
    return ("Z", pid) not in map(process_stat, processes())


def end_process(pid: int, seconds: float) -> None:
    """TERM, and KILL for what does not end in time: a release that hangs at import hears no TERM."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10)):
        # workers do not notice that their master was killed: they would serve on when their import ends at last
        orphans = children(pid) if number == signal.SIGKILL else []
        for item in (pid, *orphans):
            with contextlib.suppress(ProcessLookupError):
                os.kill(item, number)
        if wait_for(lambda: process_status(pid) is None, patience):
            return


def end_master(paths: Paths, master: int, graceful_timeout: float) -> None:
    """End a master that is not wanted; where its workers serve already, their requests are finished first."""
    serves = any(item.master == master for item in workers(paths))
    end_process(master, graceful_timeout + 10 if serves else 5)


# ------------------------------------------------------------------------------------------------------- hand-over


def await_generation(
    paths: Paths, master: int, settings: dict[str, Any], not_among: frozenset[int] = frozenset()
) -> None:
    """Return when all workers of a master are ready with the settings' release; raises EngineError with the cause.

    not_among: workers that do not count, because they are of the generation before.
    """
    wanted, release, limit = int(settings["workers"]), settings["release"], float(settings["start_timeout"])
    mine: list[Worker] = []

    def complete() -> bool:
        nonlocal mine
        if process_status(master) is None:
            raise EngineError(f"master {master} ended before its workers were ready")
        mine = [item for item in workers(paths) if item.master == master and item.pid not in not_among]
        return len([item for item in mine if item.ready]) >= wanted

    if not wait_for(complete, limit):
        unready = [item.answer for item in mine if item.answer]
        raise EngineError(
            f"{len([item for item in mine if item.ready])} of {wanted} workers became ready within {limit:g} s"
            + (f", the others say: {unready[0]}" if unready else "")
        )
    strangers = {item.release for item in mine} - {release}
    if strangers:
        raise EngineError(f"workers run release {', '.join(sorted(strangers))} instead of {release}")


def successor(master: int) -> int:
    """The master that a master has started by USR2, 0 if there is none.

    gunicorn tells it by its environment. The pid file is no sign: one that dies at once has written and removed it
    between two looks, one that starts has not written it yet.
    """
    for pid in children(master):
        with contextlib.suppress(OSError):
            if f"GUNICORN_PID={master}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
    return 0


def handover(paths: Paths) -> str:
    """Let the running master start a second one, prove it, and end the first; returns one line that says what happened.

    Runs as the service's user inside of `systemctl reload`. On failure the new master is removed, the old one serves
    on, and EngineError says why. systemd reads the pid file again when this returns, so it returns only after the new
    master has put its own pid there.
    """
    settings = settings_of(paths, active_id(paths))
    pidfile = paths.runtime / "gunicorn.pid"
    second = pidfile.with_name("gunicorn.pid.2")
    old = read_pid(pidfile)
    if not old:
        raise EngineError(f"no master runs according to {pidfile}; start it: systemctl start {paths.name}")
    started = time.monotonic()
    patience = float(settings["graceful_timeout"])
    leftover = successor(old)
    if leftover:
        end_master(paths, leftover, patience)
    second.unlink(missing_ok=True)
    # gunicorn ignores USR2 while it has a successor, and of signals that wait together Python serves USR2 before CHLD
    wait_for(lambda: has_collected(old), COLLECTED)
    os.kill(old, signal.SIGUSR2)
    new = 0

    def started_one() -> bool:
        nonlocal new
        new = successor(old)
        return new != 0

    try:
        if not wait_for(started_one, STARTED_BY_SIGNAL):
            raise EngineError("the new master did not start")
        await_generation(paths, new, settings)
    except EngineError:
        if new:
            end_master(paths, new, patience)
        second.unlink(missing_ok=True)
        raise
    end_process(old, patience + 10)
    if not wait_for(lambda: read_pid(pidfile) == new, PROMOTION):
        raise EngineError(f"master {new} serves but did not take over {pidfile}; see: systemctl status {paths.name}")
    return f"master {old} handed over to {new}, {settings['workers']} workers ready, {time.monotonic() - started:.1f} s"


def reload_command(paths: Paths) -> None:
    """What `systemctl reload NAME` runs: a hand-over, proven first unless a switch has just proven it.

    Leaves the outcome in /run/NAME/gunicorn/handover.json for whoever asked systemd for the reload.
    """
    outcome = paths.runtime / "handover.json"
    outcome.unlink(missing_ok=True)
    activation = active_id(paths)
    try:
        if read_json(paths.state / "switch.json").get("to") != activation:
            check = check_command(paths, activation, soak=0)
            done = call(check, timeout=float(settings_of(paths, activation)["start_timeout"]) + 60)
            if done.returncode:
                raise EngineError(last_line(done.stderr), done.stderr.splitlines()[:-1])
        said = handover(paths)
    except EngineError as error:
        outcome.write_text(json.dumps({"cause": str(error)}))
        raise
    print(f"bareforge: {said}")


# ---------------------------------------------------------------------------------------------- candidate, migration


def sandbox(unit: str) -> list[str]:
    """The settings of a unit's [Service] section that are not about running it, as arguments of systemd-run."""
    section = unit.partition("[Service]")[2].partition("\n[")[0]
    lines = [line for line in section.splitlines() if re.match(r"[A-Z]\w+=", line)]
    return [f"--property={line}" for line in lines if not ABOUT_RUNNING.match(line)]


def check_command(paths: Paths, activation: str, soak: float, imports_only: bool = False) -> list[str]:
    """The runtime's candidate check of an activation."""
    settings, directory = settings_of(paths, activation), paths.activations / activation
    release = paths.releases / settings["release"]
    command = [str(release / "venv/bin/python"), "-m", "bareforge_runtime", "check", "--app", settings["module"]]
    command += ["--chdir", str(release / "app"), "--gunicorn-config", str(directory / "gunicorn.conf.py")]
    if imports_only:
        return [*command, "--imports-only"]
    command += ["--ready-path", settings["ready_path"], "--host", settings["ready_host"]]
    command += ["--timeout", str(settings["start_timeout"])]
    return [*command, "--soak", f"{soak:g}"] if soak else command


def sandboxed(
    paths: Paths, activation: str, command: list[str], purpose: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command as the service would run: its user, its sandbox, its settings, its secrets."""
    unit = f"{paths.name}-{purpose}.service"
    # what a run that was killed has left
    call(["systemctl", "stop", unit])
    directory = paths.activations / activation
    properties = sandbox((directory / paths.service).read_text())
    run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}"]
    run += ["--nice=10"] if purpose == "candidate" else []
    run += [f"--property=EnvironmentFile={directory}/environment", *properties]
    try:
        return call([*run, *command], timeout=timeout)
    except subprocess.TimeoutExpired:
        call(["systemctl", "stop", unit])
        raise EngineError(
            f"{purpose} of {paths.name} did not end within {timeout:g} s; see: journalctl -u {unit}"
        ) from None


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason; see: journalctl -n 50"


def verify(paths: Paths, activation: str) -> None:
    """A unit that systemd takes, a configuration that gunicorn takes, an application that imports, or EngineError."""
    directory = paths.activations / activation
    units = [str(directory / paths.socket), str(directory / paths.service)]
    said = call(["systemd-analyze", "verify", "--man=no", *units]).stderr.splitlines()
    # it also reads the units around them; and before the first switch there is no program at the path of current
    wrong = [line for line in said if paths.name in line and "is not executable" not in line]
    if wrong:
        raise EngineError(f"systemd refuses the unit: {wrong[0]}; correct asgi_app_unit_template", wrong)
    done = sandboxed(paths, activation, check_command(paths, activation, 0, imports_only=True), "candidate", 300)
    if done.returncode:
        raise EngineError(last_line(done.stderr), done.stderr.splitlines()[:-1])


def prove(paths: Paths, activation: str, soak: float, secrets: str = "") -> None:
    """Start the activation on a private socket, in the service's sandbox, with the real secrets. Raises EngineError.

    secrets: directory of others, which are to be tried.
    """
    limit = 2 * float(settings_of(paths, activation)["start_timeout"]) + soak + 60
    # the activation's environment file would win over a property
    tried = ["/usr/bin/env", f"BAREFORGE_SECRETS={secrets}"] if secrets else []
    done = sandboxed(paths, activation, [*tried, *check_command(paths, activation, soak)], "candidate", limit)
    if done.returncode:
        raise EngineError(last_line(done.stderr), done.stderr.splitlines()[:-1])


def runtime_command(paths: Paths, activation: str, *arguments: str) -> list[str]:
    """A command of the runtime in the activation's release."""
    release = paths.releases / settings_of(paths, activation)["release"]
    return [str(release / "venv/bin/python"), "-m", "bareforge_runtime", *arguments]


def migrate(paths: Paths, activation: str, module: list[str]) -> bool:
    """Run the release's migration once; returns whether there was something to do. Raises EngineError."""
    app = str(paths.releases / settings_of(paths, activation)["release"] / "app")
    done = sandboxed(
        paths, activation, runtime_command(paths, activation, "run", "--chdir", app, *module), "migration", 3600
    )
    if done.returncode:
        cause = last_line(done.stderr)
        raise EngineError(f"the migration failed, no host was switched: {cause}", done.stderr.splitlines()[:-1])
    return bool(MIGRATED.search(done.stdout + done.stderr))


def declares_schema(release: Path) -> bool:
    """Whether a distribution of the release has entry points of the group that tells of the database."""
    files = release.glob("venv/lib/python*/site-packages/*.dist-info/entry_points.txt")
    return any("[bareforge]" in file.read_text().splitlines() for file in files)


def schema_head(paths: Paths, activation: str) -> str:
    """The migration revision that the activation's code expects, empty if it declares none."""
    # asking takes a start of Python in the sandbox
    if not declares_schema(paths.releases / settings_of(paths, activation)["release"]):
        return ""
    done = sandboxed(paths, activation, runtime_command(paths, activation, "schema"), "schema", 60)
    if done.returncode:
        raise EngineError(last_line(done.stderr), done.stderr.splitlines()[:-1])
    return done.stdout.strip()


def remember_head(paths: Paths, activation: str) -> None:
    """Keep the revision that a release expects, for its history line and so that a rollback need not ask it."""
    state = read_json(paths.state / "state.json")
    state["heads"] = {
        **state.get("heads", {}),
        settings_of(paths, activation)["release"]: schema_head(paths, activation),
    }
    kept = {item.name for item in paths.releases.iterdir()}
    state["heads"] = {release: head for release, head in state["heads"].items() if release in kept}
    write_json(paths.state / "state.json", state)


def schema_blocks(paths: Paths, activation: str, older: str) -> str:
    """The revision of the database that code expecting `older` cannot live with, judged by the activation's code."""
    done = sandboxed(paths, activation, runtime_command(paths, activation, "schema", "--older", older), "schema", 60)
    if done.returncode:
        raise EngineError(last_line(done.stderr), done.stderr.splitlines()[:-1])
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------------- switch


@dataclass
class Switch:
    """One switch from an activation ("" for none) to another; method is handover, hup, restart or none."""

    paths: Paths
    origin: str
    target: str
    method: str
    action: str
    run: dict[str, Any]
    started: float = field(default_factory=time.time)

    @property
    def reopens(self) -> bool:
        """Whether the socket's unit changes: an open socket keeps the settings it was opened with."""
        return self.origin != "" and _differ(self.paths, self.origin, self.target, self.paths.socket)


def _differ(paths: Paths, one: str, other: str, *names: str) -> bool:
    return any(
        (paths.activations / one / n).read_bytes() != (paths.activations / other / n).read_bytes() for n in names
    )


def choose_method(paths: Paths, origin: str, target: str, prefer: str, running: bool) -> str:
    """How to get from one activation to the other.

    Neither USR2 nor HUP sees a changed unit or environment file, so those restart behind the held socket. Another
    release needs another master: hand-over. Anything else may be a HUP where that is preferred.
    """
    if not origin or not running or not (paths.activations / origin / "activation.json").is_file():
        return "restart"
    if _differ(paths, origin, target, "environment", paths.service, paths.socket):
        return "restart"
    other_release = settings_of(paths, origin)["release"] != settings_of(paths, target)["release"]
    return "handover" if other_release or prefer == "handover" else "hup"


def running_activation(paths: Paths) -> str:
    """What the workers of systemd's main process run, empty if none is ready."""
    main = int(unit_properties(paths.service).get("MainPID", "0"))
    found = {item.activation for item in workers(paths) if item.master == main and item.ready}
    return found.pop() if len(found) == 1 else ""


def link_units(paths: Paths) -> bool:
    """Lead systemd's units, also those of the boot, through the active activation; whether that was new."""
    before = [path.is_symlink() for path in (paths.units / paths.service, paths.units / paths.socket)]
    for unit, target in ((paths.service, "multi-user.target"), (paths.socket, "sockets.target")):
        point(paths.units / unit, str(paths.active / unit))
        wants = paths.units / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        point(wants / unit, str(paths.units / unit))
    point(paths.current, str(paths.active / "release"))
    return not all(before)


def systemctl(verb: str, unit: str, timeout: float) -> None:
    """Run systemctl; raises EngineError where it fails or does not end."""
    try:
        done = call(["systemctl", verb, unit], timeout=timeout)
    except subprocess.TimeoutExpired:
        raise EngineError(f"systemctl {verb} {unit} did not end within {timeout:g} s") from None
    if done.returncode:
        raise EngineError(f"systemctl {verb} {unit} failed")


def point_active(paths: Paths, activation: str) -> None:
    """The flip: from here on a boot, a start and a re-exec take this activation, whole."""
    # everything it leads to is on the disk before the link is, and the link before anything relies on it
    os.sync()
    point(paths.active, f"activations/{activation}")
    link_units(paths)
    call(["systemctl", "daemon-reload"])


def execute(switch: Switch, method: str) -> None:
    """Let the processes follow the flip. Raises EngineError."""
    paths, settings = switch.paths, settings_of(switch.paths, active_id(switch.paths))
    limit = float(settings["start_timeout"]) + float(settings["graceful_timeout"]) + 60
    main = int(unit_properties(paths.service).get("MainPID", "0"))
    old = frozenset(item.pid for item in workers(paths) if item.master == main)
    if method == "handover":
        outcome = paths.runtime / "handover.json"
        outcome.unlink(missing_ok=True)
        try:
            systemctl("reload", paths.service, limit)
        except EngineError as error:
            raise EngineError(read_json(outcome).get("cause", str(error))) from None
    elif method == "hup":
        if not main:
            raise EngineError("systemd knows no process to reload")
        os.kill(main, signal.SIGHUP)
    else:
        if switch.reopens:
            systemctl("stop", paths.service, limit)
            systemctl("restart", paths.socket, 60)
        systemctl("start", paths.socket, 60)
        systemctl("restart", paths.service, limit)
    confirm(paths, old if method == "hup" else frozenset(), limit)


def confirm(paths: Paths, old: frozenset[int], patience: float) -> None:
    """All workers ready with the active release, under the process that systemd takes for the main one."""
    settings = settings_of(paths, active_id(paths))
    pidfile = paths.runtime / "gunicorn.pid"

    master = 0

    def told() -> bool:
        # read once: at a HUP, gunicorn removes the file for a moment and writes it anew
        nonlocal master
        master = int(unit_properties(paths.service).get("MainPID", "0"))
        return master != 0 and master == read_pid(pidfile)

    if not wait_for(told, PROMOTION):
        raise EngineError(f"systemd does not know the master of {pidfile}; see: systemctl status {paths.name}")
    await_generation(paths, master, settings, old)

    def alone() -> bool:
        return all(item.master == master and item.pid not in old for item in workers(paths))

    if not wait_for(alone, patience):
        raise EngineError("workers of the generation before are still there")
    if running_activation(paths) not in ("", active_id(paths)):
        raise EngineError("the workers have not read the new configuration")


def last_words(paths: Paths, since: float, count: int = 5) -> list[str]:
    """What the application's own processes said last that tells something.

    Not its access lines, not the engine's own words, and what gunicorn says at each start and end only where nothing
    else was said: on a slow host the workers' farewells would hide the cause.
    """
    command = ["journalctl", f"_SYSTEMD_UNIT={paths.service}", "--output=cat", "--no-pager", f"--since=@{int(since)}"]
    lines = call([*command, "--lines=200"]).stdout.splitlines()
    said = [line for line in lines if line.strip() and not line.startswith(('{"method"', "bareforge: "))]
    return ([line for line in said if not ROUTINE.match(line)] or said)[-count:]


def activate(
    paths: Paths, target: str, prefer: str, action: str, run: dict[str, Any], keep: int, force: bool = False
) -> dict[str, Any]:
    """Switch to an activation and prove it, or leave what served; returns changed, previous and method.

    force: give the workers a new generation even if the activation serves already (they read secrets at their start).
    Raises EngineError with the cause; what served before serves then, and the history says so.
    """
    settings = settings_of(paths, target)
    recover(paths)
    origin = read_json(paths.state / "state.json").get("serving", "")
    running = unit_properties(paths.service).get("ActiveState") in ("active", "reloading")
    if origin == target and running and not force:
        if link_units(paths):
            call(["systemctl", "daemon-reload"])
        return {"changed": False, "activation": target, "previous": origin, "method": "none"}
    method = choose_method(paths, origin, target, prefer, running)
    switch = Switch(paths, origin, target, method, action, run)
    write_json(paths.state / "switch.json", {"from": origin, "to": target, "method": method, "run": run.get("id", "")})
    try:
        point_active(paths, target)
        execute(switch, method)
    except EngineError as error:
        words = last_words(paths, switch.started)
        now = take_back(switch)
        note(switch, "failed", str(error))
        raise EngineError(
            f"Release {settings['release']} did not become ready on {os.uname().nodename} ({error}); {now}. "
            f"Last lines of its journal: {' | '.join(words)}",
            words,
        ) from None
    commit(switch)
    prune(paths, keep)
    return {"changed": True, "activation": target, "previous": origin, "method": method}


def commit(switch: Switch) -> None:
    """Record what serves now; the last step, so that a run that died before it is finished by the next.

    Prunes nothing: the run that finishes another's switch has staged its own activation already.
    """
    paths, state = switch.paths, read_json(switch.paths.state / "state.json")
    release = settings_of(paths, switch.target)["release"]
    served = [item for item in state.get("served", []) if item != switch.target] + [switch.target]
    bad = {name: cause for name, cause in state.get("bad", {}).items() if name != release}
    # what the same run may take back when another host fails: all that it and its dead predecessors have switched
    again = state.get("run") in family(paths, switch.run)
    before = state["before"] if again and switch.action != "revert" else switch.origin
    state |= {"serving": switch.target, "served": served[-50:], "bad": bad}
    state |= {"run": "" if switch.action == "revert" else switch.run.get("id", ""), "before": before}
    if switch.origin and switch.origin != switch.target:
        left = settings_of(paths, switch.origin)["release"]
        state["previous"] = switch.origin
        if left != release:
            point(paths.previous, str(paths.releases / left))
            if switch.action in ("rollback", "revert"):
                state["bad"][left] = f"{switch.action} {timestamp()}"
    write_json(paths.state / "state.json", state)
    (paths.state / "switch.json").unlink(missing_ok=True)
    note(switch, "ok", "")


def take_back(switch: Switch) -> str:
    """Serve again what served before a switch that failed; returns what is the case now."""
    paths = switch.paths
    if not switch.origin:
        return withdraw(paths)
    point_active(paths, switch.origin)
    try:
        if running_activation(paths) == switch.origin:
            confirm(paths, frozenset(), 60)
            now = "the release before it never stopped serving"
        else:
            execute(Switch(paths, switch.target, switch.origin, "restart", "revert", switch.run), "restart")
            now = "the release before it serves again"
    except EngineError as error:
        now = f"the release before it does not start either ({error}), see: systemctl status {paths.name}"
    (paths.state / "switch.json").unlink(missing_ok=True)
    return now


def revert(paths: Paths, run: dict[str, Any], keep: int) -> dict[str, Any]:
    """Take back what this attempt has switched, because another host of the fleet failed; else change nothing."""
    recover(paths)
    state = read_json(paths.state / "state.json")
    if state.get("run") not in family(paths, run) or state.get("before") == state.get("serving"):
        return {"changed": False, "activation": state.get("serving", ""), "previous": "", "method": "none"}
    if state["before"]:
        return activate(paths, state["before"], "handover", "revert", run, keep)
    return {"changed": True, "activation": "", "previous": state["serving"], "method": withdraw(paths)}


def withdraw(paths: Paths) -> str:
    """Stop a first release that never served, and the socket that would start it again; as before the first deploy."""
    call(["systemctl", "stop", paths.socket, paths.service], timeout=300)
    for unit, target in ((paths.service, "multi-user.target"), (paths.socket, "sockets.target")):
        (paths.units / f"{target}.wants" / unit).unlink(missing_ok=True)
        (paths.units / unit).unlink(missing_ok=True)
    for link in (paths.current, paths.active):
        link.unlink(missing_ok=True)
    for name in ("switch.json", "state.json"):
        (paths.state / name).unlink(missing_ok=True)
    call(["systemctl", "daemon-reload"])
    return "nothing served before, the service is stopped"


def recover(paths: Paths) -> None:
    """Finish or undo a switch whose run was killed, so that state and processes agree again."""
    switch = read_json(paths.state / "switch.json")
    if not switch:
        return
    # a reload or start that was under way goes on without whoever asked for it
    wait_for(lambda: unit_properties(paths.service).get("ActiveState") not in ("reloading", "activating"), 180)
    interrupted = Switch(
        paths, switch["from"], switch["to"], switch["method"], "recover", {"id": switch.get("run", "")}
    )
    if active_id(paths) == switch["to"] and running_activation(paths) == switch["to"]:
        call(["systemctl", "daemon-reload"])
        with contextlib.suppress(EngineError):
            confirm(paths, frozenset(), 60)
            commit(interrupted)
            return
    take_back(interrupted)
    note(interrupted, "failed", "its run was killed")


# -------------------------------------------------------------------------------------------------------- rollback


def plan_rollback(paths: Paths, release: str, ignore_schema: bool) -> dict[str, Any]:
    """The activation to go back to: the last good one of another release, or of the release that is named.

    Returns activation, release, serving. Raises EngineError where there is none or the database is too new for it.
    """
    serving = serving_id(paths)
    now = settings_of(paths, serving)["release"]
    target = choose_rollback(paths, read_json(paths.state / "state.json"), now, release)
    then = settings_of(paths, target)["release"]
    if then != now and not ignore_schema:
        refuse_newer_schema(paths, serving, target)
    return {"activation": target, "release": then, "serving": now, "pending": target != serving}


def choose_rollback(paths: Paths, state: dict[str, Any], now: str, release: str) -> str:
    """The latest activation that served, is whole and was not marked bad. Raises EngineError."""
    found: list[tuple[str, str]] = []
    for activation in reversed(state.get("served", [])):
        settings = read_json(paths.activations / activation / "activation.json")
        if settings and (paths.releases / settings["release"] / "release.json").is_file():
            found.append((activation, settings["release"]))
    kept = sorted({item for _, item in found})
    if release:
        for activation, item in found:
            if item == release:
                return activation
        raise EngineError(
            f"release {release} is not among those that have served on {os.uname().nodename} and are kept: "
            f"{', '.join(kept) or 'none'}; name one of them"
        )
    bad = state.get("bad", {})
    for activation, item in found:
        if item != now and item not in bad:
            return activation
    marked = [item for item in kept if item in bad]
    raise EngineError(
        f"there is no good release before {now} on {os.uname().nodename}"
        + (f" ({', '.join(marked)} marked bad; name one with -e release= to take it all the same)" if marked else "")
        + "; deploy an earlier source with playbooks/deploy.yml"
    )


def refuse_newer_schema(paths: Paths, serving: str, target: str) -> None:
    """Raise EngineError where the database has a revision that the target's code cannot live with."""
    heads = read_json(paths.state / "state.json").get("heads", {})
    older, newer = (heads.get(settings_of(paths, item)["release"], "") for item in (target, serving))
    if not older or older == newer:
        return
    blocking = schema_blocks(paths, serving, older)
    if blocking:
        raise EngineError(
            f"release {settings_of(paths, target)['release']} expects database revision {older} and cannot live with "
            f"revision {blocking}, which the database has; deploy a release that can, or restore the database first "
            "(docs/rollback.md)"
        )


# -------------------------------------------------------------------------------------------------- a code release


def installer() -> Any:
    """The engine's other file, which installs releases: it lies beside this one, on a host and in a checkout."""
    here = str(Path(__file__).resolve().parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(Path(INSTALLER).stem)


def bring(paths: Paths, given: dict[str, Any], sent: BinaryIO, check_mode: bool) -> dict[str, Any]:
    """The code-only path up to the switch: lock, install, stage with the configuration that serves, prove.

    given["bundle"]: id, layer, target (python_version, machine, libc_version) that the controller has planned for, and
    parts (kind, size and SHA-256 of each archive in `sent`; kinds layer and release). Returns needs (target, layer or
    release) where the controller has to send something else first, held and text where another run has the lock; else
    changed, activation, pending, serving, proven, which is false where a migration has to come first, locked, and
    releases, the ids of those on this host. Raises EngineError.
    """
    serving_id(paths)
    with contextlib.ExitStack() as stack:
        if not check_mode:
            held = take_lock(paths, given)
            if held:
                return {"changed": False, "held": held, "text": describe_lock(paths, held)}
            stack.enter_context(alone(paths, "switch", ORPHAN_PATIENCE))
            recover(paths)
        try:
            return _bring(paths, given, sent, check_mode)
        except installer().ReleaseError as error:
            raise EngineError(str(error)) from None


def take_lock(paths: Paths, given: dict[str, Any]) -> dict[str, Any]:
    """As acquire(). A code release goes no further than a run that may have changed the configuration of some hosts."""
    left, held = read_json(paths.state / "lock.json"), holder(paths)
    free = not held or held["id"] in (given["run"]["id"], given["steal"])
    another = free and left and left["id"] != given["run"]["id"] and left["what"] != given["action"]
    if another and given["action"] == "release":
        raise EngineError(
            f"the last {left['what']} of {paths.name} (by {left['owner']}) did not end on {os.uname().nodename}, so "
            "hosts may have different configurations; run it again, it takes up where it ended, then release"
        )
    return acquire(paths, given["run"], given["action"], given["minutes"], given["steal"])


def _bring(paths: Paths, given: dict[str, Any], sent: BinaryIO, check_mode: bool) -> dict[str, Any]:
    want, root, serving = given["bundle"], paths.releases.parent, serving_id(paths)
    facts = installer().probe(root, given["python"])
    target = {name: facts[name] for name in ("python_version", "machine", "libc_version")}
    if want["target"] != target:
        return {"changed": False, "needs": "target", "target": target, "releases": facts["releases"]}
    files = code_files(paths, serving, want["id"])
    activation = activation_id(files)
    there = want["id"] in facts["releases"]
    if there:
        installer().refuse_altered(paths.releases / want["id"])
    pending = not there or not activation == serving == running_activation(paths)
    result = {"changed": pending, "activation": activation, "pending": pending, "serving": True, "proven": False}
    result |= {"locked": not check_mode, "releases": facts["releases"]}
    if check_mode:
        return result
    if not pending:
        # with what a dead run has switched this host goes along if another host fails
        if read_json(paths.state / "lock.json").get("inherited"):
            return result
        release_lock(paths, given["run"])
        return {**result, "locked": False}
    kinds = [kind for kind, _, _ in want["parts"]]
    for kind, has in (("layer", want["layer"] in facts["layers"]), ("release", there)):
        if not there and not has and kind not in kinds:
            return {"changed": False, "needs": kind, "releases": facts["releases"]}
    if not there:
        install(paths, given, sent)
    proven = _stage_and_prove(paths, given, files, serving)
    return {**result, "proven": proven, "releases": sorted({*facts["releases"], want["id"]})}


def code_files(paths: Paths, serving: str, release: str) -> dict[str, str]:
    """The files of an activation that differs from the one that serves in its release only."""
    files = {name: (paths.activations / serving / name).read_text() for name in paths.files()}
    settings = {**settings_of(paths, serving), "release": release}
    return {**files, "activation.json": json.dumps(settings, indent=1, sort_keys=True) + "\n"}


def receive(want: dict[str, Any], sent: BinaryIO, directory: Path) -> dict[str, str]:
    """Put the archives that a controller sends into files, by kind, each whole. Raises EngineError."""
    archives = {}
    for kind, size, expected in want["parts"]:
        total, left = hashlib.sha256(), size
        with (directory / f"{kind}.tar").open("wb") as archive:
            # in pieces: a layer has the size of all dependencies, and this host serves
            while left and (piece := sent.read(min(left, PIECE))):
                total.update(piece)
                archive.write(piece)
                left -= len(piece)
        if total.hexdigest() != expected:
            raise EngineError(
                f"the {kind} of {want['id']} arrived damaged on {os.uname().nodename} ({size - left} of {size} bytes, "
                "SHA-256 differs); run again"
            )
        archives[kind] = archive.name
    return archives


def install(paths: Paths, given: dict[str, Any], sent: BinaryIO) -> None:
    """Put a release on this host from the archives that a controller sends. Raises EngineError, ReleaseError."""
    want, root = given["bundle"], paths.releases.parent
    # what it takes may be what the archives need
    installer().clear(root, "tmp*", ".received-*")
    with tempfile.TemporaryDirectory(dir=root, prefix=".received-") as directory:
        archives = receive(want, sent, Path(directory))
        installer().present(
            root, given["python"], given["keep"], want["id"], want["layer"], archives.get("layer"), archives["release"]
        )


def _stage_and_prove(paths: Paths, given: dict[str, Any], files: dict[str, str], serving: str) -> bool:
    """Stage, and prove unless the release may expect another database than the one that serves; then only import."""
    activation = stage(paths, files)
    remember_head(paths, activation)
    heads = read_json(paths.state / "state.json")["heads"]
    head, before = (heads.get(settings_of(paths, item)["release"], "") for item in (activation, serving))
    if given["command"] and (not head or head != before):
        verify(paths, activation)
        return False
    prove(paths, activation, given["soak"])
    return True


# ---------------------------------------------------------------------------------------------- lock and history


def timestamp(at: float | None = None) -> str:
    """Seconds since the epoch as UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


@contextlib.contextmanager
def alone(paths: Paths, name: str, patience: float = 0) -> Iterator[None]:
    """One process of this host at a time, after at most `patience` seconds; the kernel frees it of one that dies."""
    paths.state.mkdir(parents=True, exist_ok=True)
    with (paths.state / f".{name}").open("w") as handle:
        # whoever may read it could hold it
        os.fchmod(handle.fileno(), 0o600)

        def mine() -> bool:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_for(mine, patience):
            raise EngineError(
                f"another process is changing {paths.name} on {os.uname().nodename} right now; wait until it has ended"
            )
        yield


def describe_lock(paths: Paths, lock: dict[str, Any]) -> str:
    """Who holds the lock, since when, for how long, and what to do."""
    age, rest = int(time.time() - lock["acquired"]), int(lock["expires"] - time.time())
    return (
        f"{paths.name} is locked on {os.uname().nodename} by {lock['owner']} ({lock['what']}) since "
        f"{timestamp(lock['acquired'])}, {age} s ago, expires in {rest} s unless it goes on; "
        "wait for it with -e deploy_wait=600, or if that run is dead: ansible-playbook playbooks/unlock.yml"
    )


def holder(paths: Paths) -> dict[str, Any]:
    """The lock that is in force; empty if there is none, it has expired, or it is of a command here that has ended."""
    lock = read_json(paths.state / "lock.json")
    if not lock or lock["expires"] <= time.time() or (lock.get("local") and process_status(lock["pid"]) is None):
        return {}
    return lock


def acquire(paths: Paths, run: dict[str, Any], what: str, minutes: int, steal: str = "") -> dict[str, Any]:
    """Take or renew the lock for a run; returns {} or the lock of another run. steal: a run known to be dead."""
    with alone(paths, "lock", LOCK_PATIENCE):
        held = holder(paths)
        if held and held["id"] not in (run["id"], steal):
            return held
        acquired = held["acquired"] if held and held["id"] == run["id"] else time.time()
        what = held["what"] if held and held["id"] == run["id"] else what
        # also one that has expired
        left = read_json(paths.state / "lock.json")
        inherited = left.get("inherited", []) + ([left["id"]] if left and left["id"] != run["id"] else [])
        lock = {"what": what, "acquired": acquired, "expires": time.time() + 60 * minutes, "minutes": minutes}
        write_json(paths.state / "lock.json", {**run, **lock, "inherited": inherited})
    return {}


def family(paths: Paths, run: dict[str, Any]) -> set[str]:
    """The ids of a run and of those that died before it with their work half done, whose lock it has taken over.

    Together they are one attempt: what one of them has switched is to be taken back with the rest.
    """
    lock = read_json(paths.state / "lock.json")
    inherited = lock.get("inherited", []) if lock.get("id") == run.get("id") else []
    return {run.get("id", ""), *inherited} - {""}


def release_lock(paths: Paths, run: dict[str, Any] | None, unfinished: bool = False) -> bool:
    """Give the lock up, or with no run take it from whoever holds it; whether there was one.

    unfinished: the run has not finished what dead runs before it had begun, so that the next one still has to know.
    """
    with alone(paths, "lock", LOCK_PATIENCE):
        held = read_json(paths.state / "lock.json")
        if not held or (run is not None and held["id"] != run.get("id")):
            return False
        if unfinished and held.get("inherited"):
            write_json(paths.state / "lock.json", {**held, "expires": 0})
        else:
            (paths.state / "lock.json").unlink()
    return True


def refuse_locked(paths: Paths, run: dict[str, Any], minutes: int = 0) -> None:
    """Raise EngineError where another run holds the lock; renew it where this one does, for a step that long."""
    held = holder(paths)
    if held and held["id"] != run.get("id"):
        raise EngineError(describe_lock(paths, held))
    if held:
        acquire(paths, run, held["what"], max(minutes, held["minutes"]))


def append_history(paths: Paths, line: dict[str, Any]) -> None:
    """Add one line to the history, durably."""
    with (paths.state / "history.jsonl").open("ab+") as handle:
        # a power cut may have left half of a line: this one must not become its end
        handle.seek(max(handle.seek(0, os.SEEK_END) - 1, 0))
        if handle.read(1) not in (b"", b"\n"):
            handle.write(b"\n")
        handle.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def note(switch: Switch, result: str, cause: str) -> None:
    """One line of history about a switch."""
    settings = settings_of(switch.paths, switch.target)
    append_history(
        switch.paths,
        {
            "at": timestamp(),
            "who": switch.run.get("owner", ""),
            "run": switch.run.get("id", ""),
            "action": switch.action,
            "result": result,
            "cause": cause,
            "release": settings["release"],
            "activation": switch.target,
            "previous": switch.origin,
            "method": switch.method,
            "migration_head": read_json(switch.paths.state / "state.json")
            .get("heads", {})
            .get(settings["release"], ""),
            "seconds": round(time.time() - switch.started, 1),
        },
    )


def read_history(paths: Paths, count: int = 20) -> list[dict[str, Any]]:
    """The last lines of the history, oldest first, each with what the witness of its run saw."""
    try:
        text = (paths.state / "history.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines: list[dict[str, Any]] = []
    witnesses: dict[str, Any] = {}
    for line in text.splitlines():
        # a power cut may have left half of the last one
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if "witness" in entry:
                witnesses[entry["run"]] = entry["witness"]
            else:
                lines.append(entry)
    return [{**entry, "witness": witnesses.get(entry["run"], {})} for entry in lines[-count:]]


def describe_history(entries: list[dict[str, Any]]) -> list[str]:
    """One sentence for each line of the history."""
    said = []
    for entry in entries:
        seen = entry["witness"]
        said.append(
            f"{entry['at']} {entry['action']} {entry['release']} {entry['result']}"
            f" ({entry['method']}, {entry['seconds']:g} s, config {entry['activation']}"
            + (f", schema {entry['migration_head']}" if entry["migration_head"] else "")
            + f") by {entry['who'] or 'unknown'}"
            + (f"; witness: {seen['requests']} requests, {seen['failed']} failed" if seen else "")
            + (f"; {entry['cause']}" if entry["cause"] else "")
        )
    return said


def status(paths: Paths) -> dict[str, Any]:
    """What serves, from where each answer comes: record, link, processes, systemd."""
    state, properties = read_json(paths.state / "state.json"), unit_properties(paths.service)
    serving = state.get("serving", "")
    return {
        "serving": serving,
        "release": read_json(paths.activations / serving / "activation.json").get("release", "") if serving else "",
        "previous": state.get("previous", ""),
        "active": active_id(paths),
        "running": running_activation(paths),
        "pending": read_json(paths.state / "switch.json"),
        "bad": state.get("bad", {}),
        "lock": holder(paths),
        "workers": [vars(item) for item in workers(paths)],
        "unit": properties,
    }


# ----------------------------------------------------------------------------------------------------- two faces


def local_run(what: str) -> dict[str, Any]:
    """The identity of a command given on the host itself."""
    owner = f"{os.environ.get('SUDO_USER') or os.environ.get('USER') or 'root'}@{os.uname().nodename}"
    return {"id": f"local-{os.getpid()}", "owner": owner, "local": True, "pid": os.getpid(), "what": what}


def command_line(arguments: list[str]) -> int:
    """The command on the host; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bareforge", description="Releases of one application on this host.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("status", "what serves, as JSON"),
        ("history", "what was done, oldest first"),
        ("rollback", "back to the last good release, without a lost request"),
        ("activate", "switch to an activation that is on this host"),
        ("reload", "a new generation of workers, which reads changed secrets"),
        ("unlock", "take the lock from a run that is dead"),
        ("handover", "what systemctl reload runs"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME", help="the application")
        if name == "rollback":
            command.add_argument("--release", default="", metavar="ID", help="this one instead of the last good one")
            command.add_argument("--ignore-schema", action="store_true", help="although the database may be too new")
        if name == "activate":
            command.add_argument("activation", metavar="ACTIVATION")
    given = parser.parse_args(arguments)
    paths = Paths(given.name)
    try:
        _command(paths, given)
    except EngineError as error:
        print(*error.details, f"bareforge: {error}", sep="\n", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"bareforge: {error.cmd[0]} did not end within {error.timeout:g} s; run it again", file=sys.stderr)
        return 1
    except OSError as error:
        cure = "run it as root" if isinstance(error, PermissionError) else "correct that and run it again"
        print(f"bareforge: {(error.strerror or '').lower()}: {error.filename}; {cure}", file=sys.stderr)
        return 1
    return 0


def _command(paths: Paths, given: argparse.Namespace) -> None:
    # a mistyped name must not leave directories behind
    if not NAME.fullmatch(paths.name) or not paths.state.is_dir():
        raise EngineError(f"there is no application {paths.name} on {os.uname().nodename}; check the name")
    if given.command == "status":
        print(json.dumps(status(paths), indent=1))
    elif given.command == "history":
        print("\n".join(describe_history(read_history(paths)) or ["there is no history yet"]))
    elif given.command == "unlock":
        print("unlocked" if release_lock(paths, None) else "there was no lock")
    elif given.command == "handover":
        reload_command(paths)
    else:
        _switch_by_hand(paths, given)


def _switch_by_hand(paths: Paths, given: argparse.Namespace) -> None:
    run = local_run(given.command)
    held = acquire(paths, run, given.command, 30)
    if held:
        raise EngineError(describe_lock(paths, held))
    try:
        with alone(paths, "switch"):
            if given.command == "rollback":
                recover(paths)
                target = plan_rollback(paths, given.release, given.ignore_schema)["activation"]
            else:
                recover(paths)
                target = given.activation if given.command == "activate" else serving_id(paths)
            prove(paths, target, soak=0)
            keep = int(settings_of(paths, target).get("keep", 5))
            done = activate(paths, target, "handover", given.command, run, keep, force=given.command == "reload")
        print(f"bareforge: {settings_of(paths, target)['release']} serves ({done['method']})")
    finally:
        release_lock(paths, run)


def module_state(paths: Paths, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Reach one state of the module; returns its result. Raises EngineError."""
    state, run = given["state"], given["run"]
    if state == "status":
        return {"changed": False, **status(paths)}
    if state == "history":
        entries = read_history(paths)
        return {"changed": False, "entries": entries, "lines": describe_history(entries)}
    if state == "unlocked":
        unlocked = None if given["steal"] == "*" else run
        return {"changed": not check_mode and release_lock(paths, unlocked, unfinished=given["unfinished"])}
    if state == "staged":
        return _staged(paths, given, check_mode)
    if state == "activated" and check_mode:
        serving = read_json(paths.state / "state.json").get("serving", "")
        result = {"changed": serving != given["activation"], "activation": given["activation"]}
        return {**result, "secrets": secrets_directories(paths)}
    if state == "planned" and check_mode:
        return {"changed": False, **plan_rollback(paths, given["release"], given["ignore_schema"])}
    if check_mode:
        return {"changed": False}
    if state == "locked":
        held = take_lock(paths, given)
        return {"changed": False, "held": held, "text": describe_lock(paths, held) if held else ""}
    if state == "recorded":
        seen = {name: given["witness"].get(name) for name in WITNESSED}
        append_history(paths, {"run": run["id"], "witness": seen})
        return {"changed": False}
    if state == "reverted" and read_json(paths.state / "state.json").get("run") not in family(paths, run):
        held = holder(paths)
        if held and held["id"] != run.get("id"):
            # a host that had nothing to switch, on which the next run has begun
            return {"changed": False, "activation": "", "previous": "", "method": "none"}
    # a migration may take its hour
    refuse_locked(paths, run, 75 if state == "migrated" else 0)
    with alone(paths, "switch"):
        return _mutate(paths, given)


def _staged(paths: Paths, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    files = plan_files(paths, given["release"], given["files"], given["settings"])
    activation = activation_id(files)
    serving = read_json(paths.state / "state.json").get("serving", "")
    result = {"changed": False, "activation": activation, "pending": activation != serving, "serving": serving != ""}
    if result["pending"]:
        result |= {"changed": True, "diff": differences(paths, files)}
    if not check_mode:
        refuse_locked(paths, given["run"])
        stage(paths, files)
        if result["pending"]:
            verify(paths, activation)
            remember_head(paths, activation)
    return result


def _mutate(paths: Paths, given: dict[str, Any]) -> dict[str, Any]:
    state, activation = given["state"], given["activation"]
    if state == "migrated":
        return {"changed": migrate(paths, activation, given["command"])}
    if state == "proven":
        prove(paths, activation, given["soak"], given["secrets"])
        return {"changed": False}
    if state == "planned":
        recover(paths)
        return {"changed": False, **plan_rollback(paths, given["release"], given["ignore_schema"])}
    if state == "reverted":
        return revert(paths, given["run"], given["keep"])
    force = given["action"] == "reload"
    done = activate(paths, activation, given["method"], given["action"], given["run"], given["keep"], force)
    return {**done, "secrets": secrets_directories(paths)}


def answer(given: dict[str, Any], check_mode: bool, sent: BinaryIO) -> dict[str, Any]:
    """What the module returns; failed and msg where it is a refusal. sent: archives of a release (released)."""
    os.umask(0o022)
    try:
        paths = Paths(given["name"])
        if given["state"] == "released":
            return bring(paths, given, sent, check_mode)
        return module_state(paths, given, check_mode)
    except EngineError as error:
        return {"failed": True, "msg": str(error), "details": error.details}
    except subprocess.TimeoutExpired as error:
        message = f"{error.cmd[0]} did not end within {error.timeout:g} s on this host; run it again"
    except OSError as error:
        where = error.filename or paths.releases.parent
        message = f"{error.strerror} at {where}; free space or correct the path and run again"
    return {"failed": True, "msg": message}


TRUE = ("y", "yes", "on", "1", "true", "t")  # what Ansible takes for true
CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": lambda value: "" if value is None else str(value),
    "int": int,
    "float": float,
    "bool": lambda value: str(value).lower() in TRUE,
    "dict": dict,
    "list": lambda value: list(map(str, value.split(",") if isinstance(value, str) else value)),
}


def complete_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with defaults and of the types that AnsibleModule would make of them. Raises EngineError."""
    complete = {}
    for name, of in ARGUMENTS.items():
        value = given.get(name, of.get("default"))
        try:
            complete[name] = CONVERT[of["type"]](value)
        except (TypeError, ValueError):
            raise EngineError(f"{name} is {value!r}, which is no {of['type']}; correct the variable") from None
    return complete


def digest() -> str:
    """SHA-256 of the engine's files, by which a controller knows whether the host has its very engine."""
    here = Path(__file__).resolve()
    return hashlib.sha256(b"".join(file.read_bytes() for file in (here, here.with_name(INSTALLER)))).hexdigest()


def answer_controller() -> None:
    """`bareforge module`: what the Ansible module does, for a controller that has the very same engine.

    It need not send 150 kB of module for each step then. Standard input: one line of JSON (engine, check_mode,
    arguments), then the archives of a release, if any. Standard output: STARTED, then one line of JSON.
    """
    sent = sys.stdin.buffer
    asked = json.loads(sent.readline())
    if asked["engine"] == digest():
        print(STARTED, flush=True)
        said = _answer_asked(asked, sent)
    else:
        said = {"other_engine": True}
    # who sends must not find the door shut
    while sent.read(PIECE):
        pass
    print(json.dumps(said))


def _answer_asked(asked: dict[str, Any], sent: BinaryIO) -> dict[str, Any]:
    try:
        return answer(complete_arguments(asked["arguments"]), asked["check_mode"], sent)
    except EngineError as error:
        return {"failed": True, "msg": str(error)}
    except Exception as error:
        # as Ansible shows what a module did not expect
        message = f"the engine failed: {type(error).__name__}: {error}; run again, and report it with what -v shows"
        return {"failed": True, "msg": message, "exception": traceback.format_exc()}


def main() -> None:
    """Entry point of the module, and of the command where there are arguments."""
    # Ansible hands its arguments over otherwise; a person or systemd gives them here
    if sys.argv[1:] == ["module"]:
        answer_controller()
        return
    if len(sys.argv) > 1:
        sys.exit(command_line(sys.argv[1:]))
    try:
        from ansible.module_utils.basic import AnsibleModule
    except ImportError:
        # a person on a host, who wants to be told the commands
        sys.exit(command_line([]))

    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
    )
    result = answer(module.params, module.check_mode, io.BytesIO())
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
