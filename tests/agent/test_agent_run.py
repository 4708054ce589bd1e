"""`run` against a real server: what it writes, keeps alive, and takes over."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import hvac
import pytest
from bareforge_agent import keeper
from bareforge_agent.config import Credential, read_config
from bareforge_agent.errors import EnrolmentError, UnavailableError
from bareforge_agent.stop import Stop
from bareforge_agent.vault import Vault

from tests.agent.conftest import FORGE_KEY, SET, Bao, Host, Postgres

READY = "READY=1"


def url(role: str, port: int, name: str = "FORGE_DATABASE_URL") -> dict[str, Any]:
    template = f"postgresql://{{username}}:{{password}}@127.0.0.1:{port}/postgres"
    return {name: {"database": f"database/creds/{role}", "template": template}}


def test_files_and_their_modes(host: Host, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    host.start()
    host.wait_for_status(READY)
    assert "STATUS=ok, 2 settings" in host.status
    assert host.settings() == {"FORGE_SECRET_KEY": "k-e-y-1"}
    found = list(host.runtime.rglob("*"))
    assert {str(file.relative_to(host.runtime)): oct(file.stat().st_mode & 0o777) for file in found} == {
        "set1": "0o750",
        "set1/kv.json": "0o440",
        "set1/db.json": "0o440",
        "token": "0o400",
        "state.json": "0o400",
    }
    assert {file.stat().st_gid for file in found} == {host.runtime.stat().st_gid}
    assert host.log() == ["wrote set1/kv.json: FORGE_SECRET_KEY", "wrote set1/db.json: FORGE_DATABASE_URL"]


def test_readers_are_the_group_of_the_runtime_directory(host: Host) -> None:
    """Also of a directory that was left behind in another state."""
    if len(groups := {os.getgid(), *os.getgroups()}) == 1 and os.getuid() == 0:
        groups |= {65534}
    os.chown(host.runtime, -1, max(groups))
    (host.runtime / SET).mkdir(mode=0o700)
    os.chown(host.runtime / SET, -1, min(groups))
    host.start()
    host.wait_for_status(READY)
    assert oct((host.runtime / SET).stat().st_mode & 0o777) == "0o750"
    assert {file.stat().st_gid for file in host.runtime.rglob("*")} == {max(groups)}


def connect(host: Host, address: str = "") -> str:
    """Log in to the database with what db.json says (or said) and return the user's name."""
    done = subprocess.run(
        ["psql", "-Atc", "SELECT current_user", address or host.settings("db")["FORGE_DATABASE_URL"]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_database_credentials_work(host: Host, database: Postgres) -> None:
    host.configure(url("forge", database.port))
    host.start()
    host.wait_for_status(READY)
    assert connect(host).startswith("v-")
    assert not (host.runtime / SET / "kv.json").exists()


def test_environment_is_disregarded_and_holds_no_secret(host: Host) -> None:
    """HTTPS_PROXY and VAULT_TOKEN are set for every agent here (see conftest): it would not get this far."""
    process = host.start()
    host.wait_for_status(READY)
    environment = Path(f"/proc/{process.pid}/environ").read_text(encoding="utf-8")
    assert "VAULT_TOKEN=must-not-be-used" in environment
    assert (host.runtime / "token").read_text() not in environment
    assert "k-e-y-1" not in environment


def test_kv_change_is_seen(host: Host, bao: Bao) -> None:
    host.start()
    host.wait_for_status(READY)
    time.sleep(0.5)
    unchanged = (host.runtime / SET / "kv.json").stat()
    bao.put("forge", secret_key="k-e-y-2")
    host.wait_for_setting("FORGE_SECRET_KEY", "k-e-y-2")
    assert (host.runtime / SET / "kv.json").stat().st_ino != unchanged.st_ino, "replaced, not rewritten"
    assert host.log().count("wrote set1/kv.json: FORGE_SECRET_KEY") == 2, "written only when it changed"


def test_pinned_version_stays_beside_the_latest_one(host: Host, bao: Bao) -> None:
    metadata = bao.root.secrets.kv.v2.read_secret_metadata("forge", mount_point="secret")
    pinned = {**FORGE_KEY["FORGE_SECRET_KEY"], "version": metadata["data"]["current_version"]}
    host.configure(sets={SET: {"FORGE_SECRET_KEY": pinned}, "latest": FORGE_KEY})
    host.start()
    host.wait_for_status(READY)
    bao.put("forge", secret_key="k-e-y-2")
    deadline = time.monotonic() + 10
    while host.settings(of="latest")["FORGE_SECRET_KEY"] != "k-e-y-2":
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.05)
    assert host.settings()["FORGE_SECRET_KEY"] == "k-e-y-1"


def test_restart_takes_over_token_and_lease(host: Host, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    process = host.start()
    host.wait_for_status(READY)
    accessor, user = host.accessor(), connect(host)
    assert host.stop(process) == 0
    host.start()
    host.wait_for_status(READY)
    assert (host.accessor(), connect(host)) == (accessor, user)


def test_restart_with_a_revoked_token_logs_in(host: Host, bao: Bao) -> None:
    process = host.start()
    host.wait_for_status(READY)
    accessor = host.accessor()
    host.stop(process)
    bao.root.auth.token.revoke_accessor(accessor)
    host.start()
    host.wait_for_status(READY)
    assert host.accessor() != accessor


def test_restart_under_another_identity_does_not_take_over(host: Host, bao: Bao) -> None:
    process = host.start()
    host.wait_for_status(READY)
    accessor = host.accessor()
    host.stop(process)
    host.put_credential(bao.role("host-renamed"))
    host.start()
    host.wait_for_status(READY)
    assert host.accessor() != accessor


def test_restart_with_another_secret_id_logs_in_and_ends_the_token_from_before(
    host: Host, bao: Bao, database: Postgres
) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)}, grace_seconds=1.5)
    process = host.start()
    host.wait_for_status(READY)
    accessor, before = host.accessor(), host.settings("db")["FORGE_DATABASE_URL"]
    user = connect(host)
    host.stop(process)
    host.put_credential(bao.credential())
    host.start()
    host.wait_for_status(READY)
    assert host.accessor() != accessor
    assert connect(host, before) == user, "its readers have to move first"
    assert connect(host) != user
    deadline = time.monotonic() + 5
    while user in leased(database):
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.05)
    with pytest.raises(hvac.exceptions.VaultError):
        bao.root.auth.token.lookup_accessor(accessor)
    assert json.loads((host.runtime / "state.json").read_text())["former"] == {}


