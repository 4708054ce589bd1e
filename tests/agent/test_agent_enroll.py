"""Enrolment against a real server; a small program stands in for systemd-creds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from bareforge_agent import enroll as enrolment
from bareforge_agent.config import read_config
from bareforge_agent.errors import AgentError

from tests.agent.conftest import Bao, Host, client

ENROLL = "enrol this host again: ansible-playbook playbooks/deploy.yml -e vault_agent_enroll=true"
PATH = "auth/approle/role/host-web1/secret-id"

# Checks how it is called and "encrypts" by reversing.
STAND_IN = """
import sys
verb, name, source, destination = sys.argv[1:]
assert (verb, name, source) == ("encrypt", "--name=approle", "-"), sys.argv
with open(destination, "w") as file:
    file.write(sys.stdin.read()[::-1])
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> list[str]:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    return [sys.executable, str(program)]


def wrapped(bao: Bao, path: str = PATH, **data: Any) -> dict[str, str]:
    answer = bao.root.write_data(path, data=data, wrap_ttl="60s")
    return {
        "role_id": bao.root.read("auth/approle/role/host-web1/role-id")["data"]["role_id"],
        "wrap_token": answer["wrap_info"]["token"],
        "creation_path": PATH,
    }


def enroll(host: Host, request: object, systemd_creds: list[str]) -> Path:
    destination = host.directory / "approle.cred"
    text = request if isinstance(request, str) else json.dumps(request)
    enrolment.enroll(read_config(host.config_file), text, destination, systemd_creds)
    return destination


def refused(host: Host, request: object, systemd_creds: list[str], code: int = 3) -> str:
    with pytest.raises(AgentError) as caught:
        enroll(host, request, systemd_creds)
    assert caught.value.code == code
    assert [file.name for file in host.directory.iterdir() if "approle.cred" in file.name] == []
    return str(caught.value)


def test_enrolled_host_can_log_in(host: Host, bao: Bao, stand_in: list[str]) -> None:
    destination = enroll(host, wrapped(bao), stand_in)
    assert destination.stat().st_mode & 0o777 == 0o600
    credential = json.loads(destination.read_text()[::-1])
    assert sorted(credential) == ["role_id", "secret_id"]
    host.put_credential(credential)
    assert host.agent("check").returncode == 0


def test_proof_leaves_no_token(host: Host, bao: Bao, stand_in: list[str]) -> None:
    before = len(bao.root.list("auth/token/accessors")["data"]["keys"])
    enroll(host, wrapped(bao), stand_in)
    assert len(bao.root.list("auth/token/accessors")["data"]["keys"]) == before


def test_substituted_token_is_theft(host: Host, bao: Bao, stand_in: list[str]) -> None:
    """A thief who has used the token puts one of his own in its place, which unwraps like the real one."""
    request = wrapped(bao)
    genuine = client(bao.address, bao.ca, request["wrap_token"])
    stolen = genuine.sys.unwrap()["data"]
    request["wrap_token"] = wrapped(bao, "sys/wrapping/wrap", **stolen)["wrap_token"]
    assert refused(host, request, stand_in) == (
        "the wrapping token was not made by that AppRole role: possible theft; it was made at "
        f"'sys/wrapping/wrap' instead of '{PATH}', find out by whom, then {ENROLL}"
    )


def test_token_of_another_role(host: Host, bao: Bao, stand_in: list[str]) -> None:
    bao.role("host-web2")
    request = wrapped(bao, "auth/approle/role/host-web2/secret-id")
    assert "possible theft; it was made at 'auth/approle/role/host-web2/secret-id'" in refused(host, request, stand_in)


REFUSED = (
    "Vault refuses the wrapping token: used, expired or altered; "
    f"if it was not too old, treat it as theft and revoke the role's secret IDs, then {ENROLL}"
)


def test_token_used_before(host: Host, bao: Bao, stand_in: list[str]) -> None:
    request = wrapped(bao)
    client(bao.address, bao.ca, request["wrap_token"]).sys.unwrap()
    assert refused(host, request, stand_in) == REFUSED


def test_token_altered(host: Host, bao: Bao, stand_in: list[str]) -> None:
    request = wrapped(bao)
    request["wrap_token"] = request["wrap_token"][:-4] + "AAAA"
    assert refused(host, request, stand_in) == REFUSED


def test_secret_id_of_limited_use(host: Host, bao: Bao, stand_in: list[str]) -> None:
    bao.role("host-limited", secret_id_num_uses=5)
    path = "auth/approle/role/host-limited/secret-id"
    request = {**wrapped(bao, path), "creation_path": path}
    assert refused(host, request, stand_in) == (
        "the secret IDs of this AppRole role can be used a limited number of times only, "
        f"and the agent logs in again after an outage; set secret_id_num_uses to 0, then {ENROLL}"
    )


def test_wrong_role_id_is_found_before_anything_is_stored(host: Host, bao: Bao, stand_in: list[str]) -> None:
    request = {**wrapped(bao), "role_id": "wrong"}
    assert refused(host, request, stand_in) == (
        f"Vault refused the AppRole login (invalid role or secret ID); {ENROLL}"
    )


@pytest.mark.parametrize("request_text", ["", "[]", '{"role_id": "x"}'])
def test_malformed_request(host: Host, stand_in: list[str], request_text: str) -> None:
    assert refused(host, request_text, stand_in, code=2) == (
        "standard input is not a JSON object with role_id, wrap_token, creation_path; send exactly that"
    )


def test_encryption_fails(host: Host, bao: Bao) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no host key')"]
    assert refused(host, wrapped(bao), failing) == (
        f"{sys.executable} did not encrypt the credential: no host key; then {ENROLL}"
    )


def test_encryption_program_missing(host: Host, bao: Bao) -> None:
    destination = host.directory / "approle.cred"
    assert refused(host, wrapped(bao), ["/nowhere/systemd-creds"]) == (
        f"cannot write the credential {destination} with /nowhere/systemd-creds: "
        f"no such file or directory; correct that, then {ENROLL}"
    )


def test_command_reads_standard_input(host: Host, bao: Bao, tmp_path: Path) -> None:
    """The command itself, with a program called systemd-creds found on PATH."""
    program = tmp_path / "bin/systemd-creds"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    destination = host.directory / "approle.cred"
    done = host.agent(
        "enroll", "--credential", str(destination), stdin=json.dumps(wrapped(bao)), PATH=str(program.parent)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ok: enrolled, the credential is {destination}\n"
