"""Sound to logarithms of probabilities, chunk by chunk, on one engine that all streams share."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.core.types import SPEECH_RATE, Float32
from aula.models.ctc_config import SUBSAMPLING, CtcConfig
from aula.models.ctc_graph import first_states
from aula.models.ctc_mel import log_mel, samples_for
from aula.models.whisper_mel import HOP, WINDOW


class Hears(Protocol):
    """One sound on its way: natural logarithms [frames, units] of what became certain."""

    def feed(self, samples: Float32) -> Float32: ...

    def end(self) -> Float32: ...

    def copy(self) -> "Hears":
        """It goes its own way from here."""
        ...

    @property
    def samples(self) -> int: ...


class Hearing(Protocol):
    """A model that hears, whichever."""

    def begin(self) -> Hears: ...

    @property
    def frame_seconds(self) -> float: ...

    @property
    def backend(self) -> str: ...


TAIL_MS = 160
"""Silence after the last sound, as in the training, so that a last word is heard to end."""

States = dict[str, NDArray[Any]]


class CtcHearing:
    """An engine and the size of its chunks. Not for two threads at once."""

    def __init__(self, session: Session, config: CtcConfig, chunk: int | None = None) -> None:
        self.config = config
        self.chunk = chunk or config.chunk
        self._session = session

    @property
    def backend(self) -> str:
        return self._session.backend

    @property
    def frame_seconds(self) -> float:
        return SUBSAMPLING * HOP / SPEECH_RATE

    def begin(self) -> "Heard":
        return Heard(self)

    @property
    def mel_frames(self) -> int:
        """That one chunk takes."""
        return self.chunk * SUBSAMPLING

    def step(self, mel: Float32, states: States) -> tuple[Float32, States]:
        """[frames, 80] and the states before, to [chunk, units] and the states behind."""
        made = self._session.run({"mel": np.ascontiguousarray(mel[None]), **states})
        return made.pop("logarithms")[0], {name.removesuffix("_next"): array for name, array in made.items()}

    def first(self) -> States:
        return first_states(self.config)

    def whole(self, samples: Float32) -> Float32:
        """Of a whole sound: what a stream of it says, however it is cut."""
        heard = Heard(self)
        rows = [heard.feed(samples), heard.end()]
        return np.concatenate(rows)

    def warm(self) -> None:
        self.whole(np.zeros(SPEECH_RATE // 2, np.float32))


class Heard:
    """One sound on its way. The front end takes a whole chunk too, so that not even rounding depends on how the sound
    was cut."""

    def __init__(self, hearing: CtcHearing) -> None:
        self._hearing = hearing
        self._states = hearing.first()
        self._held = np.zeros(0, np.float32)
        self.samples = 0

    def feed(self, samples: Float32) -> Float32:
        """Natural logarithms [frames, units] of the chunks that became whole."""
        self.samples += len(samples)
        held = np.concatenate((self._held, samples))
        frames = self._hearing.mel_frames
        rows, start = [], 0
        while len(held) - start >= samples_for(frames):
            mel = log_mel(held[start : start + samples_for(frames)])
            logarithms, self._states = self._hearing.step(mel, self._states)
            rows.append(logarithms)
            start += frames * HOP
        self._held = held[start:].copy()
        return _joined(rows, self._hearing.config.units)

    def end(self) -> Float32:
        """Silence until the last chunk is whole. Nothing may be fed behind it."""
        frames = max(0, self.samples + TAIL_MS * SPEECH_RATE // 1000 - WINDOW) // HOP + 1
        wanted = self._hearing.mel_frames
        whole = samples_for(-(-frames // wanted) * wanted)
        return self.feed(np.zeros(max(0, whole - self.samples), np.float32))

    def copy(self) -> "Heard":
        other = Heard.__new__(Heard)
        # Nothing of it is written into: every chunk has new states, and what is held is replaced.
        other._hearing, other._states, other._held = self._hearing, self._states, self._held
        other.samples = self.samples
        return other


def _joined(rows: Sequence[Float32], units: int) -> Float32:
    if len(rows) == 1:
        return rows[0]
    return np.concatenate(rows) if rows else np.zeros((0, units), np.float32)
