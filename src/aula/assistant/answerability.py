"""How likely it is that a course answers a question: a logistic of what retrieval saw.

Coefficients were fitted by `benchmarks/retrieval.py --fit` on one half of its questions, so that 0.5 is where to cut.
Its `answerability` is comparable between courses of 90 to 2,100 passages, which is what it was fitted on.
"""

from collections.abc import Mapping, Sequence
from math import exp, log1p

import numpy as np

from aula.assistant.course import Course
from aula.assistant.questions import Question
from aula.assistant.retrieval import Hit, weigh
from aula.assistant.selection import Sentence

FEATURES = (
    "passage_coverage",
    "sentence_coverage",
    "bm25",
    "rarest",
    "unknown",
    "defines",
    "terms",
    "size",
    "cosine",
    "margin",
    "agreement",
)

SMALLEST, LARGEST = 90, 2100
"""The sizes of the courses that the coefficients were fitted on: beyond them size tells no more."""

Coefficients = Mapping[str, float]

COEFFICIENTS: dict[str, Coefficients] = {
    "en": {
        "passage_coverage": 2.98,
        "sentence_coverage": 1.48,
        "bm25": 3.1,
        "rarest": 0.21,
        "unknown": -0.57,
        "defines": 3.01,
        "terms": 5.14,
        "size": -5.85,
        "cosine": 13.08,
        "margin": -1.96,
        "agreement": 0.18,
        "constant": -6.49,
    },
    "en-words": {
        "passage_coverage": 4.11,
        "sentence_coverage": 1.71,
        "bm25": 9.55,
        "rarest": -0.99,
        "unknown": -3.31,
        "defines": 4.33,
        "terms": 10.56,
        "size": -7.96,
        "constant": -5.11,
    },
    "zh": {
        "passage_coverage": 4.07,
        "sentence_coverage": 4.45,
        "bm25": 10.34,
        "rarest": -0.51,
        "unknown": -2.37,
        "defines": 0.66,
        "terms": 12.0,
        "size": -6.82,
        "constant": -13.11,
    },
}
"""By kind of evidence: "en" with vectors, "en-words" without, "zh". "constant" is the intercept."""


def evidence(question: Question, hits: Sequence[Hit], ranked: Sequence[Sentence], course: Course) -> dict[str, float]:
    """What speaks for an answer, each about 0..1.

    passage_coverage, sentence_coverage: share of the question's weight of words in the best passage and sentence.
    bm25: the best score over what a passage full of these words could reach. rarest: whether the question's most
    telling word is in the best passage. unknown: share of the weight of words that the course never uses.
    defines: how plainly the best sentence defines what is asked. terms, size: more words make coverage harder, a
    larger course makes it easier. cosine, margin: the best passage's, and its lead over the last hit. agreement:
    the same passage leads by words and by meaning.
    """
    weights = weigh(question, course.lexical)
    total = sum(weights.values()) or 1.0
    best = max(hits, key=lambda hit: hit.coverage)
    known = sum(weight for term, weight in weights.items() if term in course.lexical.vocabulary)
    rarest = max(weights, key=lambda term: weights[term], default="")
    cosines = [hit.cosine for hit in hits]
    return {
        "passage_coverage": best.coverage,
        "sentence_coverage": max((sentence.coverage for sentence in ranked), default=0.0),
        "bm25": max(hit.bm25 for hit in hits) / total,
        "rarest": float(bool(rarest) and course.lexical.has(rarest, best.number)),
        "unknown": 1 - known / total,
        "defines": max((sentence.defines for sentence in ranked[:1]), default=0.0),
        "terms": log1p(len(weights)) / 3,
        "size": log1p(min(max(len(course.passages), SMALLEST), LARGEST)) / 8,
        "cosine": max(cosines),
        "margin": max(cosines) - min(cosines),
        "agreement": float(any(hit.word_rank == 0 and hit.meaning_rank == 0 for hit in hits)),
    }


def answerability(question: Question, hits: Sequence[Hit], ranked: Sequence[Sentence], course: Course) -> float:
    """0..1; 0 where nothing was found."""
    if not hits or not question.terms:
        return 0.0
    with_meaning = any(hit.meaning_rank is not None for hit in hits)
    kind = "zh" if question.language == "zh" else "en" if with_meaning else "en-words"
    return logistic(evidence(question, hits, ranked, course), COEFFICIENTS[kind])


def logistic(values: Mapping[str, float], coefficients: Coefficients) -> float:
    total = coefficients["constant"] + sum(coefficients.get(name, 0.0) * value for name, value in values.items())
    return 1 / (1 + exp(-float(np.clip(total, -30, 30))))
