"""One answer: found, spoken, continued by a generator where there is one, and written into the log of turns."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from aula.assistant.asking import checked_text, language_of
from aula.assistant.dialogue import Dialogue, Prepared
from aula.assistant.generating import Told, bare
from aula.assistant.turns import TurnState
from aula.core.errors import AulaError, NothingHeardError
from aula.core.types import Answer, Citation, Context, Intent, Transcript
from aula.servers.callers import Caller
from aula.servers.house import House
from aula.servers.logs import log_defect
from aula.servers.realtime.errors import JsonObject
from aula.servers.realtime.listening import Tell, Utterance
from aula.servers.realtime.messages import Answered, Continued, Ended, NotAnswered, Reply, Sounded
from aula.servers.realtime.sounding import Sounding
from aula.servers.turn_log import TurnRecord

SILENCE_S = 1.0
"""How long an answer may pause for a generator, before the course's own words are said instead."""
Room = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Made:
    """An answer that may leave, and what is to be told of how it was made."""

    question: str
    prepared: Prepared
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    drafted: bool = False
    told: Told | None = None
    """What a generator made of it, where one goes on."""

    @property
    def text(self) -> str:
        return self.prepared.answer.text if self.told is None else self.told.text

    @property
    def citations(self) -> tuple[Citation, ...]:
        return self.prepared.answer.citations if self.told is None else self.told.citations


class Answering:
    def __init__(
        self, house: House, caller: Caller, dialogue: Dialogue, reply: Reply, tell: Tell, outgoing: Room
    ) -> None:
        self._house = house
        self._caller = caller
        self._dialogue = dialogue
        self._reply = reply
        self._tell = tell
        self._clock = house.runtime.clock
        self._sounding = Sounding(
            reply.format,
            self._clock,
            house.settings.whole("realtime.ahead_ms") / 1000,
            outgoing,
            lambda sound: tell(Sounded(reply.response_id, sound)),
        )

    async def run(self, utterance_of: Callable[[str], Awaitable[Utterance | None]], wall: Callable[[], float]) -> None:
        """To its end, or until the task is cancelled. Raises nothing else: failures are told."""
        with self._house.traffic.turn():
            await self._run(utterance_of, wall)

    async def _run(self, utterance_of: Callable[[str], Awaitable[Utterance | None]], wall: Callable[[], float]) -> None:
        reply = self._reply
        made: Made | None = None
        error: Exception | None = None
        usual, self._dialogue.manner = self._dialogue.manner, reply.manner
        self._drafted_in = usual
        try:
            made = await self._made(utterance_of)
            if self._house.generator is not None and made.prepared.is_begun:
                made = self._continued(made)
                await self._tell_on(made)
                self._tell(Ended(reply.response_id, self._told(made)))
            else:
                self._tell(Answered(reply.response_id, made.prepared.answer, self._told(made)))
                await self._sound(made.prepared)
                self._tell(Ended(reply.response_id))
        except AulaError as failure:
            error = failure
            self._tell(NotAnswered(reply.response_id, failure))
        except Exception as failure:
            error = failure
            log_defect(failure, reply.response_id)
            self._tell(NotAnswered(reply.response_id, failure))
        finally:
            if self._dialogue.manner is reply.manner:
                self._dialogue.manner = usual
            if made is not None or error is not None:
                self._house.turns.add(self._record(made, error, wall()))
            if made is not None:
                self._remember(made)
                await made.prepared.close()

    async def _made(self, utterance_of: Callable[[str], Awaitable[Utterance | None]]) -> Made:
        asked = self._reply.asked
        if asked.failed is not None:
            raise asked.failed
        if asked.item_id is not None:
            utterance = await utterance_of(asked.item_id)
            if utterance is not None:
                if not utterance.take_admission():
                    self._house.doorman.again(self._caller)
                return await self._made_aloud(utterance)
        self._house.doorman.again(self._caller)
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

    def _continued(self, made: Made) -> Made:
        """With whoever goes on where its first sentence ends; a voice cannot pause as long as a page can."""
        prepared = made.prepared
        told = Told(prepared.answer, made.question, prepared.hits, self._dialogue.course.name, self._house.generator)
        if self._reply.manner.aloud and prepared.first is not None:
            told.silent_at = lambda: self._sounding.ends_at + SILENCE_S
        return replace(made, told=told)

    async def _tell_on(self, made: Made) -> None:
        """Sentence by sentence: the words, and then their sound."""
        assert made.told is not None
        prepared = made.prepared
        answer, language = prepared.answer, prepared.answer.language
        async with aclosing(made.told.pieces()) as pieces:
            first = await anext(pieces, "")
            self._tell(Answered(self._reply.response_id, replace(answer, text=first), self._told(made)))
            await self._sound(prepared)
            async for piece in pieces:
                self._tell(Continued(self._reply.response_id, piece))
                if not self._reply.manner.aloud:
                    continue
                sound = await self._dialogue.say(bare(piece), answer, self._context(language))
                if sound is not None:
                    try:
                        await self._sounding.play(sound.chunks, sound.rate)
                    finally:
                        await sound.close()

    def _remember(self, made: Made) -> None:
        """What the generator said can be asked for again."""
        if made.told is not None and made.told.generated:
            answer = made.prepared.answer
            said = replace(answer, text=bare(made.text), citations=made.citations)
            self._dialogue.amend(made.prepared, said)

    async def _sound(self, prepared: Prepared) -> None:
        if self._reply.manner.aloud and prepared.first is not None:
            await self._sounding.play(prepared.audio(), prepared.rate)

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
                for citation in made.citations
            ],
            **self._source(made.told),
            "rungs": made.rungs,
            "timings_ms": made.timings_ms,
            "drafted": made.drafted,
            "clock": self._reply.clock,
        }

    def _source(self, told: Told | None) -> JsonObject:
        source = {"source": "generated" if told is not None and told.generated else "extractive"}
        return source if told is None or told.fallback is None else {**source, "fallback": told.fallback}

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
            answer=answer.text if made is None else made.text,
            intent=answer.intent.value,
            refused=answer.refused,
            drafted=made is not None and made.drafted,
            citations=() if made is None else tuple((c.document, c.passage, c.score) for c in made.citations),
            timings_ms={} if made is None else made.timings_ms,
            rungs={} if made is None else made.rungs,
            error=None if error is None else type(error).__name__,
        )
