"""A conversation on a small course, with fakes for the models."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.assistant.asking import ask_text, language_of
from aula.assistant.courses import CourseLibrary
from aula.assistant.dialogue import Dialogue, Manner
from aula.core.clock import FakeClock
from aula.core.errors import BackendError, TextError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Int16, Intent, RungInfo, SpeakRequest, Understanding
from aula.runtime import Rules, Rung, Runtime
from aula.scheduling.admission import Quota

COURSE = """---
title: Machines
language: en
---
## Levers

A lever is a stiff bar that turns about a fixed point called the pivot.

## Pulleys

A pulley is a wheel with a groove that guides a rope and changes the direction of a pull.
"""
SAID = {
    "hello": Intent.GREETING,
    "again please": Intent.REPEAT,
    "slower please": Intent.SLOWER,
    "when is the exam": Intent.ORGANISATION,
    "tell me a joke": Intent.OFF_TOPIC,
}


class Scripted:
    """Knows the intents of SAID and takes everything else for a question on content."""

    confidence = 0.9

    def understand(self, text: str, context: Context) -> Understanding:
        return Understanding(SAID.get(text.lower(), Intent.CONTENT), self.confidence, np.zeros(0, np.float32))


class Voice:
    rate = 100

    def __init__(self) -> None:
        self.requests: list[SpeakRequest] = []
        self.stopped = 0

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        self.requests.append(request)
        try:
            for _ in request.text.split():
                yield np.zeros(10, np.int16)
        finally:
            self.stopped += 1


@asynccontextmanager
async def _conversation(
    tmp_path: Path, rules: Rules | None = None
) -> AsyncIterator[tuple[Dialogue, Voice, Scripted, Runtime]]:
    (tmp_path / "machines.md").write_text(COURSE, encoding="utf-8")
    library = CourseLibrary(tmp_path / "courses")
    library.add(tmp_path / "machines.md", "machines")
    voice, scripted = Voice(), Scripted()
    languages = frozenset({"en", "zh"})
    rungs = [
        Rung(RungInfo("scripted", Capability.UNDERSTAND, languages), "understand", lambda: scripted),
        Rung(RungInfo("voice", Capability.SPEAK, frozenset({"en"})), "speak", lambda: voice),
    ]
    async with Runtime(rungs, FakeClock(), rules=rules) as runtime:
        settings = Settings({"home": str(tmp_path)})
        yield Dialogue(runtime, library.load("machines"), settings), voice, scripted, runtime


@pytest.fixture
async def conversation(tmp_path: Path) -> AsyncIterator[tuple[Dialogue, Voice, Scripted, Runtime]]:
    async with _conversation(tmp_path) as parts:
        yield parts


async def _say(dialogue: Dialogue, text: str, language: str = "en") -> Any:
    prepared = await dialogue.prepare(text, Context(language=language))
    dialogue.confirm(prepared)
    return prepared


async def test_a_question_is_answered_from_the_course_with_its_passage(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation
    prepared = await _say(dialogue, "What is a lever?")
    assert "stiff bar" in prepared.answer.text
    assert [citation.passage for citation in prepared.answer.citations] == ["Levers"]
    assert not prepared.answer.refused
    assert prepared.rungs == {"understand": "scripted", "speak": "voice"}
    assert set(prepared.timings_ms) == {"understand", "retrieve", "answer", "speak_first_byte"}
    chunks = [chunk async for chunk in prepared.audio()]
    assert len(chunks) == len(prepared.answer.text.split())
    assert voice.requests[-1].words_per_minute is None


async def test_an_answer_that_may_not_be_spoken_now_can_still_be_read(tmp_path: Path) -> None:
    once = Rules({"local": Quota(rate=0.001, burst=1)})
    async with _conversation(tmp_path, once) as (dialogue, voice, _, _):
        prepared = await _say(dialogue, "What is a lever?")
        assert "stiff bar" in prepared.answer.text
        assert "speak" not in prepared.rungs
        assert [chunk async for chunk in prepared.audio()] == []
        assert not voice.requests


async def test_repeat_and_slower_say_the_last_answer_again(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation
    first = await _say(dialogue, "What is a pulley?")
    again = await _say(dialogue, "again please")
    assert again.answer.text == first.answer.text
    assert again.answer.citations == first.answer.citations
    slower = await _say(dialogue, "slower please")
    assert slower.answer.text == first.answer.text
    assert voice.requests[-1].words_per_minute == round(165 * 0.75)
    await _say(dialogue, "What is a lever?")
    assert voice.requests[-1].words_per_minute == round(165 * 0.75), "slower lasts"


async def test_a_draft_that_was_not_confirmed_is_not_remembered(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    said = await _say(dialogue, "What is a lever?")
    await (await dialogue.prepare("What is a pulley?", Context())).close()
    assert (await _say(dialogue, "again please")).answer.text == said.answer.text


async def test_another_conversation_shares_the_course_and_no_memory(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    said = await _say(dialogue, "What is a lever?")
    other = dialogue.another()
    assert other.course is dialogue.course
    assert other.vocabulary() is dialogue.vocabulary(), "read once"
    assert "not said anything" in (await _say(other, "again please")).answer.text
    await _say(other, "What is a pulley?")
    assert (await _say(dialogue, "again please")).answer.text == said.answer.text


async def test_what_was_said_elsewhere_is_recalled_and_forgotten(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    dialogue.recall("A lever turns.", "en")
    assert (await _say(dialogue, "again please")).answer.text == "A lever turns."
    dialogue.forget("Something else.")
    assert (await _say(dialogue, "again please")).answer.text == "A lever turns."
    dialogue.forget("A lever turns.")
    assert "not said anything" in (await _say(dialogue, "again please")).answer.text


async def test_answers_follow_the_manner(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation
    dialogue.manner = Manner(aloud=False)
    prepared = await _say(dialogue, "What is a lever?")
    assert [chunk async for chunk in prepared.audio()] == []
    assert voice.requests == []
    dialogue.manner = Manner(voice="en-gb", pace=1.2)
    await _say(dialogue, "slower please")
    assert (voice.requests[-1].voice, voice.requests[-1].words_per_minute) == ("en-gb", round(165 * 1.2 * 0.75))


async def test_one_who_has_not_asked_is_greeted(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    prepared = await dialogue.prepare_greeting(Context())
    assert prepared.answer.intent is Intent.GREETING
    assert "Machines" in prepared.answer.text


async def test_there_is_nothing_to_repeat_at_the_start(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    assert "not said anything yet" in (await _say(dialogue, "again please")).answer.text


async def test_an_uncertain_intent_is_taken_as_a_question(conversation: Any) -> None:
    dialogue, _, scripted, _ = conversation
    scripted.confidence = 0.3
    assert "Hello" not in (await _say(dialogue, "hello")).answer.text


@pytest.mark.parametrize(
    ("text", "words"), [("when is the exam", "ask your teacher"), ("tell me a joke", "outside this course")]
)
async def test_refusals_fit_what_was_asked(conversation: Any, text: str, words: str) -> None:
    dialogue, _, _, _ = conversation
    answer = (await _say(dialogue, text)).answer
    assert answer.refused
    assert words in answer.text
    assert answer.citations == ()


async def test_an_answer_nobody_can_speak_can_still_be_read(conversation: Any) -> None:
    dialogue, _, _, _ = conversation
    prepared = await _say(dialogue, "什么是杠杆？", "zh")
    assert prepared.answer.refused
    assert prepared.answer.language == "zh"
    assert "speak" not in prepared.rungs
    assert [chunk async for chunk in prepared.audio()] == []


async def test_a_voice_that_breaks_is_no_reason_not_to_answer(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation

    def broken(request: SpeakRequest, context: Context) -> Iterator[Int16]:
        raise BackendError("no voice", next_step="mend it")

    voice.speak = broken
    prepared = await _say(dialogue, "What is a lever?")
    assert "stiff bar" in prepared.answer.text
    assert "speak" not in prepared.rungs


async def test_what_was_said_to_its_end_is_not_synthesised_again(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation
    for rung in ("voice", "voice", "cache"):
        prepared = await _say(dialogue, "What is a lever?")
        assert prepared.rungs["speak"] == rung
        if len(voice.requests) > 1:
            chunks = [chunk async for chunk in prepared.audio()]
            assert len(chunks) == len(prepared.answer.text.split())
        await prepared.close()
    assert len(voice.requests) == 2


async def test_closing_an_answer_stops_its_voice(conversation: Any) -> None:
    dialogue, voice, _, _ = conversation
    prepared = await dialogue.prepare("What is a lever?", Context())
    await prepared.close()
    await prepared.close()
    assert voice.stopped == 1


async def test_asking_in_writing_gives_everything_and_the_sound(conversation: Any, tmp_path: Path) -> None:
    dialogue, _, _, runtime = conversation
    out = tmp_path / "answer.wav"
    asked = await ask_text(dialogue, "  What is\na lever? ", Settings(), Context(), runtime.clock, out)
    assert asked.transcript == "What is a lever?"
    assert out.stat().st_size == 44 + 2 * round(asked.audio_seconds * 100)
    json = asked.as_json()
    assert json["citations"][0]["document"] == "machines.md"
    assert json["audio"] == str(out)
    assert json["timings_ms"]["commit_to_first_audio"] == 0


@pytest.mark.parametrize("text", ["", "   ", "?!…", "\n\t", "x" * 2001])
async def test_text_without_words_or_end_is_refused(conversation: Any, text: str) -> None:
    dialogue, _, _, runtime = conversation
    with pytest.raises(TextError):
        await ask_text(dialogue, text, Settings(), Context(), runtime.clock, None)


def test_the_language_of_a_typed_question_is_its_own() -> None:
    assert language_of("什么是惯性", "en") == "zh"
    assert language_of("What is inertia?", "zh") == "en"
    assert language_of("9.8 / 2 = ?", "zh") == "zh"
    assert language_of("Что такое инерция?", "en") == "und-Cyrl"
