"""One response, from its creation to its end: the events of it, in their order."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

from aula.core.errors import NothingHeardError
from aula.core.types import Answer
from aula.servers.realtime.errors import JsonObject
from aula.servers.realtime.items import Item
from aula.servers.realtime.messages import Asked
from aula.servers.realtime.options import Options, shown_format


@dataclass(eq=False)
class Response:
    """`conversation_id` None: out of band, its item joins no conversation. Events lack their ids still."""

    id: str
    item: Item
    options: Options
    conversation_id: str | None
    metadata: dict[str, str] | None
    asked: Item | None
    status: str = "in_progress"
    details: JsonObject | None = None
    told: JsonObject = field(default_factory=dict)
    speaks: bool = False
    """Whether the answer stands: from then on there is something to finish."""
    sound_bytes: int = 0
    first_sound_at: float | None = None

    def created(self) -> JsonObject:
        return {"type": "response.created", "response": self._shown()}

    def answered(self, answer: Answer, told: JsonObject, previous: str | None) -> Iterator[JsonObject]:
        """The item and its part begin; the words come before they sound, since they are known by then."""
        self.speaks = True
        self.told = told
        self.item.text = answer.text
        yield {"type": "response.output_item.added", **self._place(), "item": self.item.shown(with_content=False)}
        if self.conversation_id is not None:
            shown = self.item.shown(with_content=False)
            yield {"type": "conversation.item.added", "previous_item_id": previous, "item": shown}
        yield {"type": "response.content_part.added", **self._content(), "part": self._part("")}
        yield {"type": f"{self._words}.delta", **self._content(), "delta": answer.text}

    def continued(self, text: str) -> JsonObject:
        self.item.text = (self.item.text or "") + text
        return {"type": f"{self._words}.delta", **self._content(), "delta": text}

    def sounded(self, sound: bytes, now: float) -> JsonObject:
        if self.first_sound_at is None:
            self.first_sound_at = now
        self.sound_bytes += len(sound)
        self.item.sound_ms = self.options.output.milliseconds(self.sound_bytes)
        delta = base64.b64encode(sound).decode("ascii")
        return {"type": "response.output_audio.delta", **self._content(), "delta": delta}

    def finished(self, status: str, details: JsonObject | None, previous: str | None) -> Iterator[JsonObject]:
        """Whatever was begun is ended, then the response itself."""
        self.status = status
        self.details = {"type": status, **details} if details is not None else None
        self.item.status = "completed" if status == "completed" else "incomplete"
        if self.speaks:
            text = self.item.text or ""
            if self.options.aloud:
                yield {"type": "response.output_audio.done", **self._content()}
            yield {"type": f"{self._words}.done", **self._content(), self._word_field: text}
            yield {"type": "response.content_part.done", **self._content(), "part": self._part(text)}
            yield {"type": "response.output_item.done", **self._place(), "item": self.item.shown()}
            if self.conversation_id is not None:
                yield {"type": "conversation.item.done", "previous_item_id": previous, "item": self.item.shown()}
        yield {"type": "response.done", "response": self._shown()}

    def played_until(self) -> float | None:
        """When what was sent has sounded at the client, if it plays at once; None where nothing sounds."""
        return None if self.first_sound_at is None else self.first_sound_at + self.item.sound_ms / 1000

    @property
    def _words(self) -> str:
        return "response.output_audio_transcript" if self.options.aloud else "response.output_text"

    @property
    def _word_field(self) -> str:
        return "transcript" if self.options.aloud else "text"

    def _part(self, text: str) -> JsonObject:
        return {"type": "audio" if self.options.aloud else "text", self._word_field: text}

    def _place(self) -> JsonObject:
        return {"response_id": self.id, "output_index": 0}

    def _content(self) -> JsonObject:
        return {**self._place(), "item_id": self.item.id, "content_index": 0}

    def _shown(self) -> JsonObject:
        carried = self.options.carried
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self.details,
            "output": [self.item.shown()] if self.speaks else [],
            "conversation_id": self.conversation_id,
            "output_modalities": ["audio" if self.options.aloud else "text"],
            "max_output_tokens": carried.get("max_output_tokens", "inf"),
            "audio": {"output": {"format": shown_format(self.options.output), "voice": self.options.voice}},
            "usage": None,
            "metadata": self.metadata,
            "aula": self.told or None,
        }


def asked_of(question: Item | None) -> Asked:
    """What is to be answered, as whoever answers is told."""
    if question is None:
        return Asked()
    if question.has_turn:
        return Asked(item_id=question.id)
    if question.failed is not None and not isinstance(question.failed, NothingHeardError):
        return Asked(failed=question.failed)
    if question.kind == "input_audio" and (question.text is None or isinstance(question.failed, NothingHeardError)):
        return Asked(unclear=True)
    return Asked(text=question.text or "")
