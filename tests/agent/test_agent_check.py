"""`check` against a real server: each failure by its exit code and its one line."""

import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agent.conftest import Bao, Host, Postgres, free_port, make_certificates

ENROLL = "enrol this host again: ansible-playbook playbooks/deploy.yml -e vault_agent_enroll=true"


def kv(place: str, key: str = "secret_key") -> dict[str, Any]:
    return {"APP_KEY": {"kv": place, "key": key}}


def database_url(role: str) -> dict[str, Any]:
    return {"APP_URL": {"database": f"database/creds/{role}", "template": "{username}:{password}"}}


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bareforge-agent: ")
    return line.removeprefix("bareforge-agent: ")


def test_ok_and_nothing_is_left(host: Host, database: Postgres) -> None:
    roles = "SELECT rolname FROM pg_roles"
    # users of earlier tests may still be on their way out
    before = set(database.run(roles).split())
    host.configure({**kv("secret/forge"), **database_url("forge")})
    done = host.agent("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok: 2 settings can be read\n", "")
    assert list(host.runtime.iterdir()) == []
    deadline = time.monotonic() + 20
    while set(database.run(roles).split()) - before:
        assert time.monotonic() < deadline, "the database user must go with the token"
        time.sleep(0.1)


def test_all_sets_are_proven(host: Host, database: Postgres) -> None:
    """A path that two sets name is read once: Vault would count two database users."""
    both = {**kv("secret/forge"), **database_url("forge")}
    host.configure(sets={"s1": both, "s2": both})
    done = host.agent("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok: 4 settings can be read\n", "")
    for wrong in (kv("secret/forge", "secret_kee"), database_url("absent")):
        for sets in ({"s1": both, "s2": wrong}, {"s1": wrong, "s2": both}):
            host.configure(sets=sets)
            refused(host.agent("check"), 5)


def test_one_set_is_proven(host: Host, database: Postgres) -> None:
    good = {**kv("secret/forge"), **database_url("forge")}
    for wrong in (kv("secret/denied"), database_url("absent")):
        host.configure(sets={"old": wrong, "new": good})
        done = host.agent("check", "--set", "new")
        assert (done.returncode, done.stdout, done.stderr) == (0, "ok: 2 settings can be read\n", "")
        refused(host.agent("check", "--set", "old"), 5)
    assert refused(host.agent("check", "--set", "other"), 2) == (
        f"{host.config_file} has no set 'other', only: new, old; correct --set"
    )


def test_usage(host: Host) -> None:
    assert host.agent("check", "--unknown").returncode == 2


def test_configuration(host: Host) -> None:
    host.configure(adress="x")
    assert "unknown key 'adress'" in refused(host.agent("check"), 2)


def test_not_enrolled(host: Host) -> None:
    (host.directory / "credentials/approle").unlink()
    assert refused(host.agent("check"), 3) == f"this host has no AppRole credential; {ENROLL}"


@pytest.mark.parametrize("name", ["role_id", "secret_id"])
def test_login_refused(host: Host, bao: Bao, name: str) -> None:
    host.put_credential({**bao.credential(), name: "wrong-hidden"})
    line = refused(host.agent("check"), 3)
    assert line == f"Vault refused the AppRole login (invalid role or secret ID); {ENROLL}"


def test_secret_id_from_another_address(host: Host, bao: Bao) -> None:
    host.put_credential(bao.role("host-elsewhere", secret_id_bound_cidrs=["192.0.2.7/32"]))
    assert refused(host.agent("check"), 3) == (
        "Vault refused the AppRole login: it sees this host at an address 127.0.0.1 that the role or "
        "its secret ID is not bound to; correct the bound addresses in Vault, or the host's route to it"
    )


