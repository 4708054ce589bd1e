#!/usr/bin/python
"""Search a host for its own secrets, everywhere but where they belong.

Standard library only, and the host's grep, find and journalctl. No secret leaves the host, and none is in an argument,
an environment or a file while it is searched for: the patterns are in anonymous memory (memfd).
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: bareforge_audit
short_description: Search a host for its own secrets, everywhere but where they belong
description:
  - Takes what the agent has written for applications, its token, its database passwords, the decrypted secret_id and
    the key of the site's certificate, in several spellings, and searches all files, the journal, what systemd shows,
    and every process's command line and environment.
  - What may hold them is memory of the agent and its readers, C(/run/bareforge-agent), C(/run/bareforge-certificate)
    and C(/run/credentials); nobody else may be able to read those.
  - Memory that could reach a disk counts too, swap that is not encrypted and core dumps of the units.
  - A finding names the place and the secret, never its value.
options:
  units: {description: Units that hold secrets in memory., type: list, elements: str, required: true}
  directory: {description: Where the agent writes., type: path, default: /run/bareforge-agent}
  credential: {description: Encrypted credential of the agent., type: path, default: /etc/bareforge-agent/approle.cred}
  paths: {description: What to search for files., type: list, elements: path, default: [/]}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: [Bareforge contributors]
"""

EXAMPLES = r"""
- name: Find no secret
  bareforge_audit:
    units: [forge.service, bareforge-agent.service]
"""

RETURN = r"""
findings: {description: A sentence for each place where a secret is or could come to be., type: list, returned: always}
secrets: {description: Names of what was searched for., type: list, returned: always}
short: {description: Names of secrets that are too short to be told from other text., type: list, returned: always}
"""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule

SHORTEST = 8
"""Characters below which a value is found in ordinary text by chance."""

CHUNK = 1 << 20
NOBODY = 65534

