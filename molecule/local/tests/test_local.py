"""The whole stack on one machine."""

import json

from testinfra.host import Host

testinfra_hosts = ["ansible://here"]

ASK = (
    "import json, ssl, urllib.request; "
    "trust = ssl.create_default_context(cafile='/etc/ssl/lab/ca.pem'); "
    "print(urllib.request.urlopen('https://localhost{path}', context=trust, timeout=30).read().decode())"
)


def ask(host: Host, path: str) -> dict[str, str]:
    answer: dict[str, str] = json.loads(host.check_output("/usr/bin/python3 -c %s", ASK.replace("{path}", path)))
    return answer


def test_the_service_answers_over_https(host: Host) -> None:
    assert ask(host, "/ready")["status"] == "ready"
    assert ask(host, "/version")["environment"] == "development"


def test_every_part_runs_here(host: Host) -> None:
    for unit in ("openbao", "forge.socket", "forge", "bareforge-agent", "nginx"):
        assert host.service(unit).is_running, unit


def test_the_database_is_not_offered_to_the_network(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:5432").is_listening
    assert not host.socket("tcp://0.0.0.0:5432").is_listening