def test_state_of_an_agent_that_kept_no_secret_id_is_completed(host: Host, bao: Bao) -> None:
    process = host.start()
    host.wait_for_status(READY)
    accessor = host.accessor()
    host.stop(process)
    file = host.runtime / "state.json"
    state = json.loads(file.read_text())
    del state["secret_id"], state["former"]
    file.chmod(0o600)
    file.write_text(json.dumps(state))
    process = host.start()
    host.wait_for_status(READY)
    assert host.accessor() == accessor
    host.stop(process)
    host.put_credential(bao.credential())
    host.start()
    host.wait_for_status(READY)
    assert host.accessor() != accessor


def test_unusable_state_is_no_obstacle(host: Host) -> None:
    (host.runtime / "state.json").write_text('{"databases": ')
    (host.runtime / "token").write_text("x")
    host.start()
    host.wait_for_status(READY)


def test_setting_no_longer_declared_disappears(host: Host, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    process = host.start()
    host.wait_for_status(READY)
    host.stop(process)
    host.configure(FORGE_KEY)
    host.start()
    host.wait_for_status(READY)
    assert not (host.runtime / SET / "db.json").exists()


def leased(database: Postgres) -> set[str]:
    """The users that Vault has made and not removed yet."""
    return set(database.run("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'").split())


def lease(host: Host, role: str = "forge") -> str:
    state = json.loads((host.runtime / "state.json").read_text())
    return str(state["databases"][f"database/creds/{role}"]["lease_id"])


def test_sets_share_one_lease_and_one_database_user(host: Host, database: Postgres) -> None:
    before = leased(database)
    host.configure(
        sets={
            "old": {**FORGE_KEY, **url("forge", database.port)},
            "new": {"FORGE_KEY": FORGE_KEY["FORGE_SECRET_KEY"], **url("forge", database.port, "FORGE_URL")},
        }
    )
    host.start()
    host.wait_for_status(READY)
    assert "STATUS=ok, 4 settings" in host.status
    assert host.settings(of="old") == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert host.settings(of="new") == {"FORGE_KEY": "k-e-y-1"}
    old, new = host.settings("db", "old"), host.settings("db", "new")
    assert (list(old), list(new)) == (["FORGE_DATABASE_URL"], ["FORGE_URL"])
    assert old["FORGE_DATABASE_URL"] == new["FORGE_URL"]
    assert leased(database) - before == {connect(host, new["FORGE_URL"])}


def test_set_comes_and_goes_with_restarts(host: Host, database: Postgres) -> None:
    """As a deploy does it: the new set beside the old one, then without; the shared lease goes on."""
    shared = {**FORGE_KEY, **url("forge", database.port)}
    renamed = {"FORGE_KEY": FORGE_KEY["FORGE_SECRET_KEY"], **url("forge", database.port, "FORGE_URL")}
    added = {**renamed, **url("short", database.port, "FORGE_SHORT_URL")}
    host.configure(sets={"old": shared})
    process = host.start()
    host.wait_for_status(READY)
    lease_id, accessor = lease(host), host.accessor()
    user = host.settings("db", "old")
    inodes = {file.name: file.stat().st_ino for file in (host.runtime / "old").iterdir()}

    host.stop(process)
    host.configure(sets={"old": shared, "new": added})
    process = host.start()
    host.wait_for_status(READY)
    assert (lease(host), host.accessor()) == (lease_id, accessor)
    assert host.settings("db", "new")["FORGE_URL"] == user["FORGE_DATABASE_URL"]
    assert {file.name: file.stat().st_ino for file in (host.runtime / "old").iterdir()} == inodes, "left alone"

    host.stop(process)
    (host.runtime / "KEEP").mkdir()
    host.configure(sets={"new": added})
    host.start()
    host.wait_for_status(READY)
    assert (lease(host), host.accessor()) == (lease_id, accessor)
    assert host.settings("db", "new")["FORGE_URL"] == user["FORGE_DATABASE_URL"]
    assert host.files() == ["new/db.json", "new/kv.json"]
    assert (host.runtime / "KEEP").is_dir(), "not named like a set"
    assert "removed old" in host.log()


def test_old_set_stays_while_the_start_lasts(host: Host, bao: Bao) -> None:
    process = host.start()
    host.wait_for_status(READY)
    host.stop(process)
    host.configure(sets={"new": FORGE_KEY})
    bao.seal()
    host.start()
    host.wait_for_status(f"STATUS=Vault at {bao.address} is sealed; unseal it, the agent goes on by itself")
    assert host.files() == ["set1/kv.json"]
    bao.unseal()
    host.wait_for_status(READY)
    assert host.files() == ["new/kv.json"]


NO_KEE = (
    "secret/forge has no key 'kee' (for FORGE_KEY), only: other, secret_key; "
    "add it: vault kv patch secret/forge kee=..."
)
KEE = {"FORGE_KEY": {"kv": "secret/forge", "key": "kee"}}


def test_refusal_of_all_sets_ends_the_start(host: Host) -> None:
    """And the set that served keeps its files."""
    process = host.start()
    host.wait_for_status(READY)
    host.stop(process)
    host.configure(sets={"new": KEE, SET: {"FORGE_SECRET_KEY": {"kv": "secret/denied", "key": "k"}}})
    process = host.start()
    assert process.wait(10) == 5
    assert READY not in host.listen()
    assert host.log()[-1] == f"bareforge-agent: {NO_KEE}"
    assert host.files() == ["set1/kv.json"]
    assert host.settings() == {"FORGE_SECRET_KEY": "k-e-y-1"}


def test_refused_set_is_left_out_until_it_can_be_read(host: Host, bao: Bao, database: Postgres) -> None:
    """As after a reboot: it has no directory, not even for the half of it that could be read."""
    denied = {"FORGE_OLD": {"kv": "secret/denied", "key": "k"}, **url("forge", database.port)}
    halfway = {**FORGE_KEY, **url("absent", database.port)}
    host.configure(sets={"denied": denied, "halfway": halfway, "kee": KEE, SET: FORGE_KEY})
    host.start()
    host.wait_for_status(READY)
    denial = (
        "permission denied on secret/denied (for FORGE_OLD); "
        "let the policy of this host's AppRole role read secret/data/denied"
    )
    absent = "there is no database role at database/creds/absent; create it in Vault or correct the path"
    assert f"STATUS={denial}" in host.status
    assert "all is well again" not in host.log()
    time.sleep(1.5)
    assert host.log() == ["wrote set1/kv.json: FORGE_SECRET_KEY", absent, NO_KEE, denial], "each of them once"
    assert [file.name for file in host.runtime.iterdir() if file.is_dir()] == [SET]
    bao.put("forge", secret_key="k-e-y-2", other="x", kee="k")
    host.wait_for_setting("FORGE_SECRET_KEY", "k-e-y-2")
    assert host.settings(of="kee") == {"FORGE_KEY": "k"}
    assert host.files() == ["kee/kv.json", "set1/kv.json"]


def test_all_is_well_when_the_refused_set_can_be_read(host: Host, bao: Bao) -> None:
    host.configure(sets={"kee": KEE, SET: FORGE_KEY})
    host.start()
    host.wait_for_status(READY)
    bao.put("forge", secret_key="k-e-y-1", kee="k")
    host.wait_for_status("STATUS=ok, 2 settings")
    assert host.log()[-2:] == ["wrote kee/kv.json: FORGE_KEY", "all is well again"]


def test_refused_set_keeps_its_files_at_a_restart(host: Host, bao: Bao, database: Postgres) -> None:
    """Its key and its database role are gone, so the start can neither renew nor replace its user."""
    role = bao.root.read("database/roles/forge")["data"]
    bao.root.write_data("database/roles/moved", data=role)
    host.configure(sets={"old": {**FORGE_KEY, **url("moved", database.port)}})
    process = host.start()
    host.wait_for_status(READY)
    before = host.settings("db", "old")
    host.stop(process)
    bao.root.delete("database/roles/moved")
    host.configure(sets={"old": {**KEE, **url("moved", database.port)}, "new": FORGE_KEY})
    process = host.start()
    host.wait_for_status(READY)
    assert host.settings("kv", "old") == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert host.settings("db", "old") == before
    assert host.settings("kv", "new") == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert NO_KEE in host.log()
    assert process.poll() is None


def test_set_that_fails_later_does_not_hold_up_the_others(host: Host, bao: Bao) -> None:
    broken = {"FORGE_OTHER": {"kv": "secret/forge", "key": "other"}}
    host.configure(sets={"broken": broken, SET: FORGE_KEY})
    host.start()
    host.wait_for_status(READY)
    bao.put("forge", secret_key="k-e-y-2")
    host.wait_for_setting("FORGE_SECRET_KEY", "k-e-y-2")
    assert host.settings(of="broken") == {"FORGE_OTHER": "x"}


def test_database_path_that_fails_later_does_not_hold_up_the_others(host: Host, bao: Bao, database: Postgres) -> None:
    """After a new login all users are made anew: `afirst`, whose role is gone by then, comes first."""
    role = bao.root.read("database/roles/forge")["data"]
    bao.root.write_data("database/roles/afirst", data=role)
    host.configure(sets={"broken": url("afirst", database.port), SET: {**FORGE_KEY, **url("forge", database.port)}})
    host.start()
    host.wait_for_status(READY)
    first, broken = host.settings("db"), host.settings("db", "broken")
    bao.root.delete("database/roles/afirst")
    bao.root.auth.token.revoke_accessor(host.accessor())
    deadline = time.monotonic() + 10
    while host.settings("db") == first:
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.05)
    assert connect(host).startswith("v-")
    assert host.settings("db", "broken") == broken


