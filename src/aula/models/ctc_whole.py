"""CTC models that hear a sound as a whole: nothing is said before the commit."""

from collections.abc import Callable

import numpy as np

from aula.backends.session import Session
from aula.core.types import SPEECH_RATE, Float32
from aula.models.wav2vec2 import LONGEST_SECONDS, RATE, Wav2Vec2Config, normalised

LEAST = RATE // 4
"""Samples; shorter sounds are filled up with silence."""


class WholeHearing:
    """Wav2Vec2 on an engine for any length. Not for two threads at once."""

    def __init__(self, session: Session, config: Wav2Vec2Config, *, normalises: bool) -> None:
        self._session, self.config, self._normalises = session, config, normalises

    @property
    def backend(self) -> str:
        return self._session.backend

    @property
    def frame_seconds(self) -> float:
        return float(np.prod(self.config.conv_stride)) / RATE

    def begin(self) -> "WholeHeard":
        return WholeHeard(self.whole, self.config.vocab_size)

    def whole(self, samples: Float32) -> Float32:
        """Natural logarithms [frames, tokens]; what is longer than LONGEST_SECONDS is heard in pieces."""
        most = LONGEST_SECONDS * RATE
        pieces = [self._heard(samples[start : start + most]) for start in range(0, max(1, len(samples)), most)]
        return np.concatenate(pieces)

    def warm(self) -> None:
        self.whole(np.zeros(SPEECH_RATE, np.float32))

    def _heard(self, samples: Float32) -> Float32:
        padded = np.pad(samples, (0, max(0, LEAST - len(samples))))
        sound = normalised(padded) if self._normalises else padded
        rows: Float32 = self._session.run({"sound": sound[None]})["logarithms"][0]
        return rows


class WholeHeard:
    """One sound on its way."""

    def __init__(self, hear: Callable[[Float32], Float32], units: int) -> None:
        self._hear, self._units = hear, units
        self._held: list[Float32] = []

    def feed(self, samples: Float32) -> Float32:
        self._held.append(samples)
        return np.zeros((0, self._units), np.float32)

    def end(self) -> Float32:
        return self._hear(np.concatenate(self._held)) if self._held else np.zeros((0, self._units), np.float32)
