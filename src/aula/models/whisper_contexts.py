"""How much of Whisper's 30 s window a sound is given: the encoder's work grows with it, and so may the errors shrink.

Whisper was trained on 30 s of sound, silence after the last word included. Less is faster, and some models lose words
or repeat them then. So what a final text is made from is the whole window, unless shorter contexts were proven on
labelled clips; hypotheses, which are only drafts, always take the smallest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aula.core.types import SPEECH_RATE
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_mel import FRAMES_A_POSITION, HOP

BUCKETS = (2.0, 4.0, 6.0, 10.0, 15.0)
"""Seconds; the whole window comes after them."""

FRAMES_A_SECOND = SPEECH_RATE // HOP


@dataclass(frozen=True, slots=True)
class Contexts:
    """`window` frames are the model's most; a sound needs room for itself and `margin` seconds of silence. `proven`
    are the seconds of context that lost nothing on labelled clips."""

    window: int
    margin: float
    proven: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: WhisperConfig, margin: float, proven: Sequence[float] = ()) -> "Contexts":
        return cls(config.max_source_positions * FRAMES_A_POSITION, margin, tuple(sorted(proven)))

    @property
    def samples(self) -> int:
        """That the whole window holds."""
        return self.window * HOP

    def final(self, samples: int) -> int:
        """Frames that a text which counts is made from."""
        return self._smallest(samples, self.proven)

    def draft(self, samples: int) -> int:
        """Frames that a hypothesis is made from."""
        return self._smallest(samples, BUCKETS)

    def _smallest(self, samples: int, buckets: Sequence[float]) -> int:
        needed = samples / SPEECH_RATE + self.margin
        for seconds in buckets:
            frames = round(seconds * FRAMES_A_SECOND)
            if needed <= seconds and frames < self.window:
                return frames
        return self.window
