"""What stands on an application host after a deploy."""

import json
import re

from testinfra.host import Host

testinfra_hosts = ["ansible://app"]


def test_the_units_run_and_come_back_at_boot(host: Host) -> None:
    for unit in ("forge.socket", "forge.service", "bareforge-agent.service", "nginx.service"):
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit
    assert host.check_output("systemctl show forge.service --property=NRestarts --value") == "0"


def test_systemd_knows_the_master(host: Host) -> None:
    main = host.check_output("systemctl show forge.service --property=MainPID --value")
    with host.sudo():
        assert host.file("/run/forge/gunicorn/gunicorn.pid").content_string.strip() == main
    workers = host.check_output("pgrep --parent %s", main).split()
    assert len(workers) == 2
    assert host.check_output("ps -o user= -p %s", main) == "forge"


def test_the_release_is_immutable_and_describes_itself(host: Host) -> None:
    current = host.check_output("readlink -f /srv/forge/current")
    release = json.loads(host.file(f"{current}/release.json").content_string)
    assert current == f"/srv/forge/releases/{release['id']}"
    assert release["version"] == "0.1.0"
    python = host.check_output("/usr/bin/python3 -c 'import platform; print(platform.python_version())'")
    assert release["python_version"] == python
    assert host.check_output("find /srv/forge -not -user root") == ""
    assert host.check_output("find /srv/forge -not -type l -perm /o+w") == ""
    with host.sudo("forge"):
        assert host.run("touch %s/app/written", current).rc != 0


def test_only_the_web_server_may_use_the_socket(host: Host) -> None:
    socket = host.file("/run/forge/app.sock")
    assert (socket.user, socket.group, oct(socket.mode)) == ("forge", "www-data", "0o660")


def test_the_secrets_lie_in_memory_and_only_their_readers_see_them(host: Host) -> None:
    with host.sudo():
        files = host.check_output("find /run/bareforge-agent -name kv.json -o -name db.json").split()
        assert len(files) >= 2
        for path in files:
            assert (host.file(path).user, host.file(path).group, oct(host.file(path).mode)) == (
                "bareforge-agent", "forge", "0o440",
            )  # fmt: skip
        assert host.check_output("stat -f -c %%T %s", files[0]) == "tmpfs"
    with host.sudo("www-data"):
        assert host.run("cat %s", files[0]).rc != 0


def test_the_identity_is_encrypted_at_rest(host: Host) -> None:
    with host.sudo():
        credential = host.file("/etc/bareforge-agent/approle.cred")
        assert (credential.user, oct(credential.mode)) == ("root", "0o600")
        assert "secret_id" not in credential.content_string
        clear = host.check_output("systemd-creds decrypt --name=approle /etc/bareforge-agent/approle.cred - | wc -c")
    assert int(clear) > 60


def test_access_lines_are_json_with_the_request_id(host: Host) -> None:
    with host.sudo():
        lines = host.check_output("journalctl --unit=forge --output=cat --no-pager").splitlines()
    access = [json.loads(line) for line in lines if line.startswith('{"method"')]
    assert access
    assert {"method", "path", "status", "duration_ms", "request_id", "release", "remote"} <= set(access[-1])


def test_a_restart_by_hand_waits_until_it_is_ready(host: Host) -> None:
    with host.sudo():
        host.check_output("systemctl restart forge.service")
        answer = host.check_output(
            "/usr/bin/python3 -c %s",
            "import http.client, socket; c = http.client.HTTPConnection('localhost'); "
            "c.sock = socket.socket(socket.AF_UNIX); c.sock.connect('/run/forge/app.sock'); "
            "c.request('GET', '/ready'); print(c.getresponse().status)",
        )
    assert answer == "200"


def test_nginx_tells_the_application_who_asks(host: Host) -> None:
    with host.sudo():
        lines = host.check_output("journalctl --unit=forge --output=cat --no-pager").splitlines()
    remotes = {json.loads(line)["remote"] for line in lines if line.startswith('{"method"')}
    assert any(re.fullmatch(r"[0-9.]+", remote or "") for remote in remotes)
