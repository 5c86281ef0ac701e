"""Frozen records that travel between floors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int16 = NDArray[np.int16]

SPEECH_RATE = 16_000
"""Samples a second that every recogniser and the voice-activity detector here expect."""

UNKNOWN_LANGUAGE = "und"
"""The language tag of what nobody named a language for."""


class Capability(StrEnum):
    """What a caller asks for; which model serves it is the ladder's business."""

    DETECT = "detect"
    TRANSCRIBE = "transcribe"
    UNDERSTAND = "understand"
    EMBED = "embed"
    SPEAK = "speak"
    INFER = "infer"
    """An engine as it is, named by the caller: tensors in, tensors out."""


class Intent(StrEnum):
    CONTENT = "content"
    ORGANISATION = "organisation"
    REPEAT = "repeat"
    SLOWER = "slower"
    GREETING = "greeting"
    OFF_TOPIC = "off_topic"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph. A free dimension is its name, a fixed one its size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) != len(self.shape):
            return False
        for wanted, got in zip(self.shape, shape, strict=True):
            if wanted != got and not isinstance(wanted, str):
                return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Mono sound. `samples` is float32 in [-1, 1], shape [n]; `rate` in samples a second."""

    samples: Float32
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks, and until when. Carried unchanged through every request of a turn.

    `deadline` is an absolute moment of the runtime's clock; None means whenever.
    `language` is a BCP-47 primary tag ("en", "zh"); UNKNOWN_LANGUAGE asks for it to be found in the sound.
    """

    language: str = "en"
    tenant: str = "local"
    tier: str = "question"
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a transcript: what is said from `start` to `end`, in seconds of the sound."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Partial:
    """What a recogniser makes of the audio so far; any of it may still change. `stable` is the beginning of `text` on
    which the last two hypotheses agree; `finished` are the segments that became final since the last partial.
    `settled`: a commit now would give this very text, at once."""

    text: str
    stable: str = ""
    finished: tuple[Segment, ...] = ()
    settled: bool = False


@dataclass(frozen=True, slots=True)
class HeardWord:
    """A word of a transcript, said from `start` to `end` in seconds of the sound; `confidence` is in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The final text of an utterance. `confidence` is in [0, 1]; None where the rung has no such figure. `segments`
    and `words` are empty where the rung does not tell times."""

    text: str
    language: str
    confidence: float | None = None
    segments: tuple[Segment, ...] = ()
    words: tuple[HeardWord, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectRequest:
    """A new stream of sound in which speech is to be found."""


@dataclass(frozen=True, slots=True)
class TranscribeRequest:
    """`vocabulary` is the course's own text, one string a sentence, that the recogniser may adapt to;
    `vocabulary_key` names it (course and version), so that an adapted model can be kept. `timestamps` asks for
    segments, `translate` for the text in English, whatever is spoken; `partials` False says that nobody looks at
    hypotheses, so that none need be made. `early` makes segments final as soon as two hypotheses agree on them; other
    segments wait until what follows them is heard, and do not depend on when hypotheses were made."""

    vocabulary: tuple[str, ...] = ()
    vocabulary_key: str = ""
    timestamps: bool = False
    translate: bool = False
    partials: bool = True
    early: bool = False


@dataclass(frozen=True, slots=True)
class SpeakRequest:
    """`words_per_minute` None means the voice's usual rate."""

    text: str
    voice: str | None = None
    words_per_minute: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Understanding:
    """`embedding`: float32 [d], unit length, in the embedder's space; `confidence` of the intent in 0..1."""

    intent: Intent
    confidence: float
    embedding: Float32


@dataclass(frozen=True, slots=True)
class Citation:
    """Where an answer stands: the passage's heading path in a document of a course."""

    course: str
    document: str
    passage: str
    score: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What will be said. A refusal is an answer too: it says that the course does not."""

    text: str
    language: str
    intent: Intent
    refused: bool
    citations: tuple[Citation, ...] = ()
    slower: bool = False


class Why(StrEnum):
    """Why a rung served: it is the best of its ladder, or what kept the best from it."""

    BEST = "best"
    LANGUAGE = "language"
    OUT_OF_ORDER = "out_of_order"
    RETRIED = "retried"
    TIME = "time"
    OVERRIDE = "override"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result of the runtime, the rung that served it, and why that one."""

    value: Any
    rung: str
    why: Why = Why.BEST


@dataclass(frozen=True, slots=True)
class Licence:
    """What a loaded component is under; `doctor` lists them."""

    component: str
    licence: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class RungInfo:
    """What a rung says of itself before it is loaded."""

    name: str
    capability: Capability
    languages: frozenset[str]
    note: str = ""
    licences: tuple[Licence, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)

    def serves(self, language: str) -> bool:
        """A language that is not known is for the rung to find."""
        return language == UNKNOWN_LANGUAGE or "*" in self.languages or language in self.languages
