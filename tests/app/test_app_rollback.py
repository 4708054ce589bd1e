"""The rollback contract, with later revisions of the application in a copy of its package."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from forge_app.migrate import blocks, head

from tests.app.service import SECRET_KEY

ROOT = Path(__file__).parents[2]

REVISION = """
revision = "{number:04}"
down_revision = "{before:04}"
branch_labels = None
depends_on = None
{says}

def upgrade() -> None:
    pass
"""
SAYS = {2: "", 3: "breaks_older = True", 4: "breaks_older = False", 5: "breaks_older = True"}

ASK = """
import sys
from forge_app.migrate import blocks
for line in sys.stdin:
    print(repr(blocks(line.strip())), flush=True)
"""


class Newer:
    """A release with the revisions 0002 to 0005, of which 0003 and 0005 are contract steps."""

    def __init__(self, source: Path, url: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{source}:{ROOT}/runtime/src",
            "FORGE_ENVIRONMENT": "development",
            "FORGE_SECRET_KEY": SECRET_KEY,
            "FORGE_DATABASE_URL": url,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def blocks(self, older_head: str) -> str:
        self.process.stdin.write(f"{older_head}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Close and return what it wrote to standard error."""
        return self.process.communicate(timeout=30)[1]


@pytest.fixture(scope="module")
def newer_source(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("newer") / "src"
    shutil.copytree(ROOT / "app/src", source, ignore=shutil.ignore_patterns("__pycache__"))
    for number, says in SAYS.items():
        text = REVISION.format(number=number, before=number - 1, says=says)
        (source / f"forge_app/migrations/versions/v{number:04}_later.py").write_text(text)
    return source


@pytest.fixture
async def database(server, empty_database) -> str:
    """A database at revision 0001 with the marker of development."""
    await server.execute(f"ALTER DATABASE {empty_database} SET forge.environment = 'development'")
    await server.execute("CREATE TABLE alembic_version (version_num varchar(32))", empty_database)
    await server.execute("INSERT INTO alembic_version VALUES ('0001')", empty_database)
    return empty_database


async def test_the_oldest_contract_step_that_older_code_does_not_know_blocks_it(server, database, newer_source):
    cases = {
        # revision of the database, head of the older code
        ("0001", "0001"): "",
        ("0002", "0001"): "",
        ("0003", "0001"): "0003",
        ("0005", "0001"): "0003",
        ("0003", "0002"): "0003",
        ("0004", "0003"): "",
        ("0005", "0003"): "0005",
        ("0005", "0004"): "0005",
        ("0005", "0005"): "",
        # the database is before what the older code expects
        ("0001", "0003"): "",
        ("0003", "0005"): "",
        # not to be judged: this code knows only one of the two
        ("0004", "0000"): "0004",
        ("0004", ""): "0004",
        ("0004", "head"): "0004",
        ("0004", "000"): "0004",
        ("0009", "0001"): "0009",
        ("0009", "0008"): "0009",
        # nothing to be judged: the older code expects just what is there
        ("0009", "0009"): "",
    }
    newer = Newer(newer_source, server.url(database))
    answers = {}
    try:
        for present, older_head in cases:
            await server.execute(f"UPDATE alembic_version SET version_num = '{present}'", database)
            answers[present, older_head] = newer.blocks(older_head)
    finally:
        said = newer.end()
    assert answers == {case: repr(expected) for case, expected in cases.items()}, said
    assert said == ""


async def test_a_database_that_was_never_migrated_is_before_everything(server, database, newer_source):
    await server.execute("DROP TABLE alembic_version", database)
    newer = Newer(newer_source, server.url(database))
    try:
        answers = newer.blocks("0001"), newer.blocks("9999")
    finally:
        said = newer.end()
    assert answers == ("''", "'base'"), said
    assert said == ""


async def test_a_database_of_another_environment_is_not_judged(server, database, newer_source):
    await server.execute(f"ALTER DATABASE {database} SET forge.environment = 'production'")
    newer = Newer(newer_source, server.url(database))
    try:
        answer = newer.blocks("0001")
    finally:
        said = newer.end()
    assert answer == ""
    assert said.splitlines()[-1] == (
        "forge_app.database.DatabaseStartError: FORGE_ENVIRONMENT is development but the database says production; "
        "FORGE_DATABASE_URL points to the wrong server"
    )


def test_the_package_declares_both_functions():
    project = tomllib.loads((ROOT / "app/pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["bareforge"]
    functions = {name: EntryPoint(name, value, "bareforge").load() for name, value in declared.items()}
    assert functions["schema-head"]() == head() == "0001"
    assert functions.keys() == {"schema-head", "schema-blocks"}
    assert functions["schema-blocks"] is blocks
