from pathlib import Path

import numpy as np
import pytest

from aula.core.errors import CalibrationError
from aula.models.sentences import cross_accuracy, own_labelled, read_labelled, read_sentences


def test_own_examples_are_labelled_and_many() -> None:
    rows = own_labelled()
    assert len({label for label, _ in rows}) == 6
    assert len(rows) > 100


def test_files_are_read_and_lines_at_fault_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{'ab'[n % 2]}\tsentence {n}\n" for n in range(20)), encoding="utf-8")
    assert read_labelled(path)[:2] == [("a", "sentence 0"), ("b", "sentence 1")]
    path.write_text("a\tone\nb two\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"line 2 of rows\.tsv"):
        read_labelled(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_sentences(tmp_path)
    path.write_text("one\n\n  \ntwo\n", encoding="utf-8")
    assert read_sentences(path) == ["one", "two"]


def test_accuracy_is_what_a_head_gets_right_on_the_other_half() -> None:
    labels = ["x", "y"] * 20
    telling = np.array([[1, 0], [0, 1]] * 20, dtype=np.float32)
    assert cross_accuracy(telling, labels) == 1.0
    silent = np.ones((40, 2), dtype=np.float32)
    assert cross_accuracy(silent, labels) == pytest.approx(0.5)
