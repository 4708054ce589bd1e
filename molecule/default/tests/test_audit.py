"""playbooks/audit.yml on hosts that serve: clean, and nothing that is planted escapes it."""

from __future__ import annotations

import re

from benchmarks.fleet import Fleet
from tests.lab import ENVIRONMENT, INVENTORY, STATE, findings, play

FLEET = Fleet(STATE, (INVENTORY,), ENVIRONMENT)

# Each secret in a place, and in a spelling, of its own. The values are read on the host and stay there.
PLANT = r"""
import base64, json, pathlib, subprocess, urllib.parse
secrets = {}
for file in pathlib.Path("/run/bareforge-agent").glob("*/*.json"):
    secrets.update(json.loads(file.read_text()))
key, url = secrets["FORGE_SECRET_KEY"], secrets["FORGE_DATABASE_URL"]
token = pathlib.Path("/run/bareforge-agent/token").read_text()
password = urllib.parse.unquote(urllib.parse.urlsplit(url).password)
pathlib.Path("/etc/planted.env").write_text(f"KEY={key}\n")
pathlib.Path("/root/planted").write_bytes(b"x" + base64.b64encode(f"a{url}".encode()))
pathlib.Path("/var/lib/planted").write_text(token[::-1])
shared = pathlib.Path("/dev/shm/planted")
shared.write_text(password.encode().hex())
shared.chmod(0o644)
unit = pathlib.Path("/run/systemd/system/planted.service")
unit.write_text(f"[Service]\nEnvironment=PLANTED={key}\nExecStart=/bin/sleep 300\n")
subprocess.run(["systemctl", "daemon-reload"], check=True)
subprocess.run(["systemctl", "start", "planted.service"], check=True)
subprocess.run(["systemd-cat", "--identifier=planted", "echo", f"connecting with {password}"], check=True)
subprocess.Popen(["/usr/bin/python3", "-c", "import time; time.sleep(300)", token], start_new_session=True,
                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""
UPROOT = (
    "systemctl stop planted.service; pkill -f 'import [t]ime; time.sleep.300.'; "
    "rm -f /etc/planted.env /root/planted /var/lib/planted /dev/shm/planted /run/systemd/system/planted.service; "
    "systemctl daemon-reload; journalctl --quiet --sync; sleep 1; journalctl --quiet --rotate --vacuum-time=1s"
)
PLANTED = (
    r"/etc/planted.env holds FORGE_SECRET_KEY",
    r"/root/planted holds FORGE_DATABASE_URL",
    r"/var/lib/planted holds the agent's token",
    r"/dev/shm/planted holds the password .*",
    r"any user can read secrets in /dev/shm/planted",
    r"any user can read secrets in /etc/planted.env",
    r"/run/systemd/system/planted.service holds FORGE_SECRET_KEY",
    r"environ of process \d+ \(sleep\) holds FORGE_SECRET_KEY",
    r"what systemctl shows of the units holds FORGE_SECRET_KEY",
    r"cmdline of process \d+ \(python3[\d.]*\) holds the agent's token",
    r"the journal holds the password .*",
)


def audit() -> dict[str, list[str]]:
    return findings(play("audit.yml"))


def test_no_secret_is_where_none_belongs() -> None:
    assert audit() == {"app1": [], "app2": []}


def test_everything_that_is_planted_is_named() -> None:
    try:
        FLEET.ssh("app2", f"/usr/bin/python3 - <<'END'\n{PLANT}\nEND\n")
        found = audit()
        assert found["app1"] == []
        missed = [place for place in PLANTED if not any(re.fullmatch(place, sentence) for sentence in found["app2"])]
        assert missed == [], found["app2"]
    finally:
        FLEET.ssh("app2", UPROOT, check=False)
    assert audit() == {"app1": [], "app2": []}
