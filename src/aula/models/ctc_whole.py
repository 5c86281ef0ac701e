"""CTC models that hear a sound as a whole: nothing is said before the commit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from aula.backends.session import Session
from aula.core.types import SPEECH_RATE, Float32
from aula.engine.recipe import Arrays, Recipe
from aula.models import ctc_task
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_beam import Alphabet

USUAL_SECONDS, LONGEST_SECONDS = 5, 20
"""A question, and what is heard at once; longer sounds are heard in pieces."""
LEAST = SPEECH_RATE // 4
"""Samples; shorter sounds are filled up with silence."""


class WholeHearing:
    """An engine for any length. Not for two threads at once.

    `given` makes its inputs of a sound; `units` are what it writes with, one row of them every `frame_seconds`."""

    def __init__(
        self, session: Session, given: Callable[[Float32], Arrays], *, units: int, frame_seconds: float
    ) -> None:
        self._session, self._given = session, given
        self._units, self._frame_seconds = units, frame_seconds

    @property
    def backend(self) -> str:
        return self._session.backend

    @property
    def frame_seconds(self) -> float:
        return self._frame_seconds

    def begin(self) -> "WholeHeard":
        return WholeHeard(self.whole, self._units)

    def whole(self, samples: Float32) -> Float32:
        """Natural logarithms [frames, units]; what is longer than LONGEST_SECONDS is heard in pieces."""
        most = LONGEST_SECONDS * SPEECH_RATE
        pieces = [self._heard(samples[start : start + most]) for start in range(0, max(1, len(samples)), most)]
        return np.concatenate(pieces)

    def warm(self) -> None:
        self.whole(np.zeros(SPEECH_RATE, np.float32))

    def _heard(self, samples: Float32) -> Float32:
        padded = np.pad(samples, (0, max(0, LEAST - len(samples))))
        rows: Float32 = self._session.run(self._given(padded))["logarithms"][0]
        return rows


class WholeHeard:
    """One sound on its way."""

    def __init__(self, hear: Callable[[Float32], Float32], units: int) -> None:
        self._hear, self._units = hear, units
        self._held: list[Float32] = []

    def feed(self, samples: Float32) -> Float32:
        self._held.append(samples)
        return np.zeros((0, self._units), np.float32)

    def copy(self) -> "WholeHeard":
        other = WholeHeard(self._hear, self._units)
        other._held = list(self._held)
        return other

    @property
    def samples(self) -> int:
        return sum(map(len, self._held))

    def end(self) -> Float32:
        return self._hear(np.concatenate(self._held)) if self._held else np.zeros((0, self._units), np.float32)


@dataclass(frozen=True, slots=True)
class WholeKind:
    """An architecture that hears so: how its checkpoints are read."""

    recipe: Callable[[Checkpoint, str], Recipe]
    alphabet: Callable[[Checkpoint], Alphabet]
    hearing: Callable[[Session, Checkpoint], WholeHearing]

    def judged(self, checkpoint: Checkpoint, name: str, labelled: ctc_task.Labelled | None = None) -> Recipe:
        """By a user's clips, or by this project's questions in synthetic voices."""
        return replace(
            self.recipe(checkpoint, name),
            task=lambda: ctc_task.task(
                lambda session: self.hearing(session, checkpoint).whole,
                self.alphabet(checkpoint),
                labelled or ctc_task.spoken(),
            ),
        )
