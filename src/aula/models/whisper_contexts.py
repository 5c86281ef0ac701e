"""How much of Whisper's 30 s window a sound is given: the encoder's work grows with it, and so may the errors shrink.

Whisper was trained on 30 s of sound, silence after the last word included. Less is faster, and some models lose words
or repeat them then. So what a final text is made from is the whole window, unless shorter contexts were proven on
labelled clips (`whisper_proof`); hypotheses, which are only drafts, always take the smallest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aula.core.types import SPEECH_RATE
from aula.engine.recipe import ContextProof
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_mel import FRAMES_A_POSITION, HOP

BUCKETS = (2.0, 4.0, 6.0, 10.0, 15.0)
"""Seconds; the whole window comes after them."""

FRAMES_A_SECOND = SPEECH_RATE // HOP


@dataclass(frozen=True, slots=True)
class Contexts:
    """`window` frames are the model's most; a sound needs room for itself and `margin` seconds of silence. `safe` is
    the proven context of each of BUCKETS that has one, in seconds. `offered` are the frames that there are engines for,
    the fewest first; none means all. A hypothesis takes the next that there is; a text that counts takes the very
    context that was proven, or the window."""

    window: int
    margin: float
    safe: Mapping[float, float] = field(default_factory=dict)
    offered: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: WhisperConfig, margin: float, safe: Mapping[float, float] | None = None) -> "Contexts":
        return cls(config.max_source_positions * FRAMES_A_POSITION, margin, safe or {})

    @classmethod
    def proven_by(cls, proof: ContextProof | None, config: WhisperConfig, margin: float) -> "Contexts":
        """A proof holds for its own margin, and for more."""
        if proof is None:
            return cls.of(config, margin)
        safe = {float(bucket): context for bucket, context in proof.safe.items()}
        return cls.of(config, max(margin, proof.margin), safe)

    @property
    def samples(self) -> int:
        """That the whole window holds."""
        return self.window * HOP

    def bucket(self, samples: int) -> float | None:
        """The least of BUCKETS with room for the sound and the margin, in seconds; None for the whole window."""
        needed = samples / SPEECH_RATE + self.margin
        return next((one for one in BUCKETS if needed <= one and self.frames(one) < self.window), None)

    def frames(self, seconds: float) -> int:
        wanted = self._exactly(seconds)
        return next((one for one in self.offered if one >= wanted), self.window) if self.offered else wanted

    def final(self, samples: int) -> int:
        """Frames that a text which counts is made from."""
        bucket = self.bucket(samples)
        frames = self.window if bucket is None or bucket not in self.safe else self._exactly(self.safe[bucket])
        return frames if not self.offered or frames in self.offered else self.window

    def draft(self, samples: int) -> int:
        """Frames that a hypothesis is made from."""
        bucket = self.bucket(samples)
        return self.window if bucket is None else self.frames(bucket)

    def _exactly(self, seconds: float) -> int:
        return min(round(seconds * FRAMES_A_SECOND), self.window)