def test_token_from_another_address(host: Host, bao: Bao) -> None:
    host.put_credential(bao.role("host-token-elsewhere", token_bound_cidrs=["192.0.2.7/32"]))
    assert refused(host.agent("check"), 3) == (
        "Vault accepted the AppRole login but refuses its token at once; "
        "correct token_bound_cidrs of the role, or the host's route to Vault"
    )


def test_approle_mount_missing(host: Host) -> None:
    host.configure(approle_mount="nowhere")
    assert refused(host.agent("check"), 3) == (
        "Vault refused the AppRole login: there is no auth/nowhere to log in at; "
        "check approle_mount, or enable it in Vault"
    )


def test_identity_locked_out_after_refused_logins(host: Host, bao: Bao) -> None:
    """Not taken for a missing mount, which Vault answers in the same words; another secret_id would not help."""
    good = bao.role("host-locked", token_policies=["forge"])
    host.put_credential({**good, "secret_id": "hidden"})
    for _ in range(5):
        assert "invalid role or secret ID" in refused(host.agent("check"), 3)
    host.put_credential(good)
    assert refused(host.agent("check"), 4) == (
        f"Vault at {bao.address} has locked this AppRole identity out after too many refused logins; "
        "find out what sent them, then wait (15 min by default) or unlock it: sys/locked-users"
    )


def test_connection_refused(host: Host) -> None:
    address = f"https://127.0.0.1:{free_port()}"
    host.configure(address=address)
    assert refused(host.agent("check"), 4) == (
        f"cannot reach Vault at {address}: connection refused; "
        "check vault_agent_address and that the host may connect to it"
    )


def test_name_not_resolved(host: Host) -> None:
    host.configure(address="https://vault.invalid:8200")
    assert refused(host.agent("check"), 4) == (
        "cannot reach Vault at https://vault.invalid:8200: the name vault.invalid does not resolve; "
        "check vault_agent_address and the name service of the host"
    )


def test_certificate_of_another_authority(host: Host, bao: Bao, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other)
    host.configure(ca_certificate=str(other / "ca.pem"))
    line = refused(host.agent("check"), 4)
    assert line.startswith(f"the TLS certificate of Vault at {bao.address} is not trusted by {other}/ca.pem (")
    assert line.endswith("); check vault_agent_ca_certificate")


def test_certificate_for_another_name(host: Host, bao: Bao) -> None:
    address = bao.address.replace("127.0.0.1", "localhost")
    host.configure(address=address)
    assert refused(host.agent("check"), 4) == (
        f"the TLS certificate of Vault at {address} is for another name; check vault_agent_address"
    )


def test_plain_http_to_a_tls_port(host: Host, bao: Bao) -> None:
    address = bao.address.replace("https", "http")
    host.configure(address=address)
    assert refused(host.agent("check"), 4) == (
        f"Vault at {address} speaks TLS only; use https:// in vault_agent_address"
    )