def test_token_is_renewed(host: Host, bao: Bao) -> None:
    host.put_credential(bao.role("host-short-period", token_period="2s"))
    host.start()
    host.wait_for_status(READY)
    accessor = host.accessor()
    time.sleep(3)
    assert host.accessor() == accessor


def test_revoked_token_is_replaced_with_new_database_user(host: Host, bao: Bao, database: Postgres) -> None:
    host.configure({**FORGE_KEY, **url("forge", database.port)})
    host.start()
    host.wait_for_status(READY)
    user = connect(host)
    bao.root.auth.token.revoke_accessor(host.accessor())
    deadline = time.monotonic() + 10
    while user in host.settings("db")["FORGE_DATABASE_URL"]:
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.05)
    assert connect(host) != user


def test_lease_near_its_end_is_replaced_in_time(host: Host, database: Postgres) -> None:
    """TTL 3 s, 6 s at most: what db.json says works at every moment, and a change comes early.

    Early enough that the old user lives on for a moment: pools have to move. Vault rounds to whole seconds, so the
    third renewal, after 3.15 s at the earliest, may still seem worth keeping: the fourth comes within 4.85 s.
    """
    host.configure(url("short", database.port))
    host.start()
    host.wait_for_status(READY)
    started = time.monotonic()
    first = connect(host)
    before = host.settings("db")["FORGE_DATABASE_URL"]
    while connect(host) == first:
        assert time.monotonic() - started < 5.4, host.log()
        time.sleep(0.1)
    assert connect(host, before) == first
    assert time.monotonic() - started > 2, "renewed at least once before"


