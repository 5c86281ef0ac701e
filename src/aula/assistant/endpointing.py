"""When speech starts and stops: a state machine over probabilities, which knows no model.

    SILENCE ── at or above start ──► STARTING ── for start_ms ──► SPEECH ── below end ──► ENDING
       ▲                                │                           ▲                       │
       ├──────── below start ───────────┘                           └──── not below end ────┤
       └──────────────────────────────── for end_ms ────────────────────────────────────────┘

The gap between the two thresholds keeps a wavering probability from flickering. Events carry acoustic times,
counted from the first chunk: a start is known start_ms late, a stop end_ms late, and each says when it was.
"""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

from aula.core.settings import Settings

CHUNK_MS = 32
"""What one probability stands for."""


class SpeechState(Enum):
    SILENCE = auto()
    STARTING = auto()
    SPEECH = auto()
    ENDING = auto()


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """`at_ms`: the beginning of the first chunk at or above the start threshold."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """`at_ms`: the beginning of the quiet that ended the speech; `speech_ms`: from its start to there."""

    at_ms: int
    speech_ms: int


SpeechEvent = SpeechStarted | SpeechStopped


@dataclass(frozen=True, slots=True)
class EndpointingOptions:
    """Thresholds are probabilities, durations are rounded up to whole chunks. `lead_ms` is for the caller, who
    keeps that much sound from before a start. Raises ValueError for values that contradict each other."""

    start: float = 0.5
    end: float = 0.35
    start_ms: int = 64
    end_ms: int = 640
    lead_ms: int = 320

    def __post_init__(self) -> None:
        if not 0 < self.end < self.start <= 1:
            raise ValueError(f"end ({self.end}) must be above 0 and below start ({self.start}), start at most 1")
        if self.start_ms < 1 or self.end_ms < 1 or self.lead_ms < 0:
            raise ValueError(
                f"start_ms ({self.start_ms}) and end_ms ({self.end_ms}) must be above 0, "
                f"lead_ms ({self.lead_ms}) not below"
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            start=settings.number("vad.start"),
            end=settings.number("vad.end"),
            start_ms=settings.whole("vad.start_ms"),
            end_ms=settings.whole("vad.end_ms"),
            lead_ms=settings.whole("vad.lead_ms"),
        )


class Endpointer:
    """One stream's state. Feed it every probability in order."""

    def __init__(self, options: EndpointingOptions | None = None) -> None:
        self.options = options or EndpointingOptions()
        self.reset()

    def reset(self) -> None:
        """Back to silence at 0 ms."""
        self.state = SpeechState.SILENCE
        self.now_ms = 0
        self._started_ms = 0
        self._quiet_ms = 0
        self._has_spoken = False

    @property
    def paused_ms(self) -> int:
        """Since speech was last heard; 0 while it goes on, and before any."""
        is_quiet = self._has_spoken and self.state is not SpeechState.SPEECH
        return self.now_ms - self._quiet_ms if is_quiet else 0

    def feed(self, probability: float) -> SpeechEvent | None:
        """Take the next chunk's probability of speech. Raises ValueError unless it is in 0..1, and stays as it was."""
        if not (math.isfinite(probability) and 0 <= probability <= 1):
            raise ValueError(f"{probability} is no probability; expected 0..1")
        chunk_ms = self.now_ms
        self.now_ms += CHUNK_MS
        if self.state in (SpeechState.SILENCE, SpeechState.STARTING):
            return self._await_start(probability, chunk_ms)
        return self._await_stop(probability, chunk_ms)

    def finish(self) -> SpeechStopped | None:
        """The sound has ended: stop speech that still goes on. Speech too short to have started is forgotten."""
        state, self.state = self.state, SpeechState.SILENCE
        if state is SpeechState.SPEECH:
            return self._stopped(self.now_ms)
        if state is SpeechState.ENDING:
            return self._stopped(self._quiet_ms)
        return None

    def _await_start(self, probability: float, chunk_ms: int) -> SpeechStarted | None:
        if probability < self.options.start:
            self.state = SpeechState.SILENCE
            return None
        if self.state is SpeechState.SILENCE:
            self.state = SpeechState.STARTING
            self._started_ms = chunk_ms
        if self.now_ms - self._started_ms < self.options.start_ms:
            return None
        self.state = SpeechState.SPEECH
        self._has_spoken = True
        return SpeechStarted(self._started_ms)

    def _await_stop(self, probability: float, chunk_ms: int) -> SpeechStopped | None:
        if probability >= self.options.end:
            self.state = SpeechState.SPEECH
            return None
        if self.state is SpeechState.SPEECH:
            self.state = SpeechState.ENDING
            self._quiet_ms = chunk_ms
        if self.now_ms - self._quiet_ms < self.options.end_ms:
            return None
        self.state = SpeechState.SILENCE
        return self._stopped(self._quiet_ms)

    def _stopped(self, at_ms: int) -> SpeechStopped:
        return SpeechStopped(at_ms, at_ms - self._started_ms)
