"""How sure the recogniser may be: a logistic regression of "two words of three are right" on what it knows itself."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from aula.models.ctc_beam import Word
from aula.models.ctc_confidence import Calibration, Evidence
from aula.models.word_errors import word_errors, words

USABLE = 0.34
"""Word error rate up to which a transcript counts as right."""
RIDGE = 1.0
STEPS = 50


@dataclass(frozen=True)
class Tried:
    """What was heard of a clip, and what is said there ("" for noise and other languages)."""

    said: str
    heard: Sequence[Word]

    @property
    def usable(self) -> bool:
        reference = words(self.said)
        found = [part for word in self.heard for part in words(word.text)]
        return bool(reference) and word_errors(reference, found) / len(reference) <= USABLE


def fit(tried: Sequence[Tried]) -> Calibration:
    """By Newton's method, with a little ridge, so that a separable set gives finite weights; each of the two kinds
    counts as much as the other. Raises ValueError where one of them is missing."""
    heard = [one for one in tried if one.heard]
    right = np.array([one.usable for one in heard], np.float64)
    if not 0 < right.sum() < len(right):
        raise ValueError(
            f"{int(right.sum())} of {len(right)} transcripts are usable: give clips of both kinds to fit confidence on"
        )
    evidence = np.array([[*astuple(Evidence.of(one.heard)), 1.0] for one in heard])
    mean, spread = evidence.mean(0), evidence.std(0)
    mean[-1], spread[-1] = 0.0, 1.0
    spread[spread == 0] = 1.0
    scaled = (evidence - mean) / spread
    share = np.where(right > 0, 0.5 / right.mean(), 0.5 / (1 - right.mean()))
    theta = np.zeros(scaled.shape[1])
    for _ in range(STEPS):
        sure = 1 / (1 + np.exp(-scaled @ theta))
        slope = scaled.T @ (share * (sure - right)) + RIDGE * theta
        curve = (scaled * (share * sure * (1 - sure))[:, None]).T @ scaled + RIDGE * np.eye(len(theta))
        theta = theta - np.linalg.solve(curve, slope)
    weights = theta / spread
    bias = float(weights[-1] - (weights[:-1] * mean[:-1]).sum())
    return Calibration(tuple(map(float, weights[:-1])), bias)


def quality(tried: Sequence[Tried], calibration: Calibration, least: float) -> tuple[float, float]:
    """Of the usable transcripts, and of the others, the parts that pass at `least`. What nobody heard passes not."""
    passed: dict[bool, list[bool]] = {True: [], False: []}
    for one in tried:
        passes = bool(one.heard) and calibration.confidence(one.heard) >= least
        passed[one.usable].append(passes)
    kept, spoilt = (float(np.mean(passed[kind])) if passed[kind] else 0.0 for kind in (True, False))
    return kept, spoilt
