"""From a CTC recogniser's probabilities to words: the best path, and a beam search that a course biases.

The search is the prefix beam search of Hannun et al. 2014 (arXiv:1408.2873): a prefix is a text, whatever way through
the frames made it, and carries two probabilities, of ways that end in a blank and of ways that do not. What ranks a
prefix besides is the language model of its words, weighed, and a reward for each word. A word that is not finished yet
is ranked by the likeliest word that begins so (look-ahead), so that course words are not lost before they are whole.

Probabilities come in pieces, as sound does; however they are cut, the result is the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aula.core.types import Float32
from aula.models.ctc_language import Language

WORD_START = "\u2581"
"""Begins the first piece of a word, as SentencePiece writes it."""
MOST_REMEMBERED = 20_000
"""Words and what stands before them whose probability a course's scores remember."""
_NEVER = -math.inf
_LIKELY = math.log(100.0)
"""How much less likely than the best a text is that speaks against nothing any more."""
_SURE_BLANK = math.log(0.999)
"""Over this nothing is said in a frame, and no prefix grows."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What a recogniser writes with. Words begin with pieces that begin with WORD_START, or are parted by a token of
    its own (" ", Wav2Vec2's "|")."""

    tokens: tuple[str, ...]
    blank: int = 0
    parting: str = " "

    def text(self, tokens: Iterable[int]) -> str:
        joined = "".join(self.tokens[token] for token in tokens)
        return " ".join(joined.replace(WORD_START, " ").replace(self.parting, " ").split())


@dataclass(frozen=True, slots=True)
class Word:
    """`start` and `end` are frames: where its first token was surest, and behind where its last was; `confidence` in
    0..1 is the mean, over its tokens, of the highest probability that a frame gave the token."""

    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """`width` prefixes are kept, those less likely than the best by `depth` (natural logarithm) are not; of a frame the
    `branches` likeliest tokens over `least` are tried. `weight` is the language model's, `reward` is for every word,
    `unknown` is the logarithm of the probability of a word that it does not know. Chosen on the dev speakers of the
    recogniser that ships: 0.420 of their words are wrong by the best path, 0.349 by this search."""

    width: int = 48
    depth: float = 14.0
    branches: int = 12
    least: float = math.log(1e-3)
    weight: float = 0.6
    reward: float = 3.0
    unknown: float = -13.0


class WordScores:
    """A language model's probabilities as the search adds them, remembered; and the likeliest word for every
    beginning."""

    def __init__(self, model: Language, options: BeamOptions) -> None:
        self._model, self._options = model, options
        self._known: dict[tuple[str, ...], float] = {}
        self._beginnings: dict[str, float] = {}

    def whole(self, word: str, history: tuple[str, ...]) -> float:
        key = (*history[-(self._model.order - 1) :], word) if self._model.order > 1 else (word,)
        return self._remembered(self._known, key, lambda: self._model.probability(word, key[:-1]))

    def beginning(self, letters: str) -> float:
        """At best."""
        return self._remembered(self._beginnings, letters, lambda: self._model.likeliest(letters))

    def _remembered(self, known: dict[Any, float], key: object, ask: Callable[[], float]) -> float:
        score = known.get(key)
        if score is None:
            if len(known) >= MOST_REMEMBERED:
                known.clear()
            share, options = ask(), self._options
            likely = math.log(share) if share > 0 else options.unknown
            score = known[key] = options.weight * likely + options.reward
        return score


@dataclass(eq=False, slots=True)
class _Prefix:
    """A text: the one before it and one token more. `scored` is what its whole words are worth; `open` its last word so
    far, worth `begun` at best; `peak` is the most that its token was heard,
    in `frame`."""

    parent: "_Prefix | None"
    token: int
    frame: int
    words: tuple[str, ...] = ()
    open: str = ""
    scored: float = 0.0
    begun: float = 0.0
    peak: float = _NEVER
    blank: float = _NEVER
    other: float = _NEVER
    next_blank: float = _NEVER
    next_other: float = _NEVER
    marked: int = -1

    def notice(self, share: float, frame: int) -> None:
        if share > self.peak:
            self.peak, self.frame = share, frame

    @property
    def heard(self) -> float:
        return _sum(self.blank, self.other)

    @property
    def rank(self) -> float:
        return self.heard + self.scored + self.begun


