import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.models.ngrams import END, START, NgramModel, WeightedSentences, estimate

WORDS = st.sampled_from(["force", "mass", "is", "a", "the", "energy"])
SENTENCES = st.lists(st.lists(WORDS, max_size=6), max_size=8)
SETS = st.lists(st.builds(WeightedSentences, SENTENCES, st.floats(0.01, 20)), max_size=3)


def histories(model: NgramModel) -> list[tuple[str, ...]]:
    words = [*sorted(model.vocabulary - {END})[:3], START]
    return [history for length in range(3) for history in itertools.product(words, repeat=length)]


@given(SETS, st.integers(1, 4))
def test_every_conditional_distribution_sums_to_one(sets: list[WeightedSentences], order: int) -> None:
    model = estimate(sets, vocabulary=["extra"], order=order)
    for history in histories(model):
        total = sum(model.probability(word, history) for word in model.vocabulary)
        assert total == pytest.approx(1, abs=1e-6)


@given(SETS)
def test_the_order_of_the_sets_does_not_change_the_text(sets: list[WeightedSentences]) -> None:
    plain = [WeightedSentences(part.sentences, 1.0) for part in sets]
    assert estimate(plain).arpa() == estimate(reversed(plain)).arpa()


def test_arpa_round_trips_through_pocketsphinx(tmp_path: Path) -> None:
    import pocketsphinx

    sentences = [["force", "is", "a", "push"], ["a", "force", "is", "a", "pull"], ["what", "is", "mass"]]
    model = estimate([WeightedSentences(sentences, 2.5)], vocabulary=["energy"])
    path = tmp_path / "model.arpa"
    path.write_text(model.arpa(), encoding="utf-8")
    scale = pocketsphinx.LogMath(1.0001)
    read = pocketsphinx.NGramModel(pocketsphinx.Config(), scale, str(path))
    assert read.size() == 3
    for history in histories(model):
        for word in model.vocabulary:
            # pocketsphinx wants the word first and then its history from near to far; it keeps logarithms in
            # steps of 1e-4, and 16 bits of them for the highest order.
            got = scale.exp(read.prob([word, *reversed(history)]))
            assert got == pytest.approx(model.probability(word, history), rel=2e-3)


def test_seen_beats_unseen_and_weight_counts() -> None:
    sets = [WeightedSentences([["force"]], 5.0), WeightedSentences([["mass"]], 1.0)]
    model = estimate(sets, vocabulary=["energy"])
    first = {word: model.probability(word, [START]) for word in ("force", "mass", "energy")}
    assert first["force"] > first["mass"] > first["energy"] > 0
    assert model.probability("unknown") == 0


def test_perplexity_of_seen_text_is_lower() -> None:
    model = estimate([WeightedSentences([["what", "is", "a", "force"]] * 3)])
    assert model.perplexity(["what", "is", "a", "force"]) < 2 < model.perplexity(["force", "a", "is", "what"])


def test_nothing_but_a_vocabulary_is_uniform() -> None:
    model = estimate([], vocabulary=["a", "b", "c"])
    assert model.probability("a", ["b"]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("sets", "vocabulary", "order"),
    [([], ["two words"], 3), ([], [""], 3), ([WeightedSentences([["a"]], 0.0)], [], 3), ([], [], 0)],
)
def test_misuse_is_refused(sets: list[WeightedSentences], vocabulary: list[str], order: int) -> None:
    with pytest.raises(ValueError, match=r"word|weight"):
        estimate(sets, vocabulary, order)
