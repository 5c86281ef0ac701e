"""What labelled examples must be before a metric on them says anything, whatever the model."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import CalibrationError
from aula.engine.recipe import Arrays

FEWEST_LABELLED = 100
"""A gate of one point sees nothing smaller than one example in a hundred."""


def check_count(count: int, source: str) -> None:
    """Raises CalibrationError for fewer than FEWEST_LABELLED."""
    if count < FEWEST_LABELLED:
        raise CalibrationError(
            f"{count} labelled examples in {source} are too few to judge a loss of one point",
            next_step=f"give at least {FEWEST_LABELLED} labelled examples",
        )


def check_range(labels: NDArray[np.int64], classes: int, source: str) -> None:
    """Raises CalibrationError for a label outside 0..classes-1, which no answer could match."""
    strange = labels[(labels < 0) | (labels >= classes)]
    if len(strange):
        raise CalibrationError(
            f"{source} has the label {int(strange[0])}, but the model's classes are 0 to {classes - 1}",
            next_step="give the number of its class for every example",
        )


def check_variety(inputs: Sequence[Arrays], source: str) -> None:
    """Raises CalibrationError where every example is the same: ranges found on it fit nothing else."""
    if len(inputs) < 2:
        return
    first = inputs[0]
    if all(np.array_equal(one[name], first[name]) for one in inputs[1:] for name in first):
        what = "all zero" if all(not array.any() for array in first.values()) else "all alike"
        raise CalibrationError(
            f"the {len(inputs)} examples in {source} are {what}, which proves nothing",
            next_step="give real examples, as the model will be used",
        )


def majority_share(labels: Sequence[Hashable]) -> float:
    """What always guessing the commonest label gets right."""
    return max(Counter(labels).values()) / len(labels)


def task_digest(metric: str, *parts: str) -> str:
    """SHA-256 of what the metric is called and of the digests of what it is measured on."""
    return hashlib.sha256("\n".join((metric, *parts)).encode("utf-8")).hexdigest()