class Beam:
    """One utterance. `scores` None: by sound alone."""

    def __init__(
        self, alphabet: Alphabet, scores: WordScores | None = None, options: BeamOptions | None = None
    ) -> None:
        self._alphabet, self._scores = alphabet, scores
        self._options = options or BeamOptions()
        root = _Prefix(None, -1, 0, blank=0.0)
        self._kept = [root]
        # By parent and token. Here and not at the parent: what refers in circles waits for the collector, and a lesson
        # of such texts is 10 MB.
        self._grown: dict[tuple[int, int], _Prefix] = {}
        self.frames = 0

    def feed(self, logarithms: Float32) -> None:
        """Natural logarithms of the tokens' probabilities, float [frames, tokens]."""
        for row in logarithms:
            self._step(row)
            self.frames += 1

    def copy(self) -> "Beam":
        """It goes its own way from here: some milliseconds for a question."""
        other = Beam(self._alphabet, self._scores, self._options)
        copies: dict[int, _Prefix] = {}

        def copied(prefix: _Prefix) -> _Prefix:
            path: list[_Prefix] = []
            at: _Prefix | None = prefix
            while at is not None and id(at) not in copies:
                path.append(at)
                at = at.parent
            for one in reversed(path):
                parent = None if one.parent is None else copies[id(one.parent)]
                copies[id(one)] = replace(one, parent=parent)
            return copies[id(prefix)]

        other._kept = [copied(prefix) for prefix in self._kept]
        for (_, token), child in self._grown.items():
            twin = copied(child)
            other._grown[id(twin.parent), token] = twin
        other.frames = self.frames
        return other

    def text(self) -> str:
        return self._alphabet.text(self._tokens(self._best()))

    def stable(self) -> str:
        """The words with which every text begins that is still likely, the last of them left out while it may grow."""
        likely = self._kept[0].rank - _LIKELY
        paths = [list(self._tokens(prefix)) for prefix in self._kept if prefix.rank >= likely]
        shared = next((n for n, tokens in enumerate(zip(*paths, strict=False)) if len(set(tokens)) > 1), None)
        common = paths[0][: min(map(len, paths)) if shared is None else shared]
        words = self._alphabet.text(common).split()
        return " ".join(words[:-1])

    def words(self) -> list[Word]:
        """Of the best text."""
        made: list[Word] = []
        pieces: list[_Prefix] = []
        path = self._path(self._best())
        for prefix in path:
            if self._begins_word(prefix.token) and pieces:
                made.extend(self._word(pieces))
                pieces = []
            pieces.append(prefix)
        return [*made, *self._word(pieces)]

    def _word(self, pieces: Sequence[_Prefix]) -> Iterator[Word]:
        letters = [piece for piece in pieces if self._alphabet.tokens[piece.token] != self._alphabet.parting]
        text = self._alphabet.text(piece.token for piece in letters)
        if text:
            sure = sum(math.exp(piece.peak) for piece in letters) / len(letters)
            yield Word(text, letters[0].frame, letters[-1].frame + 1, min(1.0, sure))

    def _begins_word(self, token: int) -> bool:
        text = self._alphabet.tokens[token]
        return text.startswith(WORD_START) or text == self._alphabet.parting

    def _best(self) -> _Prefix:
        """With its last word scored as a whole one."""
        return max(self._kept, key=lambda prefix: prefix.heard + prefix.scored + self._ended(prefix))

    def _ended(self, prefix: _Prefix) -> float:
        if self._scores is None or not prefix.open:
            return 0.0
        return self._scores.whole(prefix.open, prefix.words)

    def _path(self, prefix: _Prefix) -> list[_Prefix]:
        path: list[_Prefix] = []
        at: _Prefix | None = prefix
        while at is not None and at.parent is not None:
            path.append(at)
            at = at.parent
        return path[::-1]

    def _tokens(self, prefix: _Prefix) -> Iterator[int]:
        return (one.token for one in self._path(prefix))

    def _step(self, row: Float32) -> None:
        options, blank = self._options, self._alphabet.blank
        silent = float(row[blank])
        grown: list[_Prefix] = []

        def mark(prefix: _Prefix) -> None:
            if prefix.marked != self.frames:
                prefix.marked, prefix.next_blank, prefix.next_other = self.frames, _NEVER, _NEVER
                grown.append(prefix)

        branches = self._branches(row) if silent < _SURE_BLANK else []
        # What would be dropped at once is not made.
        loudest = max(silent, branches[0][1]) if branches else silent
        bar = self._kept[0].rank + loudest - options.depth
        for prefix in self._kept:
            heard = prefix.heard
            # 1. The same text: a blank, or its last token held on.
            mark(prefix)
            prefix.next_blank = _sum(prefix.next_blank, heard + silent)
            if prefix.parent is not None:
                share = float(row[prefix.token])
                prefix.next_other = _sum(prefix.next_other, prefix.other + share)
                prefix.notice(share, self.frames)
            # 2. One token more; the same one again only after a blank.
            rank = prefix.rank
            for token, share in branches:
                if rank + share < bar:
                    break
                before = prefix.blank if token == prefix.token else heard
                if before == _NEVER:
                    continue
                place = id(prefix), token
                child = self._grown.get(place)
                if child is None:
                    child = self._grown[place] = self._grow(prefix, token)
                mark(child)
                child.next_other = _sum(child.next_other, before + share)
                child.notice(share, self.frames)
        # 3. The best stay.
        for prefix in grown:
            prefix.blank, prefix.other = prefix.next_blank, prefix.next_other
        grown.sort(key=lambda prefix: prefix.rank, reverse=True)
        highest = grown[0].rank
        self._kept = [prefix for prefix in grown[: options.width] if prefix.rank >= highest - options.depth]
        kept = set(map(id, self._kept))
        for prefix in grown:
            if id(prefix) not in kept:
                prefix.blank = prefix.other = _NEVER

    def _branches(self, row: Float32) -> list[tuple[int, float]]:
        count = min(self._options.branches + 1, len(row))
        likeliest = np.argpartition(row, -count)[-count:]
        found = [(int(token), float(row[token])) for token in likeliest if token != self._alphabet.blank]
        found.sort(key=lambda one: (-one[1], one[0]))
        return [one for one in found if one[1] >= self._options.least][: self._options.branches]

    def _grow(self, parent: _Prefix, token: int) -> _Prefix:
        text = self._alphabet.tokens[token]
        child = _Prefix(parent, token, self.frames, parent.words, parent.open, parent.scored, parent.begun)
        if self._begins_word(token):
            if parent.open:
                child.scored += self._ended(parent)
                child.words = (*parent.words, parent.open)[-4:]
            text, child.open, child.begun = text.removeprefix(WORD_START).replace(self._alphabet.parting, ""), "", 0.0
        if text:
            child.open += text
            child.begun = 0.0 if self._scores is None else self._scores.beginning(child.open)
        return child


def best_path(logarithms: Float32, alphabet: Alphabet) -> list[int]:
    """Each frame's likeliest token, held ones once, blanks left out."""
    likeliest = logarithms.argmax(axis=1)
    held = np.concatenate([[False], likeliest[1:] == likeliest[:-1]])
    return [int(token) for token in likeliest[~held & (likeliest != alphabet.blank)]]


def _sum(one: float, other: float) -> float:
    """The logarithm of the sum of what they are logarithms of."""
    if one < other:
        one, other = other, one
    return one if other == _NEVER else one + math.log1p(math.exp(other - one))