@pytest.mark.parametrize("reset", [True, False])
def test_a_tls_port_that_hangs_up_before_its_answer_is_read(reset: bool, host: Host) -> None:
    """What a busy server does to a request with a body."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        host.configure(address=address)

        def answer() -> None:
            connection, _ = server.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
            connection.recv(5 if reset else 65536)
            connection.close()
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        line = refused(host.agent("check"), 4)
        thread.join(5)
    assert line == f"Vault at {address} speaks TLS only; use https:// in vault_agent_address"


def test_something_else_on_the_port(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"https://127.0.0.1:{server.getsockname()[1]}"
        host.configure(address=address)

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        line = refused(host.agent("check"), 4)
        thread.join(5)
    assert line == (f"Vault at {address} does not speak TLS as expected; check vault_agent_address, scheme and port")


def test_sealed(host: Host, bao: Bao) -> None:
    bao.seal()
    assert refused(host.agent("check"), 4) == (
        f"Vault at {bao.address} is sealed; unseal it, the agent goes on by itself"
    )


def test_path_denied(host: Host) -> None:
    host.configure(kv("secret/denied"))
    assert refused(host.agent("check"), 5) == (
        "permission denied on secret/denied (for APP_KEY); "
        "let the policy of this host's AppRole role read secret/data/denied"
    )


def test_path_missing(host: Host) -> None:
    host.configure(kv("secret/absent"))
    assert refused(host.agent("check"), 5) == (
        "there is no secret secret/absent (for APP_KEY); write it: vault kv put secret/absent secret_key=..."
    )


def test_version_deleted(host: Host, bao: Bao) -> None:
    bao.put("deleted", secret_key="hidden")
    bao.root.secrets.kv.v2.delete_latest_version_of_secret("deleted", mount_point="secret")
    version = bao.root.secrets.kv.v2.read_secret_metadata("deleted", mount_point="secret")
    number = version["data"]["current_version"]
    host.configure(kv("secret/deleted"))
    assert refused(host.agent("check"), 5) == (
        "the latest version of secret/deleted (for APP_KEY) is deleted; "
        f"restore it: vault kv undelete -versions={number} secret/deleted"
    )
    bao.root.secrets.kv.v2.destroy_secret_versions("deleted", [number], mount_point="secret")
    assert refused(host.agent("check"), 5) == (
        "the latest version of secret/deleted (for APP_KEY) is destroyed; "
        "write a new one: vault kv put secret/deleted secret_key=..."
    )


def test_pinned_version_missing_or_destroyed(host: Host, bao: Bao) -> None:
    bao.put("other", secret_key="hidden")
    metadata = bao.root.secrets.kv.v2.read_secret_metadata("other", mount_point="secret")
    number = metadata["data"]["current_version"]
    host.configure({"APP_KEY": {"kv": "secret/other", "key": "secret_key", "version": number + 7}})
    assert refused(host.agent("check"), 5) == (
        f"there is no version {number + 7} of secret/other (for APP_KEY); "
        "correct version, or leave it out for the latest one"
    )
    bao.root.secrets.kv.v2.destroy_secret_versions("other", [number], mount_point="secret")
    host.configure({"APP_KEY": {"kv": "secret/other", "key": "secret_key", "version": number}})
    assert refused(host.agent("check"), 5) == (
        f"version {number} of secret/other (for APP_KEY) is destroyed; "
        "write a new one: vault kv put secret/other secret_key=..."
    )


def test_key_missing(host: Host) -> None:
    host.configure(kv("secret/forge", "secret_kee"))
    assert refused(host.agent("check"), 5) == (
        "secret/forge has no key 'secret_kee' (for APP_KEY), only: other, secret_key; "
        "add it: vault kv patch secret/forge secret_kee=..."
    )


def test_value_not_a_string(host: Host, bao: Bao) -> None:
    bao.put("other", secret_key={"nested": "hidden"})
    host.configure(kv("secret/other"))
    assert refused(host.agent("check"), 5) == (
        "the key 'secret_key' of secret/other (for APP_KEY) is not a string; write it as one"
    )


def test_database_role_missing(host: Host, database: Postgres) -> None:
    host.configure(database_url("absent"))
    assert refused(host.agent("check"), 5) == (
        "there is no database role at database/creds/absent; create it in Vault or correct the path"
    )


def test_database_cannot_make_credentials(host: Host, database: Postgres) -> None:
    host.configure(database_url("broken"))
    line = refused(host.agent("check"), 4)
    start = f"Vault at {host.bao.address} cannot make database credentials at database/creds/broken: "
    assert line.startswith(start)
    assert line.endswith("; check the database server and Vault's connection to it")
    assert "superuser-password" not in line


def test_path_that_gives_no_credentials(host: Host) -> None:
    host.configure({"APP_URL": {"database": "secret/data/forge", "template": "{username}:{password}"}})
    assert refused(host.agent("check"), 5) == (
        "secret/data/forge does not give a username and a password; "
        "name a path of the database engine, such as database/creds/NAME"
    )
