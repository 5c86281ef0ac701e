"""From a question's words to the first sound of its answer, and the memory of one conversation.

`prepare` runs understand → retrieve → answer → speak and stops with the first chunk of sound in hand. What it made
changes nothing until `confirm`: a draft that is thrown away was never said.
"""

from collections.abc import AsyncIterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from aula.assistant.answering import answer as answer_from_course
from aula.assistant.courses import Course
from aula.assistant.generating import bare, goes_on
from aula.assistant.languages import sentences
from aula.assistant.packs import EMBEDDED_LANGUAGES
from aula.assistant.phrases import phrase
from aula.assistant.retrieval import Hit, Retriever
from aula.assistant.voice import Sound, Voice
from aula.core.errors import NoRungError, OverloadError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import (
    Answer,
    Capability,
    Context,
    Int16,
    Intent,
    SpeakRequest,
    TranscribeRequest,
    Understanding,
)
from aula.runtime import Runtime

SLOWER = 0.75
"""Share of the usual speaking rate after a student asked for slower speech."""
PLAIN = 0.7
"""How probable it must be that a question is none of the course's business for the refusal to say so."""
SURE = 0.5
"""How probable a request to repeat, to slow down or a greeting must be to be taken as one."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers are given: read only, or `aloud`, in that `voice` (None: the settings'), at that `pace` times the
    usual speaking rate."""

    aloud: bool = True
    voice: str | None = None
    pace: float = 1.0


_NOTHING_ASKED = {"understand": 0.0, "retrieve": 0.0, "answer": 0.0}


@dataclass(eq=False)
class Prepared:
    """An answer with its first sound in hand. Take `audio` once, or `close` it."""

    answer: Answer
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    rate: int
    first: Int16 | None
    sound: Sound | None
    hits: tuple[Hit, ...] = ()
    """The passages that were found for it, best first."""
    is_begun: bool = False
    """Whether only its first sentence sounds: whoever goes on from there lets the rest be spoken too."""

    async def audio(self) -> AsyncIterator[Int16]:
        """int16 chunks at `rate`; none where nothing on this machine speaks the language."""
        if self.first is not None:
            yield self.first
        if self.sound is not None:
            async for chunk in self.sound.chunks:
                yield chunk

    async def close(self) -> None:
        """Stop the voice, if it still speaks."""
        sound, self.sound = self.sound, None
        if sound is not None:
            await sound.close()


