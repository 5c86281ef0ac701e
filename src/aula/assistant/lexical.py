"""BM25 over a course, as plain arrays that load in a moment.

Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", with the idf that never falls below zero.
Every posting's weight is computed when the course is added, so a query only adds up columns.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32

SATURATION = 1.2
LENGTH_SHARE = 0.75
"""k1 and b: the usual values."""


@dataclass(frozen=True, slots=True, eq=False)
class LexicalIndex:
    """Postings by term: term t stands in passages[offsets[t]:offsets[t+1]] with weights[...] there.

    offsets int64 [terms + 1]; passages int32 [postings]; weights float32 [postings], idf included.
    """

    size: int
    vocabulary: Mapping[str, int]
    offsets: NDArray[np.int64]
    passages: NDArray[np.int32]
    weights: Float32

    @classmethod
    def build(cls, passages: Sequence[Iterable[str]]) -> "LexicalIndex":
        """From the terms of each passage, repeats included."""
        postings: dict[str, list[tuple[int, int]]] = {}
        lengths = np.zeros(len(passages), dtype=np.float32)
        for number, words in enumerate(passages):
            counts = Counter(words)
            lengths[number] = counts.total()
            for term, count in counts.items():
                postings.setdefault(term, []).append((number, count))
        vocabulary = {term: row for row, term in enumerate(postings)}
        sizes = np.array([len(entries) for entries in postings.values()], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        table = np.array([entry for entries in postings.values() for entry in entries], dtype=np.int64)
        where, counts_ = table.reshape(-1, 2).T
        norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(lengths.mean(), 1e-9))
        share = counts_ / (counts_ + norm[where])
        weights = np.repeat(_idf(sizes, len(passages)), sizes) * share
        return cls(len(passages), vocabulary, offsets, where.astype(np.int32), weights.astype(np.float32))

    def idf(self, term: str) -> float:
        """How much `term` tells in this course; a term that it never uses tells most."""
        row = self.vocabulary.get(term)
        uses = 0 if row is None else int(self.offsets[row + 1] - self.offsets[row])
        return float(_idf(np.array(uses), self.size))

    def having(self, term: str) -> NDArray[np.int32]:
        """The passages with `term`, ascending, int32 [uses]."""
        row = self.vocabulary.get(term)
        if row is None:
            return np.zeros(0, dtype=np.int32)
        return self.passages[self.offsets[row] : self.offsets[row + 1]]

    def has(self, term: str, passage: int) -> bool:
        having = self.having(term)
        place = int(np.searchsorted(having, passage))
        return place < len(having) and int(having[place]) == passage

    def score(self, weighted: Mapping[str, float]) -> Float32:
        """float32 [size]: BM25 of every passage for query terms with their weights."""
        scores = np.zeros(self.size, dtype=np.float32)
        for term, weight in weighted.items():
            row = self.vocabulary.get(term)
            if row is not None:
                span = slice(self.offsets[row], self.offsets[row + 1])
                scores[self.passages[span]] += np.float32(weight) * self.weights[span]
        return scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs, for storing."""
        words = np.frombuffer("\n".join(self.vocabulary).encode(), dtype=np.uint8)
        return {
            "terms": words,
            "offsets": self.offsets,
            "passages": self.passages,
            "weights": self.weights,
        }

    @classmethod
    def from_arrays(cls, size: int, arrays: Mapping[str, NDArray[Any]]) -> "LexicalIndex":
        words = arrays["terms"].tobytes().decode()
        vocabulary = {term: row for row, term in enumerate(words.split("\n") if words else [])}
        return cls(
            size,
            vocabulary,
            arrays["offsets"],
            arrays["passages"],
            arrays["weights"],
        )


def _idf(uses: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    return np.log1p((size - uses + 0.5) / (uses + 0.5))
