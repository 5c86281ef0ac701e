"""One answer: found, spoken, paced, and written into the log of turns."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aula.assistant.asking import checked_text, language_of
from aula.assistant.dialogue import Dialogue, Prepared
from aula.assistant.turns import TurnState
from aula.core.errors import AulaError, NothingHeardError
from aula.core.types import Answer, Context, Intent, Transcript
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.realtime.errors import JsonObject
from aula.servers.realtime.formats import SoundOut
from aula.servers.realtime.listening import Tell, Utterance
from aula.servers.realtime.messages import Answered, Ended, NotAnswered, Reply, Sounded
from aula.servers.turn_log import TurnRecord

_log = logging.getLogger(__name__)
Room = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Made:
    """An answer that may leave, and what is to be told of how it was made."""

    question: str
    prepared: Prepared
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    drafted: bool = False


class Answering:
    def __init__(
        self, house: House, caller: Caller, dialogue: Dialogue, reply: Reply, tell: Tell, outgoing: Room
    ) -> None:
        self._house = house
        self._caller = caller
        self._dialogue = dialogue
        self._reply = reply
        self._tell = tell
        self._outgoing = outgoing
        self._clock = house.runtime.clock

    async def run(self, utterance_of: Callable[[str], Awaitable[Utterance | None]], wall: Callable[[], float]) -> None:
        """To its end, or until the task is cancelled. Raises nothing else: failures are told."""
        reply = self._reply
        made: Made | None = None
        error: Exception | None = None
        usual, self._dialogue.manner = self._dialogue.manner, reply.manner
        self._drafted_in = usual
        try:
            made = await self._made(utterance_of)
            self._tell(Answered(reply.response_id, made.prepared.answer, self._told(made)))
            await self._sound(made.prepared)
            self._tell(Ended(reply.response_id))
        except AulaError as failure:
            error = failure
            self._tell(NotAnswered(reply.response_id, failure))
        except Exception as failure:
            error = failure
            _log.exception("answering failed")
            self._tell(NotAnswered(reply.response_id, failure))
        finally:
            if self._dialogue.manner is reply.manner:
                self._dialogue.manner = usual
            if made is not None or error is not None:
                self._house.turns.add(self._record(made, error, wall()))
            if made is not None:
                await made.prepared.close()

    async def _made(self, utterance_of: Callable[[str], Awaitable[Utterance | None]]) -> Made:
        asked = self._reply.asked
        if asked.failed is not None:
            raise asked.failed
        if asked.item_id is not None:
            utterance = await utterance_of(asked.item_id)
            if utterance is not None:
                return await self._made_aloud(utterance)
        if asked.text is not None:
            return await self._made_from_text(asked.text)
        unclear = asked.unclear or asked.item_id is not None
        return await self._made_of_its_own(unclear=unclear)

    async def _made_aloud(self, utterance: Utterance) -> Made:
        try:
            transcript: Transcript = await utterance.transcript()
        except NothingHeardError:
            return await self._made_of_its_own(unclear=True)
        turn = utterance.turn
        if turn.state is not TurnState.TRANSCRIBED:
            return await self._made_from_text(transcript.text)
        reply = await turn.answer()
        prepared = reply.prepared
        if reply.drafted and self._reply.manner.aloud and self._drafted_in != self._reply.manner:
            # Drafted in another voice, or to be read only.
            await prepared.close()
            prepared = await self._dialogue.prepare(transcript.text, self._context(transcript.language))
        return Made(transcript.text, prepared, reply.rungs, reply.timings_ms, reply.drafted)

    async def _made_from_text(self, text: str) -> Made:
        text = checked_text(text, self._house.settings)
        language = self._reply.language or language_of(text, self._dialogue.course.info.language)
        start = self._clock.now()
        prepared = await self._dialogue.prepare(text, self._context(language))
        return self._confirmed(text, prepared, start)

    async def _made_of_its_own(self, *, unclear: bool) -> Made:
        context = self._context(self._reply.language or self._dialogue.course.info.language)
        start = self._clock.now()
        prepare = self._dialogue.prepare_unclear if unclear else self._dialogue.prepare_greeting
        return self._confirmed("", await prepare(context), start)

    def _confirmed(self, question: str, prepared: Prepared, start: float) -> Made:
        self._dialogue.confirm(prepared)
        timings = {
            "transcribe": 0.0,
            **prepared.timings_ms,
            "commit_to_first_audio": 1000 * (self._clock.now() - start),
        }
        rounded = {stage: round(milliseconds, 3) for stage, milliseconds in timings.items()}
        return Made(question, prepared, prepared.rungs, rounded)

    async def _sound(self, prepared: Prepared) -> None:
        """The first sound at once; later ones no further ahead of the ear than the setting says."""
        reply = self._reply
        if not reply.manner.aloud or prepared.first is None:
            return
        out = SoundOut(reply.format, prepared.rate)
        ahead = self._house.settings.whole("realtime.ahead_ms") / 1000
        start, seconds = self._clock.now(), 0.0
        async for chunk in prepared.audio():
            await self._clock.sleep_until(start + seconds - ahead)
            await self._outgoing()
            seconds += len(chunk) / prepared.rate
            if sound := out.feed(chunk):
                self._tell(Sounded(reply.response_id, sound))
        if sound := out.flush():
            self._tell(Sounded(reply.response_id, sound))

    def _context(self, language: str) -> Context:
        return self._caller.context(language)

    def _told(self, made: Made) -> JsonObject:
        """The extension field `aula` of a response."""
        answer = made.prepared.answer
        return {
            "course": self._dialogue.course.name,
            "question": made.question,
            "language": answer.language,
            "intent": answer.intent.value,
            "refused": answer.refused,
            "citations": [
                {
                    "course": citation.course,
                    "document": citation.document,
                    "passage": citation.passage,
                    "score": round(citation.score, 4),
                    "text": citation.text,
                }
                for citation in answer.citations
            ],
            "rungs": made.rungs,
            "timings_ms": made.timings_ms,
            "drafted": made.drafted,
            "clock": self._reply.clock,
        }

    def _record(self, made: Made | None, error: Exception | None, moment: float) -> TurnRecord:
        language = self._reply.language or self._dialogue.course.info.language
        answer = Answer("", language, Intent.CONTENT, refused=True) if made is None else made.prepared.answer
        return TurnRecord(
            moment=moment,
            tenant=self._caller.tenant,
            course=self._dialogue.course.name,
            language=answer.language,
            door="realtime",
            clock=self._reply.clock,
            question=self._reply.asked.text or "" if made is None else made.question,
            answer=answer.text,
            intent=answer.intent.value,
            refused=answer.refused,
            drafted=made is not None and made.drafted,
            citations=tuple((c.document, c.passage, c.score) for c in answer.citations),
            timings_ms={} if made is None else made.timings_ms,
            rungs={} if made is None else made.rungs,
            error=None if error is None else type(error).__name__,
        )
