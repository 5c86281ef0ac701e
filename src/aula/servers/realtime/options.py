"""What a Realtime session is set to: the protocol's `session` object, checked, and what it means here.

Fields that steer a language model (instructions, tools, temperature …) are taken and given back, so that clients that
send them work; the course's answers do not follow them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from aula.assistant.dialogue import Manner
from aula.servers.realtime.errors import ClientError, JsonObject
from aula.servers.realtime.formats import FORMATS, Coding, Format
from aula.servers.realtime.shapes import Detection, Input, Output, ResponseWanted, Sound, Wanted, checked

MODEL = "aula"
"""The model's name; `aula:<course>` names a course with it."""
OPENAI_VOICES = frozenset(
    {"alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse", "marin", "cedar"}
)
"""Clients send these without being asked; here they all mean the usual voice."""
_MOST_CARRIED = 65_536
"""Characters of the fields that are only kept: a session's memory is bounded."""


_CARRIED = (
    "instructions",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "tracing",
    "truncation",
    "prompt",
    "reasoning",
    "include",
    "temperature",
)
_ALWAYS_SHOWN: JsonObject = {
    "instructions": "",
    "max_output_tokens": "inf",
    "tools": [],
    "tool_choice": "auto",
    "tracing": None,
    "truncation": "auto",
    "prompt": None,
    "include": None,
}


@dataclass(frozen=True, slots=True)
class Options:
    """A session's settings. `detection` None is push-to-talk, `transcription` None keeps transcripts to ourselves."""

    course: str
    input: Format = FORMATS[Coding.PCM]
    output: Format = FORMATS[Coding.PCM]
    aloud: bool = True
    detection: Detection | None = field(default_factory=lambda: Detection("server_vad"))
    transcription: JsonObject | None = field(default_factory=lambda: {"model": MODEL})
    noise_reduction: JsonObject | None = None
    voice: str = "marin"
    speed: float = 1.0
    carried: JsonObject = field(default_factory=dict)

    @property
    def language(self) -> str | None:
        """What the student speaks, where the client said so."""
        return (self.transcription or {}).get("language") or None

    @property
    def manner(self) -> Manner:
        return Manner(self.aloud, None if self.voice in OPENAI_VOICES else self.voice, self.speed)

    def updated(self, session: object) -> "Options":
        """With the client's `session` object over it. Raises ClientError."""
        wanted: Wanted = checked(Wanted, session, "session")
        changes: dict[str, Any] = {}
        if wanted.model:
            changes["course"] = course_of(wanted.model, self.course)
        if wanted.output_modalities is not None:
            changes["aloud"] = is_aloud(wanted.output_modalities, "session.output_modalities")
        carried = {name: value for name in _CARRIED if (value := getattr(wanted, name)) is not UNSET}
        if carried:
            changes["carried"] = _bounded({**self.carried, **carried})
        if wanted.audio is not None and wanted.audio.input is not None:
            changes |= self._input_changes(wanted.audio.input)
        if wanted.audio is not None and wanted.audio.output is not None:
            changes |= output_changes(wanted.audio.output, "session.audio.output")
        return replace(self, **changes)

    def _input_changes(self, wanted: Input) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if wanted.format is not None:
            changes["input"] = format_of(wanted.format, "session.audio.input.format")
        if wanted.transcription is not UNSET:
            told = wanted.transcription
            changes["transcription"] = None if told is None else _bounded(_written({"model": MODEL}, told))
        if wanted.turn_detection is not UNSET:
            changes["detection"] = None if wanted.turn_detection is None else _sane(wanted.turn_detection)
        if wanted.noise_reduction is not UNSET:
            changes["noise_reduction"] = None if wanted.noise_reduction is None else _bounded(wanted.noise_reduction)
        return changes

    def shown(self) -> JsonObject:
        """The `session` object as a server shows it, without its id."""
        return {
            "object": "realtime.session",
            "type": "realtime",
            "model": f"{MODEL}:{self.course}",
            "output_modalities": ["audio" if self.aloud else "text"],
            **_ALWAYS_SHOWN,
            **self.carried,
            "audio": {
                "input": {
                    "format": shown_format(self.input),
                    "transcription": self.transcription,
                    "noise_reduction": self.noise_reduction,
                    "turn_detection": _shown_detection(self.detection),
                },
                "output": {"format": shown_format(self.output), "voice": self.voice, "speed": self.speed},
            },
        }


