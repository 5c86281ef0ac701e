"""A question against a course: words, meaning and definitions, fused by rank.

Reciprocal-rank fusion: Cormack, Clarke & Büttcher 2009. Exact search is right at this scale: ten thousand vectors
take a millisecond. BM25 runs over the course's own arrays rather than bm25s, which would have to be stored as a
folder of files beside the course and is no faster at this size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aula.assistant.course import HEADING_MARK, Course
from aula.assistant.languages import is_pair, terms
from aula.assistant.lexical import LexicalIndex
from aula.assistant.passages import Passage
from aula.assistant.questions import KEY_MARK, Question, parse_question
from aula.core.types import Float32

RANK_OFFSET = 60
WORDS, MEANING = 0.5, 0.5
DEFINITIONS, INTRODUCTIONS = 0.6, 0.8
"""What a first place in each list is worth; chosen by benchmarks/retrieval.py from a plateau."""
HEADINGS = 0.3
"""What a word of a heading counts in BM25 against one of the text."""
DEPTH = 100
"""How far down each list a passage still counts."""
INTRODUCING_DOCUMENTS = 3
UNSEEN_PAIR = 0.3


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found. `score` is the fused one; `bm25` and `cosine` are the lists' own (cosine 0 without
    vectors); `coverage` is the share of the question's weight of words that the passage has, 0..1; the ranks
    count from 0, None beyond DEPTH; `defines`: it seems to define what the question asks the meaning of."""

    number: int
    passage: Passage
    score: float
    bm25: float
    cosine: float
    coverage: float
    word_rank: int | None
    meaning_rank: int | None
    defines: bool


class Retriever:
    """Search in one course. Holds no state between questions, so threads may share it."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self._has_vectors = course.vectors.shape[1] > 0

    def search(self, question: str, language: str, embedding: Float32 | None = None, k: int = 5) -> list[Hit]:
        """The k best passages, best first; [] where no word is shared and there is no `embedding`.

        `embedding`: float32 [d], unit length, of the same embedder as the course's vectors; None where the
        embedder does not know `language`, or has not answered yet.
        """
        return self.find(parse_question(question, language), embedding, k)

    def find(self, question: Question, embedding: Float32 | None = None, k: int = 5) -> list[Hit]:
        """`search` for a question that is parsed already."""
        course = self.course
        weighted = dict.fromkeys(question.terms, 1.0)
        weighted |= {HEADING_MARK + term: HEADINGS for term in question.terms}
        words = course.lexical.score(weighted)
        fused: dict[int, float] = {}
        word_ranks = _ranks(words, positive=True)
        _vote(fused, word_ranks, WORDS)
        cosines: Float32 = np.zeros(0, dtype=np.float32)
        meaning_ranks: dict[int, int] = {}
        if embedding is not None and self._has_vectors:
            # Not `@`: BLAS would wake its threads, which cost ten times the product itself where engines keep the
            # processors busy (12 ms against 0.9 ms at 10,000 × 384 on two shared cores).
            cosines = np.einsum("ij,j->i", course.vectors, embedding.astype(np.float32, copy=False))
            meaning_ranks = _ranks(cosines, positive=True)
            _vote(fused, meaning_ranks, MEANING)
        defining: set[int] = set()
        if question.key:
            ordered = sorted(self._defining(question), key=lambda n: (-fused.get(n, 0.0), n))
            defining = set(ordered)
            _vote(fused, _by_place(ordered[:DEPTH]), DEFINITIONS)
            _vote(fused, _by_place(self._introducing(question)), INTRODUCTIONS)
        best = sorted(fused, key=lambda n: (-fused[n], n))[:k]
        covered = self._coverage(question, best)
        return [
            Hit(
                number=n,
                passage=course.passages[n],
                score=fused[n],
                bm25=float(words[n]),
                cosine=float(cosines[n]) if len(cosines) else 0.0,
                coverage=covered[n],
                word_rank=word_ranks.get(n),
                meaning_rank=meaning_ranks.get(n),
                defines=n in defining,
            )
            for n in best
        ]

    def _defining(self, question: Question) -> list[int]:
        return [int(number) for number in self.course.definitions.having(question.key)]

    def _introducing(self, question: Question) -> list[int]:
        """Where the asked thing is first named, in the documents that name it most: there it is explained."""
        asked = dict.fromkeys(terms(question.key.removeprefix(KEY_MARK), question.language))
        having: NDArray[np.int32] | None = None
        for term in asked:
            found = self.course.lexical.having(term)
            having = found if having is None else np.intersect1d(having, found, assume_unique=True)
        if having is None or not len(having):
            return []
        _, first, counts = np.unique(self.course.document_of[having], return_index=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:INTRODUCING_DOCUMENTS]
        return [int(having[first[row]]) for row in order]

    def _coverage(self, question: Question, numbers: list[int]) -> dict[int, float]:
        lexical = self.course.lexical
        weights = weigh(question, lexical)
        total = sum(weights.values()) or 1.0
        return {
            number: sum(
                weight
                for term, weight in weights.items()
                if lexical.has(term, number) or lexical.has(HEADING_MARK + term, number)
            )
            / total
            for number in numbers
        }


def weigh(question: Question, lexical: LexicalIndex) -> dict[str, float]:
    """How much each of the question's terms tells: its idf. A pair of Chinese characters that the course never
    uses tells less, for it may only be where two words meet."""
    return {
        term: lexical.idf(term) * (UNSEEN_PAIR if is_pair(term) and term not in lexical.vocabulary else 1)
        for term in question.terms
    }


def _ranks(scores: Float32, *, positive: bool) -> dict[int, int]:
    """Place by passage number, for the DEPTH best with a score above 0."""
    count = min(DEPTH, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    best = best[np.lexsort((best, -scores[best]))]
    return _by_place(n for n in best.tolist() if not positive or scores[n] > 0)


def _by_place(numbers: "Iterator[int] | list[int]") -> dict[int, int]:
    return {number: place for place, number in enumerate(numbers)}


def _vote(fused: dict[int, float], ranks: dict[int, int], weight: float) -> None:
    for number, rank in ranks.items():
        fused[number] = fused.get(number, 0.0) + weight / (RANK_OFFSET + rank)
