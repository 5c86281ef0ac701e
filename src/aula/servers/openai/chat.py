"""POST /v1/chat/completions: the course's assistant as a model.

What is asked is the last message of a user. The answer is the course's, with its citations in the field `aula`.
"""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from aula.assistant.asking import checked_text, language_of
from aula.assistant.dialogue import Dialogue, Manner, Prepared
from aula.assistant.generating import Told
from aula.assistant.languages import length
from aula.core.types import Citation
from aula.servers.callers import Caller, deadline_of
from aula.servers.house import House
from aula.servers.openai.models import course_of
from aula.servers.openai.shapes import (
    ChatChunk,
    ChatReply,
    ChatRequest,
    ChatUsage,
    Choice,
    ChunkChoice,
    CitationShape,
    Delta,
    Extension,
    Message,
    ReplyMessage,
)
from aula.servers.openai.wire import FieldError, events, read_json, reply
from aula.servers.turn_log import TurnRecord


@dataclass(eq=False)
class _Turn:
    """One question on its way, and what came of it."""

    id: str
    created: int
    model: str
    course: str
    question: str
    caller: Caller
    prepared: Prepared
    began: float
    told: Told

    def chunk(self, delta: Delta, finish_reason: str | None = None) -> ChatChunk:
        choice = ChunkChoice(delta, finish_reason=finish_reason)  # type: ignore[arg-type]
        return ChatChunk(self.id, self.created, self.model, [choice])

    def usage(self) -> ChatUsage:
        """In words, or characters of Chinese."""
        language = self.prepared.answer.language
        asked, said = length(self.question, language), length(self.told.text, language)
        return ChatUsage(asked, said, asked + said)


class Chat:
    def __init__(self, house: House) -> None:
        self._house = house

    async def create(self, request: Request) -> Response:
        caller = self._house.doorman.admit(request, "ask")
        clock = self._house.runtime.clock
        deadline = deadline_of(request, clock)
        wanted = await read_json(request, ChatRequest)
        began = clock.now()
        question, said = _question_of(wanted.messages)
        question = checked_text(question, self._house.settings)
        course = await self._house.course(course_of(wanted.model, self._house.settings.text("course")))
        dialogue = Dialogue(self._house.runtime, course, self._house.settings)
        dialogue.manner = Manner(aloud=False)
        language = language_of(question, course.info.language)
        if said:
            dialogue.recall(said, language_of(said, course.info.language))
        prepared = await dialogue.prepare(question, caller.context(language, deadline))
        reply_id = f"chatcmpl-{secrets.token_hex(12)}"
        # Unix time for people; nothing is measured by it.
        told = Told(prepared.answer, question, prepared.hits, course.name, self._house.generator)
        turn = _Turn(reply_id, int(time.time()), wanted.model, course.name, question, caller, prepared, began, told)
        if wanted.stream:
            with_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return events(self._chunks(turn, with_usage))
        async with aclosing(told.pieces()) as pieces:
            async for _ in pieces:
                pass
        self._note(turn)
        message = ReplyMessage(told.text)
        return reply(
            ChatReply(turn.id, turn.created, turn.model, [Choice(message)], turn.usage(), self._extension(turn))
        )

    async def _chunks(self, turn: _Turn, with_usage: bool) -> AsyncIterator[ChatChunk]:
        yield turn.chunk(Delta("assistant", ""))
        async with aclosing(turn.told.pieces()) as pieces:
            async for piece in pieces:
                yield turn.chunk(Delta(content=piece))
        last = turn.chunk(Delta(), "stop")
        last.aula = self._extension(turn)
        yield last
        if with_usage:
            yield ChatChunk(turn.id, turn.created, turn.model, [], usage=turn.usage())
        self._note(turn)

    def _extension(self, turn: _Turn) -> Extension:
        answer = turn.prepared.answer
        return Extension(
            course=turn.course,
            citations=[_shape(citation) for citation in turn.told.citations],
            refused=answer.refused,
            intent=answer.intent.value,
            language=answer.language,
            source="generated" if turn.told.generated else "extractive",
            fallback=turn.told.fallback or UNSET,
            rungs=turn.prepared.rungs,
            timings_ms={name: round(value, 3) for name, value in turn.prepared.timings_ms.items()},
        )

    def _note(self, turn: _Turn) -> None:
        answer = turn.prepared.answer
        total = 1000 * (self._house.runtime.clock.now() - turn.began)
        self._house.turns.add(
            TurnRecord(
                moment=time.time(),
                tenant=turn.caller.tenant,
                course=turn.course,
                language=answer.language,
                door="openai",
                clock="text",
                question=turn.question,
                answer=turn.told.text,
                intent=answer.intent.value,
                refused=answer.refused,
                drafted=False,
                citations=tuple((one.document, one.passage, one.score) for one in turn.told.citations),
                timings_ms={**turn.prepared.timings_ms, "total": total},
                rungs=turn.prepared.rungs,
            )
        )


def _question_of(messages: list[Message]) -> tuple[str, str]:
    """The last question, and what the assistant said before it. Raises FieldError."""
    asked = next((place for place in reversed(range(len(messages))) if messages[place].role == "user"), None)
    if asked is None:
        raise FieldError("no message is a user's", param="messages", next_step='add one with the role "user"')
    said = next((_text(one) for one in reversed(messages[:asked]) if one.role == "assistant"), "")
    return _text(messages[asked]), said


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content or ""


def _shape(citation: Citation) -> CitationShape:
    return CitationShape(citation.course, citation.document, citation.passage, round(citation.score, 4), citation.text)