# Kernel's own, and where secrets belong. The journal is read by journalctl: in its files, entries may be compressed.
CERTIFICATE = Path("/run/bareforge-certificate")
APART = ("/proc", "/sys", "/run/credentials", str(CERTIFICATE), "/var/log/journal", "/run/log/journal")
OPEN_TO_OTHERS = ("/dev/shm", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/var")  # noqa: S108


def harvest(directory: Path, credential: Path, certificate: Path = CERTIFICATE) -> dict[str, str]:
    """Return the secrets of this host, {name: value}: what the agent has, what it was enrolled with, the site's key."""
    found: dict[str, str] = {}
    for file in sorted(directory.glob("*/*.json")):
        for name, value in json.loads(file.read_text()).items():
            # sets may have different values of one setting
            known = found.setdefault(name, str(value))
            if known != value:
                found[f"{name} of {file.parent.name}"] = str(value)
    token = directory / "token"
    if token.exists():
        found["the agent's token"] = token.read_text().strip()
    state = directory / "state.json"
    if state.exists():
        for path, leased in json.loads(state.read_text()).get("databases", {}).items():
            found[f"the password of {path}"] = leased["password"]
    if credential.exists():
        command = ["systemd-creds", "decrypt", "--name=approle", str(credential), "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found["the secret_id"] = json.loads(done.stdout)["secret_id"]
    if (certificate / "site.pem").exists():
        found["the key of the certificate"] = key_in((certificate / "site.pem").read_text())
    for name, value in list(found.items()):
        if password := password_in(value):
            found[f"the password in {name}"] = password
    return found


def key_in(pem: str) -> str:
    """Return what is between the marks of a PEM text's first block."""
    return "\n".join(line for line in pem.partition("-----END")[0].splitlines() if not line.startswith("-----"))


def password_in(value: str) -> str:
    """Return the password of a URL; empty for any other text."""
    try:
        return unquote(urlsplit(value).password or "") if "://" in value else ""
    except ValueError:
        # the text of the error quotes the URL
        return ""


def spellings(value: str) -> set[bytes]:
    """Return how a value may be written: plain, reversed, for a URL, in JSON, hexadecimal, base64 at each alignment."""
    raw = value.encode()
    found = {raw, raw[::-1], quote(value, safe="").encode(), json.dumps(value)[1:-1].encode()}
    found |= {raw.hex().encode(), raw.hex().upper().encode()}
    for skipped in range(3):
        # characters that also carry bits of what is before or after are cut off
        text = base64.b64encode(b"\0" * skipped + raw)
        start = -(-skipped * 8 // 6)
        end = (skipped + len(raw)) * 8 // 6
        found |= {text[start:end], base64.urlsafe_b64encode(b"\0" * skipped + raw)[start:end]}
    return {spelling for spelling in found if len(spelling) >= SHORTEST}


class Patterns:
    """The spellings of all secrets. Names come back from what was found, values never leave."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._names: dict[bytes, str] = {}
        for name, value in secrets.items():
            for spelling in spellings(value):
                self._names.setdefault(spelling, name)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._expression = re.compile(b"|".join(map(re.escape, longest_first)))
        self._longest = max(map(len, longest_first))

    @property
    def sample(self) -> bytes:
        """What a search has to find."""
        return next(iter(self._names))

    def names_in(self, content: bytes) -> set[str]:
        """Return the names of the secrets that the content holds."""
        return {self._names[found] for found in self._expression.findall(content)}

    def names_in_file(self, file: Path) -> set[str]:
        """The same of a file; of one that cannot be read, none."""
        names: set[str] = set()
        try:
            with file.open("rb") as stream:
                names = self.names_in_stream(stream)
        except OSError:
            pass
        return names

    def names_in_stream(self, stream) -> set[str]:  # type: ignore[no-untyped-def]
        """The same of all that a binary stream still has."""
        names: set[str] = set()
        rest = b""
        while chunk := stream.read(CHUNK):
            names |= self.names_in(rest + chunk)
            rest = (rest + chunk)[-self._longest :]
        return names

    def _lines(self) -> set[bytes]:
        # grep searches line by line: of a value with several, each of them, and what is found has to be confirmed
        lines = {line for spelling in self._names for line in spelling.split(b"\n")}
        return {line for line in lines if len(line) >= SHORTEST}

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """For grep --file: anonymous memory with one spelling in each line, which grep may open as any user."""
        number = os.memfd_create("patterns", 0)
        try:
            with os.fdopen(os.dup(number), "wb") as stream:
                stream.write(b"\n".join(self._lines()))
            yield number
        finally:
            os.close(number)


def in_files(patterns: Patterns, paths: list[str], apart: list[str], user: int | None = None) -> dict[str, list[str]]:
    """Return the files below `paths`, except those below `apart`, that hold secrets, with their names.

    user: who searches, if not this process's own.
    """
    pruned: list[str] = []
    for path in apart:
        pruned += ["-path", path, "-prune", "-o"]
    find = ["find", *paths, *pruned, "-type", "f", "-size", "+0", "-print0"]
    with patterns.descriptor() as number:
        grep = ["xargs", "-0", "--no-run-if-empty", "grep", "-lsaF", f"--file=/proc/self/fd/{number}", "--"]
        # a search that cannot read what it is to search for would find nothing anywhere
        counting = ["grep", "-cF", f"--file=/proc/self/fd/{number}"]
        common: dict[str, Any] = {"env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
        common |= {"user": user, "group": user, "extra_groups": []} if user is not None else {}
        searching: dict[str, Any] = {**common, "capture_output": True, "check": False, "pass_fds": [number]}
        proof = subprocess.run(counting, input=patterns.sample, **searching)
        if proof.returncode != 0:
            raise OSError(f"grep cannot read the patterns: {proof.stderr.decode(errors='replace').strip()}")
        listing = subprocess.Popen(find, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **common)
        done = subprocess.run(grep, stdin=listing.stdout, **searching)
        listing.wait()
    candidates = sorted(Path(os.fsdecode(line)) for line in done.stdout.splitlines())
    named = {str(file): sorted(patterns.names_in_file(file)) for file in candidates}
    return {file: names for file, names in named.items() if names}


def in_processes(patterns: Patterns) -> list[str]:
    """Search command line and environment of every process."""
    found = []
    for process in sorted(Path("/proc").iterdir()):
        if not process.name.isdigit():
            continue
        for part in ("cmdline", "environ"):
            for name in sorted(patterns.names_in_file(process / part)):
                try:
                    command = (process / "comm").read_text().strip()
                except OSError:
                    command = "ended"
                found.append(f"{part} of process {process.name} ({command}) holds {name}")
    return found


def occurs(patterns: Patterns, command: list[str]) -> bool:
    """Whether grep sees anything in what a command says: much faster for a long journal and many secrets."""
    with patterns.descriptor() as number:
        grep = ["grep", "-qaF", f"--file=/proc/self/fd/{number}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            done = subprocess.run(
                grep,
                stdin=process.stdout,
                stderr=subprocess.PIPE,
                check=False,
                pass_fds=[number],
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            )
    if done.returncode not in (0, 1):
        raise OSError(f"grep cannot search: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode == 0


def in_output(patterns: Patterns, what: str, command: list[str]) -> list[str]:
    """Search what a command says."""
    if not occurs(patterns, command):
        return []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        names = patterns.names_in_stream(process.stdout)
    return [f"{what} holds {name}" for name in sorted(names)]


def could_reach_a_disk(units: list[str]) -> list[str]:
    """Say where memory could come to be on a disk: swap that is not encrypted, core dumps."""
    found = []
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        device = Path(os.path.realpath(line.split()[0]))
        uuid = Path("/sys/class/block") / device.name / "dm/uuid"
        encrypted = uuid.exists() and uuid.read_text().startswith("CRYPT-")
        if not encrypted and not device.name.startswith("zram"):
            found.append(f"swap on {device} is not encrypted: memory of the application may be written there")
    for unit in units:
        command = ["systemctl", "show", "--property=LimitCORE", "--value", unit]
        limit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if limit != "0":
            found.append(f"{unit} may dump core (LimitCORE={limit or 'unknown'}): its memory would be in a file")
    return found


def audit(given: dict[str, list[str]], directory: Path, credential: Path) -> dict[str, list[str]]:
    """Search everywhere; returns findings, and the names of what was searched for and of what could not be."""
    secrets = harvest(directory, credential)
    short = sorted(name for name, value in secrets.items() if len(value) < SHORTEST)
    searched = {name: value for name, value in secrets.items() if name not in short}
    result: dict[str, list[str]] = {"findings": [], "secrets": sorted(searched), "short": short}
    if not searched:
        return result
    patterns = Patterns(searched)
    findings = result["findings"]
    for file, names in in_files(patterns, given["paths"], [*APART, str(directory)]).items():
        findings += [f"{file} holds {name}" for name in names]
    present = [path for path in OPEN_TO_OTHERS if Path(path).exists()]
    findings += [f"any user can read secrets in {file}" for file in in_files(patterns, present, [], user=NOBODY)]
    findings += in_processes(patterns)
    findings += in_output(patterns, "the journal", ["journalctl", "--quiet", "--all", "--output=export"])
    findings += in_output(patterns, "what systemctl shows of the units", ["systemctl", "show", "*"])
    findings += in_output(patterns, "the environment of systemd", ["systemctl", "show-environment"])
    findings += could_reach_a_disk(given["units"])
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "directory": {"type": "path", "default": "/run/bareforge-agent"},
            "credential": {"type": "path", "default": "/etc/bareforge-agent/approle.cred"},
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        result = audit(given, Path(given["directory"]), Path(given["credential"]))
    except OSError as error:
        module.fail_json(msg=f"the search broke off: {error}")
    if not result["secrets"]:
        module.fail_json(
            msg=f"there is no secret of at least {SHORTEST} characters below {given['directory']}, so there is nothing "
            "to search for; is the agent running? see: journalctl -u bareforge-agent",
            **result,
        )
    if result["findings"]:
        module.fail_json(
            msg=f"{len(result['findings'])} finding(s): {'; '.join(result['findings'])}. Remove what holds a "
            "secret, then rotate that secret, see docs/rotation.md",
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
