import tomllib
from pathlib import Path

from forge_app import __version__


def test_the_package_and_its_metadata_name_the_same_version() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "app/pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