def test_sealed_at_start_then_ready(host: Host, bao: Bao) -> None:
    bao.seal()
    process = host.start()
    sealed = f"Vault at {bao.address} is sealed; unseal it, the agent goes on by itself"
    host.wait_for_status(f"STATUS={sealed}")
    time.sleep(2.5)
    assert READY not in host.listen()
    assert process.poll() is None
    bao.unseal()
    host.wait_for_status(READY)
    assert host.settings() == {"FORGE_SECRET_KEY": "k-e-y-1"}
    assert host.log() == [sealed, "wrote set1/kv.json: FORGE_SECRET_KEY", "all is well again"]


def test_sealed_later_keeps_the_files(host: Host, bao: Bao) -> None:
    host.start()
    host.wait_for_status(READY)
    bao.seal()
    sealed = f"Vault at {bao.address} is sealed; unseal it, the agent goes on by itself"
    host.wait_for_status(f"STATUS={sealed}")
    time.sleep(1.5)
    assert host.settings() == {"FORGE_SECRET_KEY": "k-e-y-1"}
    bao.unseal()
    bao.put("forge", secret_key="k-e-y-3")
    host.wait_for_setting("FORGE_SECRET_KEY", "k-e-y-3")
    assert [line for line in host.listen() if line.startswith("STATUS=")] == [
        "STATUS=ok, 1 settings",
        f"STATUS={sealed}",
        "STATUS=ok, 1 settings",
    ]
    assert host.log().count(sealed) == 1


