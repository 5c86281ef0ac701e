"""The shapes that a client may send, checked by msgspec. A field that is null is as good as absent, except where null
itself says something (`turn_detection`, `transcription`, and what is only kept)."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from aula.assistant.endpointing import EndpointingOptions
from aula.servers.realtime.errors import ClientError
from aula.servers.realtime.formats import Coding

_EAGERNESS_MS = {"low": 1000, "medium": 640, "auto": 640, "high": 400}
_GAP = 0.15
"""How far below its threshold speech may go before it ends; the gap keeps a wavering probability from flickering."""


class Sound(Struct, forbid_unknown_fields=True):
    type: Coding
    rate: int | None = None


class Transcription(Struct, forbid_unknown_fields=True, omit_defaults=True):
    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    delay: str | None = None
    keywords: list[str] | None = None
    languages: list[str] | None = None


class Detection(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """`semantic_vad` is taken too: silence alone decides here, and its eagerness says how much of it."""

    type: Literal["server_vad", "semantic_vad"]
    threshold: float | None = None
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    idle_timeout_ms: int | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    model_version: str | None = None

    @property
    def creates(self) -> bool:
        return self.create_response is not False

    @property
    def interrupts(self) -> bool:
        return self.interrupt_response is not False

    def endpointing(self) -> EndpointingOptions:
        start = 0.5 if self.threshold is None else self.threshold
        usual_ms = 500 if self.type == "server_vad" else _EAGERNESS_MS[self.eagerness or "auto"]
        return EndpointingOptions(
            start=start,
            end=max(start - _GAP, start / 2),
            end_ms=usual_ms if self.silence_duration_ms is None else self.silence_duration_ms,
            lead_ms=300 if self.prefix_padding_ms is None else self.prefix_padding_ms,
        )


class Input(Struct, forbid_unknown_fields=True):
    format: Sound | None = None
    transcription: Transcription | UnsetType | None = UNSET
    turn_detection: Detection | UnsetType | None = UNSET
    noise_reduction: dict[str, Any] | UnsetType | None = UNSET


class Output(Struct, forbid_unknown_fields=True):
    format: Sound | None = None
    voice: str | dict[str, Any] | None = None
    speed: float | None = None


class Audio(Struct, forbid_unknown_fields=True):
    input: Input | None = None
    output: Output | None = None


class Wanted(Struct, forbid_unknown_fields=True):
    """A client's `session` object: what it leaves out stays as it is."""

    type: Literal["realtime"] | None = None
    model: str | None = None
    audio: Audio | None = None
    output_modalities: list[Literal["text", "audio"]] | None = None
    instructions: str | UnsetType | None = UNSET
    max_output_tokens: int | Literal["inf"] | UnsetType | None = UNSET
    tools: list[dict[str, Any]] | UnsetType | None = UNSET
    tool_choice: str | dict[str, Any] | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    tracing: str | dict[str, Any] | UnsetType | None = UNSET
    truncation: str | dict[str, Any] | UnsetType | None = UNSET
    prompt: dict[str, Any] | UnsetType | None = UNSET
    reasoning: dict[str, Any] | UnsetType | None = UNSET
    include: list[str] | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET


def checked(shape: Any, value: object, at: str) -> Any:
    """`value` as `shape`. Raises ClientError with the path of what is wrong."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        param = at + path.rstrip("`")
        unknown = "unknown field" in what
        if unknown:
            what = what.replace("Object contains unknown field", "there is no field")
        code = (
            "unknown_parameter" if unknown else "missing_required_parameter" if "missing" in what else "invalid_value"
        )
        raise ClientError(f"{param}: {what}", code=code, param=param) from error


class _Event(Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    event_id: str | None = None


class SessionUpdate(_Event):
    session: dict[str, Any]


class AudioAppend(_Event):
    audio: str


class AudioCommit(_Event):
    pass


class AudioClear(_Event):
    pass


class OutputClear(_Event):
    pass


class ItemCreate(_Event):
    item: dict[str, Any]
    previous_item_id: str | None = None


class ItemRetrieve(_Event):
    item_id: str


class ItemDelete(_Event):
    item_id: str


class ItemTruncate(_Event):
    item_id: str
    content_index: int
    audio_end_ms: int


class ResponseCreate(_Event):
    response: dict[str, Any] | None = None


class ResponseCancel(_Event):
    response_id: str | None = None


CLIENT_EVENTS: dict[str, type[_Event]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AudioAppend,
    "input_audio_buffer.commit": AudioCommit,
    "input_audio_buffer.clear": AudioClear,
    "output_audio_buffer.clear": OutputClear,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.delete": ItemDelete,
    "conversation.item.truncate": ItemTruncate,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
}


class ResponseWanted(Struct, forbid_unknown_fields=True):
    """What `response.create` may ask for, over the session's settings and for this response alone."""

    conversation: Literal["auto", "none"] | None = None
    input: list[dict[str, Any]] | None = None
    output_modalities: list[Literal["text", "audio"]] | None = None
    audio: Audio | None = None
    metadata: dict[str, str] | None = None
    instructions: str | UnsetType | None = UNSET
    max_output_tokens: int | Literal["inf"] | UnsetType | None = UNSET
    tools: list[dict[str, Any]] | UnsetType | None = UNSET
    tool_choice: str | dict[str, Any] | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    prompt: dict[str, Any] | UnsetType | None = UNSET
    reasoning: dict[str, Any] | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET


class Part(Struct, forbid_unknown_fields=True):
    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class Message(Struct, forbid_unknown_fields=True):
    """An item that a client makes; or, by `item_reference`, one that there is."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[Part]
    id: str | None = None
    object: str | None = None
    status: str | None = None
