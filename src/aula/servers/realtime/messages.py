"""What the conversation asks of whoever hears and answers (commands), and what it is told of it (happenings).

Both sides name an utterance by the id of the item that it becomes, and an answer by the id of its response. Whatever
is told of an id that is no longer wanted is dropped: so nothing of a cancelled answer ever leaves.
"""

import secrets
from dataclasses import dataclass

from aula.assistant.dialogue import Manner
from aula.core.types import Answer, Float32
from aula.servers.realtime.errors import JsonObject
from aula.servers.realtime.formats import Format
from aula.servers.realtime.shapes import Detection


class Ids:
    """Names that are one connection's own, in order."""

    def __init__(self, own: str | None = None) -> None:
        self._own = own or secrets.token_hex(6)
        self._next = 0

    def new(self, kind: str) -> str:
        self._next += 1
        return f"{kind}_{self._own}{self._next:06x}"

    def will_be(self, name: str) -> bool:
        """Whether it may still become a name: a client that guesses it must not take it."""
        _, mine, number = name.partition(f"_{self._own}")
        return bool(mine) and (not number.isalnum() or int(number, 36) > int(f"{self._next:06x}", 36))


@dataclass(frozen=True, slots=True, eq=False)
class Hear:
    """float32 [n] at SPEECH_RATE. Without `detection` it belongs to `item_id` (push-to-talk); with it, whose it is
    will be found by listening."""

    samples: Float32
    item_id: str
    detection: Detection | None
    language: str | None


@dataclass(frozen=True, slots=True)
class Finish:
    """The utterance is whole: transcribe it."""

    item_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop what was heard for that item, or, without one, whatever is being heard now."""

    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a response is to answer: words, or an utterance that still has its turn; neither is a greeting."""

    item_id: str | None = None
    text: str | None = None
    unclear: bool = False
    """Nobody could make out the words."""
    failed: Exception | None = None
    """Why the words are not known, where that was nobody's way of speaking."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer, and give the sound in that format."""

    response_id: str
    asked: Asked
    manner: Manner
    format: Format
    language: str | None
    clock: str
    """A, B or "text": what the turn's record counts from."""
    apart: bool = False
    """Out of band: the conversation remembers nothing of it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """That answer is no longer wanted."""

    response_id: str


@dataclass(frozen=True, slots=True)
class Remember:
    """It was said earlier, or (`forget`) is no longer part of the conversation."""

    text: str
    language: str | None
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """How answers are given from now on, drafts among them."""

    manner: Manner


@dataclass(frozen=True, slots=True)
class ChangeCourse:
    name: str


Command = Hear | Finish | Forget | Reply | Stop | Remember | Adopt | ChangeCourse


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """`at_ms` of all sound that was heard, with the lead that is kept from before."""

    item_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    item_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class PartHeard:
    """A new hypothesis; all of it may still change."""

    item_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Transcribed:
    item_id: str
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NotTranscribed:
    item_id: str
    error: Exception


@dataclass(frozen=True, slots=True)
class NotHeard:
    """The utterance was given up while it was spoken."""

    item_id: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer stands, and its first sound follows at once. `told` is what our own extension field says of it."""

    response_id: str
    answer: Answer
    told: JsonObject


@dataclass(frozen=True, slots=True)
class Continued:
    """More words of it; their sound follows."""

    response_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Sounded:
    response_id: str
    sound: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """`told` in the place of what `Answered` said, where more is known by now."""

    response_id: str
    told: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class NotAnswered:
    response_id: str
    error: Exception


@dataclass(frozen=True, slots=True)
class CourseChanged:
    error: Exception | None = None


Happening = (
    SpeechBegan
    | SpeechEnded
    | PartHeard
    | Transcribed
    | NotTranscribed
    | NotHeard
    | Answered
    | Continued
    | Sounded
    | Ended
    | NotAnswered
    | CourseChanged
)
