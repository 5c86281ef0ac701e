"""What English says anyway: counts beside the weights, and their mixture with a course's."""

import math
from pathlib import Path

import numpy as np
import pytest

from aula.core.errors import CheckpointError
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_beam import BeamOptions, WordScores
from aula.models.ctc_language import LANGUAGE, Counted, Mixture, read_language
from aula.models.ngrams import END, WeightedSentences, estimate
from training.recogniser import language

SENTENCES = [text.split() for text in ("the force acts", "the force is a push", "the mass is small", "a mass acts")]


def _written(folder: Path, least_words: int = 1, least_pairs: int = 1, order: int = 2) -> Checkpoint:
    language.write(folder / LANGUAGE, SENTENCES, least_words, least_pairs, order)
    return Checkpoint(folder)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_is_written_says_what_was_counted(tmp_path: Path, order: int) -> None:
    read = read_language(_written(tmp_path, order=order))
    assert read is not None
    counted = estimate([WeightedSentences(SENTENCES)], order=order)
    assert read.order == order
    for word in (*counted.vocabulary, END):
        for history in ((), ("the",), ("the", "force"), ("<s>",), ("never",)):
            assert read.probability(word, history) == pytest.approx(counted.probability(word, history), rel=1e-6)


def test_rare_words_are_not_known_and_part_their_neighbours(tmp_path: Path) -> None:
    read = read_language(_written(tmp_path, least_words=2))
    assert read is not None
    assert read.probability("push") == 0.0
    assert read.probability("force", ("the",)) > read.probability("acts", ("the",))
    shares = [read.probability(word, ("a",)) for word in ("the", "force", "acts", "mass", "is", "a", END)]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) == read.probability("mass", ("a",)), "'a push' was left out"


def test_the_likeliest_word_of_a_beginning(tmp_path: Path) -> None:
    read = read_language(_written(tmp_path))
    assert read is not None
    assert read.likeliest("m") == read.likeliest("mass") == read.probability("mass")
    assert read.likeliest("") >= read.likeliest("a") == max(read.probability("a"), read.probability("acts"))
    assert read.likeliest("xylo") == 0.0


def test_a_mixture_knows_the_words_of_both() -> None:
    course = Counted(estimate([WeightedSentences([["torque", "turns"]])]))
    general = Counted(estimate([WeightedSentences(SENTENCES)]))
    both = Mixture(course, general, 0.6)
    assert both.probability("torque") == pytest.approx(0.6 * course.probability("torque"))
    assert both.probability("mass", ("the",)) == pytest.approx(0.4 * general.probability("mass", ("the",)))
    assert both.likeliest("t") == max(0.6 * course.likeliest("t"), 0.4 * general.likeliest("t"))
    words = ({*course._words} | {*general._words}) - {END}
    assert sum(map(both.probability, words)) + both.probability(END) == pytest.approx(1)


def test_the_search_adds_weighed_logarithms() -> None:
    options = BeamOptions(weight=0.5, reward=0.25, unknown=-7.0)
    model = Counted(estimate([WeightedSentences(SENTENCES)]))
    scores = WordScores(model, options)
    for _ in range(2):  # asked, and remembered
        assert scores.whole("force", ("the",)) == pytest.approx(
            0.5 * math.log(model.probability("force", ("the",))) + 0.25
        )
        assert scores.whole("never", ()) == pytest.approx(0.5 * -7.0 + 0.25)
        assert scores.beginning("forc") == pytest.approx(0.5 * math.log(model.probability("force")) + 0.25)
        assert scores.beginning("xylo") == pytest.approx(0.5 * -7.0 + 0.25)


def test_a_recogniser_without_counts_has_none(tmp_path: Path) -> None:
    assert read_language(Checkpoint(tmp_path)) is None


def test_what_is_no_language_is_said(tmp_path: Path) -> None:
    (tmp_path / LANGUAGE).write_bytes(b"PK no archive")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_language(Checkpoint(tmp_path))
    np.savez(tmp_path / LANGUAGE, words=np.zeros(0, np.uint8))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_language(Checkpoint(tmp_path))
    words = np.frombuffer(b"</s>\na", np.uint8)
    np.savez(tmp_path / LANGUAGE, words=words, codes=np.array([3, 2]), counts=np.ones(2), order=np.array(2))
    with pytest.raises(CheckpointError, match="no sorted counts"):
        read_language(Checkpoint(tmp_path))
