"""Reading the agent's files into the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bareforge_runtime import secrets

from tests.runtime.conftest import environment, write_secrets


def test_both_files_in_one(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "s", kv={"A": "1"}, db={"B": "2"})
    assert secrets.read(directory) == {"A": "1", "B": "2"}


def test_files_may_be_absent(tmp_path: Path) -> None:
    assert secrets.read(write_secrets(tmp_path / "s")) == {}
    assert secrets.read(write_secrets(tmp_path / "s", db={"B": "2"})) == {"B": "2"}


def test_other_files_are_not_read(tmp_path: Path) -> None:
    assert secrets.read(write_secrets(tmp_path / "s", state="not JSON", kv={"A": "1"})) == {"A": "1"}


CURE = "restart the agent, which writes it: systemctl restart bareforge-agent"


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ("{", "{file} is not a flat JSON object of strings; " + CURE),
        ('["hidden"]', "{file} is not a flat JSON object of strings; " + CURE),
        ({"A": {"x": "hidden"}}, "{file} is not a flat JSON object of strings: see the setting A; " + CURE),
        ({"A": 7}, "{file} is not a flat JSON object of strings: see the setting A; " + CURE),
        (
            {"A=B": "hidden"},
            "{file} has a setting that cannot be an environment variable: 'A=B'; "
            "correct it in the agent's configuration or in Vault",
        ),
        (
            {"A": "hid\0den"},
            "{file} has a setting that cannot be an environment variable: 'A'; "
            "correct it in the agent's configuration or in Vault",
        ),
    ],
)
def test_not_a_flat_object(tmp_path: Path, kv: object, message: str) -> None:
    directory = write_secrets(tmp_path / "s", kv=kv)
    with pytest.raises(secrets.SecretsError) as caught:
        secrets.read(directory)
    assert str(caught.value) == message.format(file=directory / "kv.json")


def test_directory_missing(tmp_path: Path) -> None:
    with pytest.raises(secrets.SecretsError) as caught:
        secrets.read(tmp_path / "gone")
    assert str(caught.value) == (
        f"the secrets directory {tmp_path / 'gone'} does not exist; "
        "is the agent running? see: journalctl -u bareforge-agent"
    )


def test_declared_twice(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "s", kv={"A": "1"}, db={"A": "2"})
    with pytest.raises(secrets.SecretsError) as caught:
        secrets.read(directory)
    assert str(caught.value) == (
        f"the setting A is in both kv.json and db.json of {directory}; declare it once in the agent's configuration"
    )


def test_unreadable_for_another_user(tmp_path: Path) -> None:
    """A process of another user is refused by the system, which also holds when the tests run as root."""
    directory = write_secrets(tmp_path / "s", kv={"A": "hidden"})
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    directory.chmod(0o700)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom bareforge_runtime import secrets\n"
        "os.getuid() or os.setresuid(65534, 65534, 65534)\n"
        "try:\n    secrets.read(Path(sys.argv[1]))\nexcept secrets.SecretsError as error:\n    print(error)\n"
    )
    if os.getuid() != 0:
        directory.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    directory.chmod(0o700)
    assert done.stdout == (
        f"cannot read {directory}: permission denied; "
        f"is this user in the group that the agent writes for? see: ls -ld {directory}\n"
    ), done.stderr


def load(*program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a process of its own, since they change its environment."""
    source = "import os\nfrom bareforge_runtime import secrets\n" + "\n".join(program)
    return subprocess.run(
        [sys.executable, "-c", source],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )


def test_loading_does_not_show_in_proc_environ(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "s", kv={"APP_KEY": "hidden-value"})
    done = load(
        "before = open('/proc/self/environ', 'rb').read()",
        "assert b'BAREFORGE_SECRETS' in before",
        "loaded = secrets.load_into_environment()",
        "assert loaded == {'APP_KEY': 'hidden-value'}, loaded",
        "assert os.environ['APP_KEY'] == 'hidden-value'",
        "assert open('/proc/self/environ', 'rb').read() == before",
        BAREFORGE_SECRETS=str(directory),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("settings", [{}, {"BAREFORGE_SECRETS": ""}])
def test_no_directory_no_secrets(settings: dict[str, str]) -> None:
    done = load("assert secrets.load_into_environment() == {}", **settings)
    assert done.returncode == 0, done.stderr


def test_setting_in_environment_with_another_value(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "s", kv={"APP_KEY": "hidden-value"})
    done = load("secrets.load_into_environment()", BAREFORGE_SECRETS=str(directory), APP_KEY="other")
    assert done.stderr.splitlines()[-1] == (
        "bareforge_runtime.secrets.SecretsError: the setting APP_KEY is a secret and also an environment "
        "variable with another value; remove it from the environment of the application"
    )
    assert "hidden-value" not in done.stderr


def test_loading_again_takes_new_values(tmp_path: Path) -> None:
    directory = write_secrets(tmp_path / "s", kv={"APP_KEY": "old"})
    done = load(
        "secrets.load_into_environment()",
        f"open({str(directory / 'kv.json')!r}, 'w').write('{{\"APP_KEY\": \"new\"}}')",
        "secrets.load_into_environment()",
        "assert os.environ['APP_KEY'] == 'new'",
        BAREFORGE_SECRETS=str(directory),
    )
    assert done.returncode == 0, done.stderr
