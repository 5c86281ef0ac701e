"""How sure a recogniser's text is: a logistic regression on what it knows of its words, fitted when the model is made.

The numbers stand in the checkpoint's config.json under "confidence", so that they belong to the weights that they were
fitted with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from aula.core.errors import CheckpointError
from aula.models.ctc_beam import Word

_LEAST = 1e-4


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one utterance; a word's share is the mean, over its tokens, of the most that a frame gave them."""

    mean: float
    """Of the logarithms of the words' shares."""
    lowest: float
    """The logarithm of the least sure word's share."""
    doubtful: float
    """Part of the words whose share is under one half."""
    words: float
    """Logarithm of their number."""

    @classmethod
    def of(cls, words: Sequence[Word]) -> "Evidence":
        """Of at least one word."""
        logarithms = [math.log(max(word.confidence, _LEAST)) for word in words]
        doubtful = sum(word.confidence < 0.5 for word in words) / len(words)
        return cls(sum(logarithms) / len(words), min(logarithms), doubtful, math.log(len(words)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """One weight for each field of Evidence."""

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "Calibration | None":
        """None where nobody has fitted one. Raises CheckpointError for one that is senseless."""
        raw = config.get("confidence")
        if raw is None:
            return None
        try:
            made = cls(tuple(float(weight) for weight in raw["weights"]), float(raw["bias"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the confidence in config.json makes no sense ({error})", next_step=_NEXT) from error
        if len(made.weights) != len(Evidence.__slots__) or not all(map(math.isfinite, astuple(made)[0] + (made.bias,))):
            raise CheckpointError(
                f"the confidence in config.json has {len(made.weights)} weights, not {len(Evidence.__slots__)} numbers",
                next_step=_NEXT,
            )
        return made

    def confidence(self, words: Sequence[Word]) -> float:
        """Probability in [0, 1] that at least two words of three are right."""
        evidence = astuple(Evidence.of(words))
        score = self.bias + sum(weight * value for weight, value in zip(self.weights, evidence, strict=True))
        return 1.0 / (1.0 + math.exp(-min(max(score, -50.0), 50.0)))


_NEXT = "copy config.json again, or fit it anew: python -m training.recogniser.ship"
