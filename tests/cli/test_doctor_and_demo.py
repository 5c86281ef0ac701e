import json
from pathlib import Path

import pytest

from aula.core.types import Capability
from tests.cli.running import Run

pytestmark = pytest.mark.usefixtures("models")


def test_doctor_tries_every_rung_and_lists_licences(run: Run) -> None:
    ended = run("doctor", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["healthy"]
    assert {rung["capability"] for rung in found["rungs"]} == set(Capability)
    assert all(rung["error"] is None for rung in found["rungs"])
    assert "GPL-3.0-or-later" in {licence["licence"] for licence in found["licences"]}
    assert [engine["name"] for engine in found["engines"]].count("minilm") >= 1
    assert found["targets"][0]["name"] == "cpu"
    tables = run("doctor").out
    for word in ("Machine", "PocketSphinx", "eSpeak NG", "minilm", "openvino", "onnxruntime"):
        assert word.lower() in tables.lower()


def test_demo_answers_three_spoken_questions_and_a_typed_one(run: Run, tmp_path: Path) -> None:
    ended = run("demo", "--json", "--folder", str(tmp_path / "out"))
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["questions"]
    assert len(rows) == 4
    for number, row in enumerate(rows, 1):
        assert row["citations"], row
        assert (tmp_path / "out" / f"answer-{number}.wav").stat().st_size > 44
    assert all(row["timings_ms"]["transcribe"] > 0 for row in rows[:3])


def test_demo_into_a_place_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert run("demo", "--folder", str(tmp_path / "file" / "out")).code == 9
