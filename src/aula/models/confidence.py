"""How sure PocketSphinx's transcript is: a small logistic regression on what the decoder knows of its own path."""

import math
from dataclasses import astuple, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one utterance; averages over words weigh each word by its length in frames."""

    posterior: float
    """Mean logarithm of the words' posterior probabilities in the lattice."""
    doubtful: float
    """Share of word frames in words whose posterior is under one half."""
    language: float
    """Mean log probability of a word in the language model, weighted as in the search."""
    longest: float
    """Logarithm of the frames a letter takes in the word that drags most."""
    spoken: float
    """Share of all frames that lie in words rather than in silence or noise."""
    words: float
    """Logarithm of the number of words."""


# Fitted by `python benchmarks/recognition.py DATA --fit` on the development half of its sets. On the other half,
# 88 % of usable in-course transcripts and 24 % of spoilt ones are above 0.5; of Mandarin and noise, 2 % at most.
WEIGHTS: tuple[float, ...] = (0.915, -2.456, 47.608, -2.56, 6.003, -0.214)
BIAS = 6.324

_LEAST = 1e-300


def confidence(evidence: Evidence) -> float:
    """Probability in [0, 1] that at least two words of three are right and the question belongs to the course."""
    score = BIAS + sum(weight * value for weight, value in zip(WEIGHTS, astuple(evidence), strict=True))
    return 1.0 / (1.0 + math.exp(-min(max(score, -50.0), 50.0)))


def read_evidence(decoder: Any) -> Evidence:
    """Evidence of a decoder's last utterance, which holds at least one word."""
    frames = total = 0
    posterior = doubtful = language = 0.0
    longest = 0.0
    count = 0
    for segment in decoder.seg():
        length = segment.end_frame - segment.start_frame + 1
        total += length
        if segment.word.startswith(("<", "[", "+")):
            continue
        share = min(max(segment.prob, _LEAST), 1.0)
        count += 1
        frames += length
        posterior += length * math.log(share)
        doubtful += length * (share < 0.5)
        language += math.log(max(segment.lscore, _LEAST))
        letters = len(segment.word.partition("(")[0])
        longest = max(longest, length / letters)
    return Evidence(
        posterior / frames,
        doubtful / frames,
        language / count,
        math.log(longest),
        frames / max(total, frames),
        math.log(count),
    )