def course_of(model: str, usual: str) -> str:
    """The course that `aula:<course>` names; `aula` is the usual one. Raises ClientError for any other model."""
    name, colon, course = model.partition(":")
    if name == MODEL and (course or not colon) and len(course) <= 200:
        return course or usual
    raise ClientError(
        f"There is no model {model[:80]!r}. Available: {MODEL}, {MODEL}:<course>. Next: name one of these; "
        "GET /v1/models lists the courses.",
        code="model_not_found",
        param="model",
    )


def is_aloud(modalities: list[Any], param: str) -> bool:
    """GA asks for one of the two; beta for text, or for both."""
    if not modalities or len(set(modalities)) < len(modalities):
        raise ClientError('output_modalities must be ["audio"] or ["text"]', param=param)
    return "audio" in modalities


def format_of(wanted: Sound, param: str) -> Format:
    form = FORMATS[wanted.type]
    if wanted.rate is not None and wanted.rate != form.rate:
        raise ClientError(
            f"{wanted.type} has {form.rate} samples a second here, not {wanted.rate}", param=f"{param}.rate"
        )
    return form


def output_changes(wanted: Output, param: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if wanted.format is not None:
        changes["output"] = format_of(wanted.format, f"{param}.format")
    if isinstance(wanted.voice, str):
        if not 0 < len(wanted.voice) <= 64:
            raise ClientError("a voice has a name of 1 to 64 characters", param=f"{param}.voice")
        changes["voice"] = wanted.voice
    elif isinstance(wanted.voice, dict):
        raise ClientError("there are no custom voices here; name a voice", param=f"{param}.voice")
    if isinstance(wanted.speed, int | float):
        if not 0.25 <= wanted.speed <= 1.5:
            raise ClientError(f"speed is {wanted.speed}; expected 0.25 to 1.5", param=f"{param}.speed")
        changes["speed"] = float(wanted.speed)
    return changes


def response_changes(wanted: ResponseWanted) -> dict[str, Any]:
    """What a response has otherwise than its session. Raises ClientError."""
    if wanted.metadata is not None and (
        len(wanted.metadata) > 16 or any(len(name) > 64 or len(value) > 512 for name, value in wanted.metadata.items())
    ):
        raise ClientError(
            "metadata has 16 entries at most, names of 64 and values of 512 characters", param="response.metadata"
        )
    changes: dict[str, Any] = {}
    if wanted.output_modalities is not None:
        changes["aloud"] = is_aloud(wanted.output_modalities, "response.output_modalities")
    if wanted.audio is not None and wanted.audio.output is not None:
        changes |= output_changes(wanted.audio.output, "response.audio.output")
    return changes


def shown_format(form: Format) -> JsonObject:
    shown: JsonObject = {"type": str(form.coding)}
    return {**shown, "rate": form.rate} if form.coding is Coding.PCM else shown


def _shown_detection(detection: Detection | None) -> JsonObject | None:
    if detection is None:
        return None
    usual: JsonObject = {"create_response": True, "interrupt_response": True}
    if detection.type == "server_vad":
        usual |= {"threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500, "idle_timeout_ms": None}
    else:
        usual |= {"eagerness": "auto"}
    return _written(usual, detection)


def _sane(detection: Detection) -> Detection:
    at = "session.audio.input.turn_detection"
    for name, least, greatest in (
        ("threshold", 0.05, 0.99),
        ("prefix_padding_ms", 0, 2000),
        ("silence_duration_ms", 32, 10_000),
        ("idle_timeout_ms", 5000, 30_000),
    ):
        value = getattr(detection, name)
        if value is not None and not least <= value <= greatest:
            raise ClientError(f"{name} is {value}; expected {least} to {greatest}", param=f"{at}.{name}")
    return detection


def _written(usual: JsonObject, struct: Struct) -> JsonObject:
    given: JsonObject = msgspec.to_builtins(struct)
    return {**usual, **{name: value for name, value in given.items() if value is not None}}


def _bounded(values: JsonObject) -> JsonObject:
    if len(msgspec.json.encode(values)) > _MOST_CARRIED:
        raise ClientError(
            f"the session's texts and tools are longer than {_MOST_CARRIED} bytes together",
            code="string_above_max_length",
            param="session",
        )
    return values
