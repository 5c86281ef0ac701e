"""The prefix beam search against every way through the frames, and what a course changes."""

import gc
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.models.ctc_beam import Alphabet, Beam, BeamOptions, WordScores, best_path
from aula.models.ctc_language import Counted
from aula.models.ngrams import WeightedSentences, estimate

LETTERS = Alphabet(("", "a", "b", " "))
PIECES = Alphabet(("", "\u2581mass", "\u2581mas", "s", "\u2581moss", "\u2581force", "\u2581the"))
WIDE = BeamOptions(width=500, depth=math.inf, branches=100, least=-math.inf)


def _logarithms(shares: NDArray[np.float64]) -> Float32:
    logarithms: Float32 = np.log(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return logarithms


def _frames(alphabet: Alphabet, *frames: dict[str, float]) -> Float32:
    """Probabilities by token, "" is the blank; what is left is shared by all."""
    rows = []
    for frame in frames:
        row = np.full(len(alphabet.tokens), max(1e-4, (1 - sum(frame.values())) / len(alphabet.tokens)))
        for token, share in frame.items():
            row[alphabet.tokens.index(token)] += share
        rows.append(row)
    return _logarithms(np.array(rows))


def _collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def _every_way(logarithms: Float32) -> dict[tuple[int, ...], float]:
    found: defaultdict[tuple[int, ...], float] = defaultdict(float)
    shares = np.exp(logarithms.astype(np.float64))
    for path in itertools.product(range(shares.shape[1]), repeat=len(shares)):
        found[_collapsed(path)] += float(np.prod([shares[frame, token] for frame, token in enumerate(path)]))
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0.2, 3))
def test_the_text_is_the_likeliest_of_all_ways(frames: int, seed: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    logarithms = _logarithms(np.exp(generator.normal(0, spread, (frames, 4))))
    ways = _every_way(logarithms)
    beam = Beam(LETTERS, options=WIDE)
    beam.feed(logarithms)
    (best,) = [prefix for prefix in beam._kept if prefix.heard == max(one.heard for one in beam._kept)][:1]
    assert math.exp(best.heard) == pytest.approx(max(ways.values()), rel=1e-4)
    assert ways[tuple(beam._tokens(best))] == pytest.approx(max(ways.values()), rel=1e-4)
    assert sum(math.exp(prefix.heard) for prefix in beam._kept) == pytest.approx(1, rel=1e-3), "no way is lost or twice"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_however_the_sound_is_cut_the_text_is_the_same(seed: int, cuts: list[int]) -> None:
    logarithms = _logarithms(np.exp(np.random.default_rng(seed).normal(0, 2, (sum(cuts), 4))))
    whole, parts = Beam(LETTERS), Beam(LETTERS)
    whole.feed(logarithms)
    start = 0
    for cut in cuts:
        parts.feed(logarithms[start : start + cut])
        start += cut
    assert parts.text() == whole.text()
    assert parts.words() == whole.words()


def test_the_best_path_holds_tokens_and_leaves_blanks_out() -> None:
    frames = _frames(LETTERS, {"a": 0.9}, {"a": 0.9}, {"": 0.9}, {"a": 0.9}, {" ": 0.9}, {"b": 0.9})
    assert LETTERS.text(best_path(frames, LETTERS)) == "aa b"
    beam = Beam(LETTERS)
    beam.feed(frames)
    assert beam.text() == "aa b"
    assert best_path(frames[:0], LETTERS) == []


def test_words_have_frames_and_how_sure_they_are() -> None:
    beam = Beam(PIECES)
    beam.feed(_frames(PIECES, {"": 0.95}, {"\u2581the": 0.9}, {"": 0.9}, {"\u2581mas": 0.6}, {"s": 0.8}, {"": 0.95}))
    the, mass = beam.words()
    assert (the.text, the.start, mass.text, mass.start, mass.end) == ("the", 1, "mass", 3, 5)
    assert the.confidence > 0.85
    assert 0.6 < mass.confidence < 0.8


def test_a_course_decides_between_words_that_sound_alike() -> None:
    frames = _frames(PIECES, {"\u2581the": 0.9}, {"": 0.9}, {"\u2581moss": 0.5, "\u2581mass": 0.4}, {"": 0.9})
    plain = Beam(PIECES)
    plain.feed(frames)
    assert plain.text() == "the moss"
    options = BeamOptions()
    model = Counted(estimate([WeightedSentences([["the", "mass"], ["the", "force"]])]))
    biased = Beam(PIECES, WordScores(model, options), options)
    biased.feed(frames)
    assert biased.text() == "the mass"


def test_a_course_word_in_pieces_is_not_lost_before_it_is_whole() -> None:
    """ "mas" is no word, but the beginning of one."""
    frames = _frames(PIECES, {"\u2581mas": 0.4, "\u2581moss": 0.5}, {"": 0.9}, {"s": 0.7, "": 0.2}, {"": 0.9})
    options = BeamOptions(width=2)
    model = Counted(estimate([WeightedSentences([["mass"]] * 5 + [["force"]])]))
    beam = Beam(PIECES, WordScores(model, options), options)
    beam.feed(frames)
    assert beam.text() == "mass"


def test_what_the_course_does_not_know_is_heard_all_the_same() -> None:
    model = Counted(estimate([WeightedSentences([["the", "mass"]])]))
    beam = Beam(PIECES, WordScores(model, BeamOptions()))
    beam.feed(_frames(PIECES, {"\u2581the": 0.99}, {"": 0.99}, {"\u2581force": 0.9999}, {"": 0.99}))
    assert beam.text() == "the force"


def test_only_what_all_texts_share_is_stable() -> None:
    beam = Beam(PIECES)
    assert beam.stable() == ""
    beam.feed(_frames(PIECES, {"\u2581the": 0.9999}, {"": 0.9999}, {"\u2581force": 0.9999}, {"": 0.9999}))
    assert beam.stable() == "the"
    beam.feed(_frames(PIECES, {"\u2581mass": 0.5, "\u2581moss": 0.4}, {"": 0.9999}))
    assert beam.stable().split()[0] == "the"
    assert "mass" not in beam.stable()


def test_silence_says_nothing() -> None:
    beam = Beam(PIECES)
    beam.feed(_frames(PIECES, *[{"": 0.9999}] * 20))
    assert (beam.text(), beam.words(), beam.frames) == ("", [], 20)


def test_wav2vec2_parts_words_with_a_stroke() -> None:
    alphabet = Alphabet(("<pad>", "|", "A", "B"), parting="|")
    beam = Beam(alphabet)
    beam.feed(_frames(alphabet, {"A": 0.9}, {"|": 0.9}, {"B": 0.9}))
    assert [word.text for word in beam.words()] == ["A", "B"]


def test_an_utterance_that_is_over_holds_no_memory_until_the_collector_comes() -> None:
    def prefixes() -> int:
        return sum(type(one).__name__ == "_Prefix" for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = prefixes()
        beam = Beam(PIECES)
        beam.feed(_frames(PIECES, *[{"\u2581mass": 0.4, "s": 0.3}] * 20))
        assert prefixes() > before + 20
        del beam
        assert prefixes() == before
    finally:
        gc.enable()
