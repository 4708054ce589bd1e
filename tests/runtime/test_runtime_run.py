"""`run`: a module with the secrets in its own environment (migrations)."""

from pathlib import Path

from tests.runtime.conftest import runtime, write_secrets

AGAIN = "fix what the lines above name and run it again"


def test_runs_with_arguments_and_secrets(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, sys\n"
        "assert __name__ == '__main__'\n"
        "assert os.environ['APP_KEY'] == 'hidden-value'\n"
        "assert b'hidden-value' not in open('/proc/self/environ', 'rb').read()\n"
        "print(sys.argv[1:], os.environ['APP_KEY'])\n"
    )
    directory = write_secrets(tmp_path / "secrets", kv={"APP_KEY": "hidden-value"})
    done = runtime(
        "run", "--chdir", str(tmp_path), "job", "upgrade", "--sql", "head",
        cwd=Path("/"), BAREFORGE_SECRETS=str(directory),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "['upgrade', '--sql', 'head'] ***\n"), done.stderr


def test_failure_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import os\nraise ValueError('no table ' + os.environ['APP_KEY'])\n")
    directory = write_secrets(tmp_path / "secrets", kv={"APP_KEY": "hidden-value"})
    done = runtime("run", "job", cwd=tmp_path, BAREFORGE_SECRETS=str(directory))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == f"bareforge-runtime: job failed: no table ***; {AGAIN}"


def test_exit_code_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    assert runtime("run", "job", "0", cwd=tmp_path).returncode == 0
    done = runtime("run", "job", "5", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"bareforge-runtime: job ended with exit code 5; {AGAIN}\n"


def test_exit_text_is_shown(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("raise SystemExit('cannot find the revision')\n")
    done = runtime("run", "job", cwd=tmp_path)
    assert done.stderr == (
        f"cannot find the revision\nbareforge-runtime: job ended with exit code 1 (cannot find the revision); {AGAIN}\n"
    )


def test_module_missing(tmp_path: Path) -> None:
    done = runtime("run", "absent", cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == (f"bareforge-runtime: absent failed: No module named absent; {AGAIN}")


def test_secrets_missing(tmp_path: Path) -> None:
    done = runtime("run", "json.tool", cwd=tmp_path, BAREFORGE_SECRETS="/nowhere")
    assert (done.returncode, done.stderr) == (
        1,
        "bareforge-runtime: the secrets directory /nowhere does not exist; "
        "is the agent running? see: journalctl -u bareforge-agent\n",
    )
