"""From a training's result to what ships: the folder, confidence, the card and the table; no PyTorch, no voices."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("soxr")

from aula.models.ctc_beam import Word
from aula.models.ctc_config import CtcConfig, load_weights
from tests.models.ctc_small_model import SMALL, small
from training.recogniser import calibrate, card, figures, package, questions
from training.recogniser.calibrate import Tried
from training.recogniser.ship import Row, table

COST = figures.Cost(0.0312, 21.0, 27.0, 140.0, 190.0, "openvino with 1 threads")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """What training leaves: halves, in two parts."""
    from safetensors.numpy import save_file

    checkpoint = small(tmp_path / "random")
    weights = load_weights(checkpoint, CtcConfig.from_checkpoint(checkpoint))
    folder = tmp_path / "result"
    folder.mkdir()
    halves: dict[str, NDArray[Any]] = {
        name: array if name in ("mean", "scale") else array.astype(np.float16) for name, array in weights.items()
    }
    names = list(halves)
    for part, chosen in enumerate((names[:20], names[20:])):
        save_file({name: halves[name] for name in chosen}, folder / f"weights-{part}.safetensors")
    notes = {"model": {**SMALL, "dropout": 0.1}, "step": 7000, "seconds": 810.0, "bank_hours": 41.25}
    (folder / "config.json").write_text(json.dumps(notes))
    (folder / "tokens.json").write_bytes((checkpoint.folder / "tokens.json").read_bytes())
    return folder


def test_a_result_becomes_a_checkpoint_of_a_byte_a_weight(result: Path, tmp_path: Path) -> None:
    checkpoint = package.package(result, tmp_path / "out", result / "tokens.json")
    exact = package.package(result, tmp_path / "exact", result / "tokens.json", rounded=False)
    config = CtcConfig.from_checkpoint(checkpoint)
    near, wanted = load_weights(checkpoint, config), load_weights(exact, config)
    for name, array in wanted.items():
        room = np.abs(array).max() / 127 if array.ndim == 2 else np.abs(array).max() * 2**-11
        np.testing.assert_allclose(near[name], array, atol=float(room), err_msg=name)
    assert any(not np.array_equal(near[name], wanted[name]) for name in wanted)
    raw = checkpoint.read_json("config.json")
    assert "dropout" not in raw["model"]
    assert raw["trained"]["step"] == 7000


def test_what_is_too_large_is_not_shipped(result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit, match="1000"):
        package.package(result, tmp_path / "out", result / "tokens.json")


def words(*shares: float) -> list[Word]:
    return [Word("word", place, place + 1, share) for place, share in enumerate(shares)]


def test_confidence_is_fitted_on_what_was_right() -> None:
    rng = np.random.default_rng(1)
    right = [Tried("word word", words(*rng.uniform(0.8, 1.0, 2))) for _ in range(60)]
    wrong = [Tried("other thing", words(*rng.uniform(0.2, 0.7, 2))) for _ in range(40)]
    calibration = calibrate.fit([*right, *wrong, Tried("unheard", [])])
    kept, spoilt = calibrate.quality([*right, *wrong, Tried("", words(0.3))], calibration, 0.5)
    assert kept > 0.95
    assert spoilt < 0.05
    with pytest.raises(ValueError, match="60 of 60"):
        calibrate.fit(right)


def test_nothing_said_is_never_usable() -> None:
    assert not Tried("", words(0.9)).usable
    assert Tried("word word word", words(0.9, 0.9)).usable
    assert not Tried("word word", words(0.9)).usable


def measured(**changes: Any) -> card.Measured:
    report: list[dict[str, Any]] = [
        {"chunk": 8, "group": "speechocean762", "wer": 0.3125, "words": 900, "clips": 120},
        {"chunk": 16, "group": "speechocean762", "wer": 0.2875, "words": 900, "clips": 120},
        {"examples": []},
    ]
    shipped = {
        "speechocean762": (0.321, 100), "speechocean762, children": (0.41, 50),
        "speechocean762, children, f": (0.4, 25),
        "flite:rms": (0.08, 34), "ljspeech": (0.5, 20),
    }  # fmt: skip
    values: dict[str, Any] = {
        "trained": {"step": 7000, "seconds": 810.0, "bank_hours": 41.25}, "parameters": 14_477_600, "chunk": 8,
        "bytes": 14_900_000, "greedy": card.greedy_rates(report), "whole": {"speechocean762": (0.318, 100)},
        "shipped": shipped, "in_course": {"flite:rms": (0.05, 34)}, "found": 0.91, "questions": 100, "kept": 0.93,
        "spoilt": 0.12, "least": 0.5, "cost": COST,
    }  # fmt: skip
    return card.Measured(**{**values, **changes})


def test_the_card_tells_what_was_measured() -> None:
    text = card.written(measured())
    for told in ("14.5 million", "14.9 MB", "41.2 hours", "13.5 minutes", "7000 steps", "| 0.410 | 50 |", "91%",
                 "0.312", "0.287", "320 ms | 640 ms", "93%", "12%", "21 ms", "140 MB", "children, female"):  # fmt: skip
        assert told in text, told
    other = card.written(measured(found=0.5, chunk=16))
    assert "50%" in other
    assert "640 ms, and CTC" in other


def test_the_table_says_what_is_missed() -> None:
    rows = {row.name: row for row in table(measured(), drop=0.4)}
    assert rows["WER speechocean762, speakers not in training"].reached
    assert not rows["WER speechocean762, children"].reached
    assert rows["WER flite:rms, never trained on"].reached
    assert rows["right passage among five"].reached
    assert "MISSED" in str(Row("x", 0.4, 0.5, at_least=True))
    assert all(row.reached for row in table(measured(), 0.4) if "children" not in row.name)


def test_the_hundred_questions_are_of_the_course() -> None:
    rows = questions.questions()
    assert len(rows) == len({row["question"] for row in rows}) == 100
    course = questions.COURSES / "mechanics-en"
    for row in rows:
        assert f"## {row['heading']}\n" in (course / row["document"]).read_text("utf-8")
        assert row["question"].replace("'", "").replace(" ", "").isalpha()
    assert len(figures.course_request().vocabulary) > 500


def test_questions_that_were_spoken_elsewhere_are_taken_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.recogniser import shards

    monkeypatch.setattr(questions, "questions", lambda: [{"question": "what is it"}, {"question": "why"}])
    clips = [shards.Clip("why", "flite:rms", 3), shards.Clip("what is it", "rhvoice:clb", 2)]
    shards.write(tmp_path, "q", clips, [np.array([1, 2, 3], np.int16), np.array([8192, -8192], np.int16)])
    spoken = questions.spoken_before(tmp_path)
    assert [one.groups for one in spoken] == [("rhvoice:clb",), ("flite:rms",)]
    np.testing.assert_array_equal(spoken[0].sound, [0.25, -0.25])
    monkeypatch.setattr(questions, "questions", lambda: [{"question": "who"}])
    with pytest.raises(SystemExit, match="'who'"):
        questions.spoken_before(tmp_path)