class Dialogue:
    """One student's conversation on one course."""

    def __init__(self, runtime: Runtime, course: Course, settings: Settings) -> None:
        self._runtime = runtime
        self._course = course
        self._settings = settings
        self._retriever = Retriever(course)
        self._voice = Voice(runtime, settings)
        self._vocabulary: TranscribeRequest | None = None
        self._said: Answer | None = None
        self._slower = False
        self.rate = 22_050
        """Samples a second of what is spoken; exact after `warm`."""
        self.manner = Manner()
        self.is_continued = False
        """Whether somebody goes on where the first sentence of an answer ends, so that this alone is spoken ahead."""

    @property
    def course(self) -> Course:
        return self._course

    def another(self) -> "Dialogue":
        """A conversation of its own on the same course, sharing all but the memory."""
        self.vocabulary()
        other = copy(self)
        other._said, other._slower, other.manner = None, False, Manner()
        return other

    def vocabulary(self) -> TranscribeRequest:
        """The course's own text, for the recogniser to adapt to."""
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
        return self._vocabulary

    def _read_vocabulary(self) -> TranscribeRequest:
        return TranscribeRequest(
            tuple(
                sentence
                for passage in self._course.passages
                for text in (*passage.headings, passage.text)
                for sentence in sentences(text, passage.language)
            ),
            f"{self._course.name}-{self._course.info.version}",
        )

    async def warm(self, context: Context, *, listening: bool) -> None:
        """Load what a turn needs and run it once, so that the first question does not pay for it."""
        prepared = await self.prepare(phrase("greeting", context.language, self._course.info.title), context)
        self.rate = prepared.rate
        await prepared.close()
        if listening:
            opened = await self._runtime.submit(Capability.TRANSCRIBE, self.vocabulary(), context)
            await opened.value.feed(np.zeros(1600, np.float32))
            await opened.value.close()

    async def prepare(self, question: str, context: Context) -> Prepared:
        """Make the answer and its first sound. Raises UnsupportedLanguageError for a question nobody here reads."""
        clock = self._runtime.clock
        start = clock.now()
        understood = await self._runtime.submit(Capability.UNDERSTAND, question, context)
        at_understood = clock.now()
        understanding: Understanding = understood.value
        answer = self._own_answer(understanding, context)
        at_retrieved = at_understood
        hits: list[Hit] = []
        if answer is None:
            embedding = understanding.embedding if context.language in EMBEDDED_LANGUAGES else None
            hits = self._retriever.search(question, context.language, embedding)
            at_retrieved = clock.now()
            answer = answer_from_course(
                question,
                context.language,
                understanding.intent,
                hits,
                self._course,
                min_score=self._settings.number("answer.min_score"),
            )
            answer = self._with_fitting_refusal(answer, understanding.confidence)
        at_answered = clock.now()
        timings = {
            "understand": 1000 * (at_understood - start),
            "retrieve": 1000 * (at_retrieved - at_understood),
            "answer": 1000 * (at_answered - at_retrieved),
        }
        rungs = {Capability.UNDERSTAND.value: understood.rung}
        is_begun = self.is_continued and goes_on(answer, hits)
        text = next(iter(sentences(answer.text, answer.language)), None) if is_begun else None
        prepared = await self._speak(answer, context, rungs, timings, text)
        prepared.hits = tuple(hits)
        prepared.is_begun = is_begun
        return prepared

    async def prepare_unclear(self, context: Context) -> Prepared:
        """What is said when the words could not be made out."""
        text = phrase("unclear", context.language, self._course.info.title)
        answer = Answer(text, context.language, Intent.CONTENT, refused=True)
        return await self._speak(answer, context, {}, dict(_NOTHING_ASKED))

    async def prepare_greeting(self, context: Context) -> Prepared:
        """What is said to one who has not asked anything yet."""
        text = phrase("greeting", context.language, self._course.info.title)
        answer = Answer(text, context.language, Intent.GREETING, refused=False, slower=self._slower)
        return await self._speak(answer, context, {}, dict(_NOTHING_ASKED))

    def confirm(self, prepared: Prepared) -> None:
        """The answer is being said: it becomes what `repeat` refers to, and its pace the conversation's."""
        self._slower = prepared.answer.slower
        if prepared.answer.citations or self._said is None:
            self._said = prepared.answer

    def amend(self, prepared: Prepared, said: Answer) -> None:
        """What was confirmed has been said in these words: they are what `repeat` repeats."""
        if self._said is prepared.answer:
            self._said = said

    def recall(self, text: str, language: str) -> None:
        """It was said in an earlier conversation that goes on here."""
        self._said = Answer(text, language, Intent.CONTENT, refused=False)

    def forget(self, text: str) -> None:
        """It is no longer part of the conversation."""
        if self._said is not None and bare(self._said.text) == bare(text):
            self._said = None

    def _own_answer(self, understanding: Understanding, context: Context) -> Answer | None:
        """An answer that needs no course: greetings, and what was said before once more."""
        intent = understanding.intent
        if understanding.confidence < SURE or intent not in (Intent.GREETING, Intent.REPEAT, Intent.SLOWER):
            return None
        if intent is Intent.GREETING:
            text = phrase("greeting", context.language, self._course.info.title)
            return Answer(text, context.language, intent, refused=False, slower=self._slower)
        slower = self._slower or intent is Intent.SLOWER
        if self._said is None:
            text = phrase("nothing_to_repeat", context.language, self._course.info.title)
            return Answer(text, context.language, intent, refused=False, slower=slower)
        return replace(self._said, intent=intent, slower=slower)

    def _with_fitting_refusal(self, answer: Answer, confidence: float) -> Answer:
        """A refusal in words that fit what was asked for, where that is plain enough."""
        answer = replace(answer, slower=self._slower)
        if answer.refused and confidence >= PLAIN and answer.intent in (Intent.ORGANISATION, Intent.OFF_TOPIC):
            text = phrase(answer.intent.value, answer.language, self._course.info.title)
            return replace(answer, text=text)
        return answer

    async def say(self, text: str, answer: Answer, context: Context) -> Sound | None:
        """The sound of some words of that answer, in the conversation's manner; None where nothing here speaks
        them: they can still be read."""
        usual = self._settings.whole("speech.words_per_minute")
        pace = self.manner.pace * (SLOWER if answer.slower else 1.0)
        request = SpeakRequest(text, self.manner.voice, round(usual * pace) if pace != 1.0 else None)
        try:
            return await self._voice.say(request, replace(context, language=answer.language))
        except (UnsupportedLanguageError, NoRungError, OverloadError):
            return None

    async def _speak(
        self,
        answer: Answer,
        context: Context,
        rungs: dict[str, str],
        timings: dict[str, float],
        text: str | None = None,
    ) -> Prepared:
        start = self._runtime.clock.now()
        sound = await self.say(text or answer.text, answer, context) if self.manner.aloud else None
        if sound is None:
            # That nothing spoke it is told by the missing rung.
            return Prepared(answer, rungs, {**timings, "speak_first_byte": 0.0}, self.rate, None, None)
        try:
            first = await anext(sound.chunks, None)
        except BaseException:
            await sound.close()
            raise
        timings = {**timings, "speak_first_byte": 1000 * (self._runtime.clock.now() - start)}
        rungs = {**rungs, Capability.SPEAK.value: sound.rung}
        return Prepared(answer, rungs, timings, sound.rate, first, sound)