def test_key_that_goes_missing_later_keeps_the_file(host: Host, bao: Bao, database: Postgres) -> None:
    """And what is wrong with one setting does not keep the others from being renewed."""
    host.configure({**FORGE_KEY, **url("short", database.port)})
    host.start()
    host.wait_for_status(READY)
    bao.put("forge", other="x")
    missing = (
        "secret/forge has no key 'secret_key' (for FORGE_SECRET_KEY), only: other; "
        "add it: vault kv patch secret/forge secret_key=..."
    )
    host.wait_for_status(f"STATUS={missing}")
    first = connect(host)
    assert host.settings() == {"FORGE_SECRET_KEY": "k-e-y-1"}
    deadline = time.monotonic() + 12
    while connect(host) == first:
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.2)
    assert host.log().count(missing) == 1


REFUSED = (
    "Vault refused the AppRole login (invalid role or secret ID); "
    "enrol this host again: ansible-playbook playbooks/deploy.yml -e vault_agent_enroll=true"
)


def test_refused_identity_is_told_and_waits_for_another_one(host: Host, bao: Bao) -> None:
    good = bao.role("host-refused", token_policies=["forge"])
    host.put_credential({**good, "secret_id": "hidden"})
    process = host.start()
    told = f"{REFUSED}; the next attempt is in 20 min, or now: systemctl restart bareforge-agent"
    host.wait_for_status(f"STATUS={told}")
    time.sleep(1.5)
    assert process.poll() is None
    assert host.log() == [told]
    assert READY not in host.listen()
    host.stop(process)
    host.put_credential(good)
    host.start()
    host.wait_for_status(READY)


def test_refused_login_is_not_tried_again_before_vault_has_forgotten_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    tried: list[float] = []

    def refuse(_vault: Any, _credential: Any) -> None:
        tried.append(clock[0])
        raise EnrolmentError("refused")

    monkeypatch.setattr(Vault, "login", refuse)
    monkeypatch.setattr(keeper.time, "monotonic", lambda: clock[0])
    credential, stop = Credential("role", "id"), Stop.__new__(Stop)
    kept = keeper.Keeper(read_config(host.config_file), credential, host.runtime, stop, log=lambda _: None)
    for moment in (1000.0, 1005.0, 1000.0 + 15 * 60, 1000.0 + 20 * 60, 2300.0):
        clock[0] = moment
        with pytest.raises(UnavailableError) as refusal:
            kept._log_in()
        assert str(refusal.value).startswith("refused; the next attempt is in 20 min")
    assert tried == [1000.0, 2200.0]


def test_needs_its_runtime_directory(host: Host) -> None:
    done = host.agent("run", RUNTIME_DIRECTORY="")
    assert (done.returncode, done.stderr) == (
        2,
        "bareforge-agent: RUNTIME_DIRECTORY is not set; start it by its unit: systemctl start bareforge-agent\n",
    )


def test_state_file_holds_what_a_restart_needs(host: Host) -> None:
    host.start()
    host.wait_for_status(READY)
    state = json.loads((host.runtime / "state.json").read_text())
    assert sorted(state) == ["address", "databases", "former", "retired", "role_id", "secret_id"]
