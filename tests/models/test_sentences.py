from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CalibrationError
from aula.engine.quantize import check_calibration
from aula.models.bert import bert_recipe
from aula.models.checkpoints import Checkpoint
from aula.models.sentences import cross_accuracy, evidence, own_labelled, read_labelled, read_sentences
from tests.models.bert_small_model import CHANGES, SMALL, small, small_sentence_encoder, write, write_vocabulary


def test_own_examples_are_labelled_and_many() -> None:
    rows = own_labelled()
    assert len({label for label, _ in rows}) == 6
    assert len(rows) > 100


def test_files_are_read_and_lines_at_fault_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{'ab'[n % 2]}\tsentence {n}\n" for n in range(100)), encoding="utf-8")
    assert read_labelled(path)[:2] == [("a", "sentence 0"), ("b", "sentence 1")]
    path.write_text("a\tone\nb two\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"line 2 of rows\.tsv"):
        read_labelled(path)
    path.write_text("".join(f"label {n}\tsentence {n}\n" for n in range(30)), encoding="utf-8")
    with pytest.raises(CalibrationError, match="30 sentences of 30 labels"):
        read_labelled(path)
    path.write_text("".join(f"{'ab'[n % 2]}\tsentence {n}\n" for n in range(99)), encoding="utf-8")
    with pytest.raises(CalibrationError, match="99 sentences of 2 labels"):
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


def _labelled(folder: Path, labels: str = "xy") -> Path:
    """The letter that a sentence is made of decides its label."""
    path = folder / "labelled.tsv"
    rows = [f"{labels[n % 2]}\t{' '.join('ab'[n % 2] * (1 + n % 5))}\n" for n in range(100)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def _open(checkpoint: Checkpoint) -> Session:
    import onnx

    path = checkpoint.folder / "graph.onnx"
    onnx.save(bert_recipe(checkpoint, "small").write_graph(), path)
    return open_session("onnxruntime", path, SessionOptions(threads=1))


@pytest.mark.parametrize("kind", ["sentence encoder", "hidden states"])
def test_an_encoder_is_judged_by_a_head_on_its_vectors(tmp_path: Path, kind: str) -> None:
    checkpoint = small(tmp_path) if kind == "hidden states" else small_sentence_encoder(tmp_path, "mean_sqrt_len")
    write_vocabulary(tmp_path)
    calibrating, judging = evidence(checkpoint, labelled=_labelled(tmp_path))
    assert judging is not None
    judge = judging()
    assert (judge.examples, judge.chance) == (100, 0.5)
    assert "aula" not in judge.metric
    with _open(checkpoint) as session:
        assert judge.evaluate(session) == 1.0
    calibration = calibrating()
    assert calibration.source == "labelled.tsv"
    check_calibration(calibration, bert_recipe(checkpoint, "small").write_graph())


def test_a_classifier_is_judged_by_its_own_head(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, "BertForSequenceClassification")
    write_vocabulary(tmp_path)
    assert evidence(checkpoint)[1] is None, "its labels are its own, so nobody else's examples can judge it"
    with _open(checkpoint) as session:
        scores = {}
        for labels in ("xx", "yy", "zz", "xy", "yx"):
            path = _labelled(tmp_path, labels)
            if len(set(labels)) == 1:
                # At least two labels must occur: one row is another's.
                rows = path.read_text().splitlines()
                path.write_text("\n".join([("y" if labels == "xx" else "x") + rows[0][1:], *rows[1:]]))
            judging = evidence(checkpoint, labelled=path)[1]
            assert judging is not None
            scores[labels] = judging().evaluate(session)
    assert sum(scores[labels] for labels in ("xx", "yy", "zz")) == pytest.approx(1, abs=0.1)
    calibrating, _ = evidence(checkpoint, labelled=_labelled(tmp_path))
    check_calibration(calibrating(), bert_recipe(checkpoint, "small").write_graph())


@pytest.mark.parametrize(
    ("variant", "changes", "labels", "named"),
    [
        ("BertForSequenceClassification", {}, "xw", "label 'w'"),
        ("BertForSequenceClassification", {"problem_type": "multi_label_classification"}, "xy", "one label a sentence"),
        ("BertForTokenClassification", {}, "xy", "one label a sentence"),
        ("BertForQuestionAnswering", {}, "xy", "one label a sentence"),
    ],
)
def test_labels_that_cannot_judge_are_refused_at_once(
    tmp_path: Path, variant: str, changes: dict[str, Any], labels: str, named: str
) -> None:
    write(tmp_path / "config.json", {**SMALL, **CHANGES[variant], "architectures": [variant], **changes})
    with pytest.raises(CalibrationError, match=named):
        evidence(Checkpoint(tmp_path), labelled=_labelled(tmp_path, labels))


def test_sentences_to_calibrate_on_may_be_others_than_those_to_judge_by(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    (tmp_path / "plain.txt").write_text("a\nb c\n" * 10, encoding="utf-8")
    calibrating, judging = evidence(checkpoint, calibrate=tmp_path / "plain.txt", labelled=_labelled(tmp_path))
    assert (calibrating().source, len(calibrating().inputs)) == ("plain.txt", 20)
    assert judging is not None
    assert judging().examples == 100
    assert evidence(checkpoint)[0]().source == "aula's intent examples"


@pytest.mark.parametrize("kind", ["sentence encoder", "hidden states"])
def test_the_metric_says_whose_examples_judge(tmp_path: Path, kind: str) -> None:
    checkpoint = small(tmp_path) if kind == "hidden states" else small_sentence_encoder(tmp_path, "mean")
    write_vocabulary(tmp_path)
    judging = evidence(checkpoint)[1]
    assert judging is not None
    judge = judging()
    assert judge.metric.startswith("accuracy of a linear head on ")
    assert judge.metric.endswith("aula's own intent examples")
    counts = Counter(label for label, _ in own_labelled())
    assert judge.chance == max(counts.values()) / counts.total()


def test_another_tokeniser_is_other_evidence(tmp_path: Path) -> None:
    checkpoint = small_sentence_encoder(tmp_path, "mean")
    calibrating, judging = evidence(checkpoint, labelled=_labelled(tmp_path))
    assert judging is not None
    before = calibrating().digest, judging().digest
    assert (calibrating().digest, judging().digest) == before
    pieces = (tmp_path / "vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(pieces.replace("\na\nb\n", "\nb\na\n"), encoding="utf-8")
    after = calibrating().digest, judging().digest
    assert before[0] != after[0]
    assert before[1] != after[1]
