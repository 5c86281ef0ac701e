"""`aula key` as it is typed."""

import json
from pathlib import Path

import pytest

from tests.cli.running import Run


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the home that the session shares."""
    monkeypatch.setenv("AULA_SERVE_KEYS", str(tmp_path / "keys.json"))


def test_a_key_is_made_listed_and_revoked(run: Run) -> None:
    made = run("key", "create", "class-5b", "--rate", "5", "--ability", "ask", "--note", "tablets")
    assert made.code == 0
    secret = made.out.strip()
    assert secret.startswith("sk-aula-")
    assert "not shown again" in made.err
    name = secret.split("-")[2]
    listed = run("key", "list")
    assert "class-5b" in listed.out
    assert "5/s, 10 at once" in listed.out
    assert secret not in listed.out
    assert run("key", "revoke", name).out == f"Revoked {name} of class-5b.\n"
    rows = {row["key"]: row for row in json.loads(run("key", "list", "--json").out)["keys"]}
    assert rows[name]["revoked"] is not None
    assert "secret" not in rows[name]


def test_a_name_that_there_is_not_is_told(run: Run) -> None:
    ended = run("key", "revoke", "nobody")
    assert ended.code == 3
    assert "aula key list" in ended.err
