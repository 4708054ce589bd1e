"""What a probe may say of the secrets."""

from pathlib import Path

import pytest
from bareforge_runtime.agent_status import file_of, secrets_status


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"well": true, "text": "ok, 3 settings"}', "ok"),
        ('{"well": false, "text": "Vault is sealed"}', "trouble"),
        ('{"well": 1}', "trouble"),
        ("{}", "unknown"),
        ("[]", "unknown"),
        ("{", "unknown"),
        (None, "unknown"),
    ],
)
def test_one_word(content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = tmp_path / "agent/set1"
    monkeypatch.setenv("BAREFORGE_SECRETS", str(secrets))
    if content is not None:
        (tmp_path / "agent-status").mkdir()
        file_of(secrets).write_text(content)
    assert secrets_status() == expected


def test_without_secrets_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAREFORGE_SECRETS", raising=False)
    assert secrets_status() == "none"


def test_it_is_where_the_unit_of_the_agent_has_it() -> None:
    assert file_of(Path("/run/bareforge-agent/0123456789ab")) == Path("/run/bareforge-agent-status/status.json")
    unit = Path(__file__).parents[2] / "roles/vault_agent/templates/bareforge-agent.service.j2"
    assert "RuntimeDirectory=bareforge-agent bareforge-agent-status\n" in unit.read_text()
