"""A stranger's application serves with its password and its database from Vault.

The questions are asked by scripts that run on the host as root: no secret leaves it, none is in a command line.
"""

import json
from typing import Any

import pytest

testinfra_hosts = ["ansible://app"]

SETTINGS = {
    "BASIC_AUTH_PASSWORD",
    "PLATFORM_ADMIN_PASSWORD",
    "JWT_SECRET_KEY",
    "AUTH_ENCRYPTION_SECRET",
    "DATABASE_URL",
}

# Asks through nginx; prints {question: status or text}.
ASK = """
import base64, glob, json, ssl, urllib.error, urllib.request
with open(*glob.glob("/run/bareforge-agent/*/kv.json")) as file:
    secrets = json.load(file)
trust = ssl.create_default_context(cafile="/etc/ssl/lab/ca.pem")
def ask(path, authorization=None, body=None):
    request = urllib.request.Request("https://localhost" + path)
    if authorization:
        request.add_header("Authorization", authorization)
    if body:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, context=trust, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
def basic(password):
    return "Basic " + base64.b64encode(("admin:" + password).encode()).decode()
def login(password):
    return ask("/auth/login", body={"email": "admin@example.com", "password": password})
answers = {"ready": ask("/ready")[0], "no password": ask("/version")[0]}
answers["wrong password"] = ask("/version", basic("x" * 64))[0]
status, version = ask("/version", basic(secrets["BASIC_AUTH_PASSWORD"]))
answers["password of Vault"] = status
answers["application"] = version.get("app", {}).get("name")
answers["database"] = version.get("database", {}).get("dialect")
answers["wrong login"] = login("x" * 64)[0]
status, session = login(secrets["PLATFORM_ADMIN_PASSWORD"])
answers["login"] = status
token = session.get("access_token", "")
answers["no token"] = ask("/tools")[0]
answers["token"] = ask("/tools", "Bearer " + token)[0]
answers["forged token"] = ask("/tools", "Bearer " + token.rpartition(".")[0] + "." + "A" * 43)[0]
print(json.dumps(answers))
"""

# Looks for every secret in every place where none may be; prints {"settings", "places", "found": [[setting, place]]}.
SEARCH = """
import glob, json, os, pwd, subprocess, urllib.parse
secrets = {}
for name in ("kv.json", "db.json"):
    with open(*glob.glob("/run/bareforge-agent/*/" + name)) as file:
        secrets.update(json.load(file))
values = {(name, value) for name, value in secrets.items()}
values.add(("DATABASE_URL", urllib.parse.urlsplit(secrets["DATABASE_URL"]).password))
def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, errors="replace").stdout
user = pwd.getpwnam("contextforge").pw_uid
processes = [entry for entry in glob.glob("/proc/[0-9]*") if os.path.exists(entry) and os.stat(entry).st_uid == user]
files = [process + kind for process in processes for kind in ("/environ", "/cmdline")]
files += glob.glob("/etc/contextforge/active/*") + glob.glob("/etc/systemd/system/contextforge.*")
files += glob.glob("/var/log/nginx/*.log") + glob.glob("/srv/contextforge/releases/*/release.json")
places = {"journal": output("journalctl", "--output=cat", "--no-pager"),
          "unit": output("systemctl", "show", "contextforge.service")}
for path in files:
    try:
        with open(path, errors="replace") as file:
            places[path] = file.read()
    except IsADirectoryError:
        pass
found = [[name, place] for name, value in values for place, text in places.items() if value in text]
print(json.dumps({"settings": sorted(secrets), "places": {place: len(text) for place, text in places.items()},
                  "processes": len(processes), "found": found}))
"""


def run(host: Any, script: str) -> dict[str, Any]:
    with host.sudo():
        answer: dict[str, Any] = json.loads(host.check_output("python3 -c %s", script))
    return answer


@pytest.fixture(scope="module")
def answers(host: Any) -> dict[str, Any]:
    return run(host, ASK)


def test_service_runs_and_is_enabled(host: Any) -> None:
    service = host.service("contextforge")

    assert service.is_running
    assert service.is_enabled


def test_ready_through_nginx(answers: dict[str, Any]) -> None:
    assert answers["ready"] == 200


def test_only_vaults_password_is_accepted(answers: dict[str, Any]) -> None:
    assert answers["no password"] == 401
    assert answers["wrong password"] == 401
    assert answers["password of Vault"] == 200
    assert answers["application"] == "ContextForge"


def test_session_is_signed_with_vaults_key_and_reads_the_database(answers: dict[str, Any]) -> None:
    assert answers["wrong login"] == 401
    assert answers["login"] == 200
    assert answers["no token"] == 401
    assert answers["forged token"] == 401
    assert answers["token"] == 200


def test_its_tables_are_in_postgresql(answers: dict[str, Any]) -> None:
    assert answers["database"] == "postgresql"


def test_secrets_are_nowhere_but_in_memory(host: Any) -> None:
    searched = run(host, SEARCH)

    assert set(searched["settings"]) == SETTINGS
    assert searched["processes"] >= 3, "master and two workers"
    unit = "/etc/systemd/system/contextforge.service"
    for place in ("journal", "unit", "/etc/contextforge/active/environment", unit):
        assert searched["places"][place] > 0
    assert searched["found"] == []
