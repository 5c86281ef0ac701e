"""A turn on honest fakes: loud samples are speech, and the recogniser reveals a word every 100 ms of sound."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.assistant.dialogue import Prepared
from aula.assistant.endpointing import EndpointingOptions
from aula.assistant.turns import Turn, TurnOptions
from aula.assistant.voice import Sound
from aula.core.clock import FakeClock
from aula.core.errors import AudioTooLongError, NothingHeardError, UnsupportedLanguageError
from aula.core.types import (
    Answer,
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Intent,
    Partial,
    RungInfo,
    TranscribeRequest,
    Transcript,
)
from aula.runtime import Rung, Runtime

ENGLISH = Context(language="en")
FRAME = 320
WORDS = ["what", "is", "the", "terminal", "velocity", "of", "a", "falling", "stone"]


class LoudIsSpeech:
    def start(self, request: DetectRequest, context: Context) -> "LoudIsSpeech":
        self.pending = np.zeros(0, np.float32)
        return self

    def feed(self, samples: Float32) -> list[float]:
        joined = np.concatenate([self.pending, samples])
        whole = len(joined) // 512
        self.pending = joined[whole * 512 :]
        return [float(np.abs(chunk).max() > 0.1) for chunk in joined[: whole * 512].reshape(whole, 512)]

    def close(self) -> None:
        pass


@dataclass
class WordByWord:
    """`final` replaces the text at the commit; `confidence` is what the transcript says of itself."""

    final: str | None = None
    confidence: float | None = None
    heard: int = 0
    closed: int = 0

    def start(self, request: TranscribeRequest, context: Context) -> "WordByWord":
        return self

    def feed(self, samples: Float32) -> Partial:
        self.heard += int((np.abs(samples) > 0.1).sum())
        return Partial(self.text)

    @property
    def text(self) -> str:
        return " ".join(WORDS[: self.heard // 1600])

    def commit(self) -> Transcript:
        text = self.text if self.final is None else self.final
        if not text:
            raise NothingHeardError("no words", next_step="speak up")
        return Transcript(text, "en", self.confidence)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Pausing(WordByWord):
    """Has its final text once a pause is 0.3 s long."""

    pauses: list[float] = field(default_factory=list)
    samples: int = 0

    def feed(self, samples: Float32) -> Partial:
        self.samples += len(samples)
        return super().feed(samples)

    def pause(self, seconds: float) -> Partial:
        self.pauses.append(seconds)
        settled = seconds >= 0.3
        text = self.final if settled and self.final is not None else self.text
        return Partial(text, settled=settled)


@dataclass
class Echo:
    """Answers a question with itself; one sample of sound a letter."""

    clock: FakeClock
    prepared: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    released: int = 0
    failing: int = 0

    def vocabulary(self) -> TranscribeRequest:
        return TranscribeRequest()

    async def prepare(self, text: str, context: Context) -> Prepared:
        self.prepared.append(text)
        if self.failing:
            self.failing -= 1
            raise RuntimeError("this draft broke")
        return self._made(text)

    async def prepare_unclear(self, context: Context) -> Prepared:
        return self._made("please say it again")

    def confirm(self, prepared: Prepared) -> None:
        self.confirmed.append(prepared.answer.text)

    def _made(self, text: str) -> Prepared:
        echo = self

        async def letters() -> AsyncIterator[Int16]:
            for letter in text[1:]:
                yield np.array([ord(letter)], np.int16)

        class Letters(Sound):
            async def close(self) -> None:
                echo.released += 1

        answer = Answer(text, "en", Intent.CONTENT, refused=False)
        first = np.array([ord(text[0])], np.int16)
        stages = {"understand": 1.0, "retrieve": 1.0, "answer": 1.0, "speak_first_byte": 1.0}
        return Prepared(answer, {"speak": "echo"}, stages, 22_050, first, Letters("echo", 22_050, letters()))


OPTIONS = TurnOptions(max_seconds=3.0, min_confidence=0.5, draft_after_ms=60, endpointing=EndpointingOptions())


def _runtime(transcriber: WordByWord, clock: FakeClock) -> Runtime:
    everything = frozenset({"en"})
    return Runtime(
        [
            Rung(RungInfo("loud", Capability.DETECT, everything), "detect", LoudIsSpeech),
            Rung(RungInfo("words", Capability.TRANSCRIBE, everything), "transcribe", lambda: transcriber),
        ],
        clock,
    )


def _frames(milliseconds: int, *, loud: bool) -> list[Float32]:
    level = 0.5 if loud else 0.0
    return [np.full(FRAME, level, np.float32) for _ in range(milliseconds // 20)]


async def _turn(
    transcriber: WordByWord, frames: list[Float32], dialogue: Echo | None = None, options: TurnOptions = OPTIONS
) -> tuple[Any, Echo]:
    clock = FakeClock()
    dialogue = dialogue or Echo(clock)
    async with (
        _runtime(transcriber, clock) as runtime,
        await Turn.open(runtime, dialogue, ENGLISH, options) as turn,  # type: ignore[arg-type]
    ):
        for frame in frames:
            await turn.hear(frame)
            await asyncio.sleep(0)
        reply = await turn.commit()
        sound = "".join([chr(chunk.item()) async for chunk in reply.audio])
    assert sound == reply.prepared.answer.text
    return reply, dialogue


async def test_a_draft_that_the_final_transcript_confirms_is_released_and_nothing_runs_again() -> None:
    reply, dialogue = await _turn(WordByWord(), _frames(500, loud=True) + _frames(200, loud=False))
    assert reply.drafted
    assert reply.transcript.text == "what is the terminal velocity"
    assert dialogue.prepared[-1] == reply.transcript.text
    assert dialogue.prepared.count(reply.transcript.text) == 1
    assert dialogue.confirmed == [reply.transcript.text]
    assert reply.rungs == {"detect": "loud", "transcribe": "words", "speak": "echo"}
    assert "commit_to_first_audio" in reply.timings_ms


async def test_a_draft_that_the_final_transcript_contradicts_never_leaves() -> None:
    reply, dialogue = await _turn(
        WordByWord(final="what is inertia"), _frames(500, loud=True) + _frames(200, loud=False)
    )
    assert not reply.drafted
    assert dialogue.prepared[-1] == "what is inertia"
    assert dialogue.confirmed == ["what is inertia"]
    assert dialogue.released == len(dialogue.prepared) - 1


async def test_a_pause_is_time_for_the_final_text_and_its_answer() -> None:
    transcriber = Pausing(final="what is inertia")
    reply, dialogue = await _turn(transcriber, _frames(500, loud=True) + _frames(600, loud=False))
    assert reply.drafted, "though no partial ever said so"
    assert dialogue.confirmed == ["what is inertia"]
    assert dialogue.prepared.count("what is inertia") == 1
    assert [seconds < 0.3 for seconds in transcriber.pauses] == [True] * (len(transcriber.pauses) - 1) + [False]
    assert transcriber.samples <= 16 * (500 + 32 + 200), "quiet is held back"


class Quick(Pausing):
    """Knows its final text as soon as it is asked."""

    def pause(self, seconds: float) -> Partial:
        self.pauses.append(seconds)
        return Partial(self.text if self.final is None else self.final, settled=True)


async def test_a_short_quiet_is_time_enough_for_a_recogniser_that_knows_its_text() -> None:
    transcriber = Quick(final="what is inertia")
    options = replace(OPTIONS, draft_after_ms=1000)
    frames = _frames(500, loud=True) + _frames(200, loud=False)
    reply, dialogue = await _turn(transcriber, frames, options=options)
    assert reply.drafted, "a button is let go before a pause is long enough to hold sound back"
    assert dialogue.confirmed == dialogue.prepared == ["what is inertia"]
    assert len(transcriber.pauses) == 1, "it is asked once a quiet"
    assert 0.09 < transcriber.pauses[0] < 0.2
    assert transcriber.samples == 16 * 700, "all of it was heard"


async def test_every_quiet_is_asked_about_anew() -> None:
    transcriber = Quick()
    quiet = _frames(160, loud=False)
    await _turn(transcriber, _frames(400, loud=True) + quiet + _frames(400, loud=True) + quiet)
    assert len(transcriber.pauses) == 2


async def test_speech_that_goes_on_after_a_pause_is_heard_whole() -> None:
    frames = _frames(300, loud=True) + _frames(500, loud=False) + _frames(200, loud=True) + _frames(400, loud=False)
    transcriber = Pausing()
    reply, _ = await _turn(transcriber, frames)
    assert reply.transcript.text == "what is the terminal velocity"
    assert transcriber.samples >= 16 * (300 + 500 + 200), "the pause is sound too"
    assert sum(seconds >= 0.3 for seconds in transcriber.pauses) == 2, "each pause is settled once"


async def test_a_draft_that_broke_is_made_again_and_told_to_nobody() -> None:
    clock = FakeClock()
    reply, dialogue = await _turn(
        WordByWord(), _frames(500, loud=True) + _frames(200, loud=False), Echo(clock, failing=1)
    )
    assert dialogue.confirmed == [reply.transcript.text]


async def test_without_a_pause_there_is_no_draft_and_the_answer_is_the_same() -> None:
    options = TurnOptions(3.0, 0.5, draft_after_ms=1000, endpointing=EndpointingOptions())
    reply, dialogue = await _turn(WordByWord(), _frames(500, loud=True), options=options)
    assert not reply.drafted
    assert dialogue.prepared == [reply.transcript.text]


async def test_a_transcript_that_is_not_sure_of_itself_is_not_answered() -> None:
    frames = _frames(500, loud=True) + _frames(200, loud=False)
    reply, dialogue = await _turn(WordByWord(confidence=0.3), frames)
    assert reply.prepared.answer.text == "please say it again"
    assert dialogue.confirmed == ["please say it again"]
    assert dialogue.released == len(dialogue.prepared)


async def test_silence_is_told_as_such() -> None:
    with pytest.raises(NothingHeardError, match="no speech"):
        await _turn(WordByWord(), _frames(1000, loud=False))
    with pytest.raises(NothingHeardError, match="no speech"):
        await _turn(WordByWord(), [])


async def test_leading_silence_is_not_transcribed_but_the_moment_before_speech_is() -> None:
    heard: list[int] = []

    class Measuring(WordByWord):
        def feed(self, samples: Float32) -> Partial:
            heard.append(len(samples))
            return super().feed(samples)

    await _turn(Measuring(), _frames(2000, loud=False) + _frames(300, loud=True))
    fed_ms = sum(heard) * 1000 / 16_000
    assert 300 + 320 <= fed_ms <= 300 + 320 + 64 + 40
    assert heard[0] > FRAME


async def test_a_question_that_is_too_long_is_refused_whatever_silence_surrounds_it() -> None:
    with pytest.raises(AudioTooLongError, match="3 seconds"):
        await _turn(WordByWord(), _frames(4000, loud=True))
    await _turn(WordByWord(), _frames(5000, loud=False) + _frames(1000, loud=True) + _frames(5000, loud=False))


async def test_a_turn_closes_at_any_moment_and_gives_everything_back() -> None:
    clock = FakeClock()
    transcriber = WordByWord()
    dialogue = Echo(clock)
    async with _runtime(transcriber, clock) as runtime:
        turn = await Turn.open(runtime, dialogue, ENGLISH, OPTIONS)  # type: ignore[arg-type]
        for frame in _frames(400, loud=True) + _frames(200, loud=False):
            await turn.hear(frame)
            await asyncio.sleep(0)
        await turn.close()
        await turn.close()
        assert transcriber.closed == 1
        assert dialogue.confirmed == []
        with pytest.raises(RuntimeError, match="closed"):
            await turn.hear(_frames(20, loud=True)[0])
        with pytest.raises(RuntimeError, match="closed"):
            await turn.commit()


async def test_a_turn_may_be_transcribed_first_and_answered_when_that_is_asked_for() -> None:
    clock = FakeClock()
    dialogue = Echo(clock)
    async with (
        _runtime(WordByWord(), clock) as runtime,
        await Turn.open(runtime, dialogue, ENGLISH, OPTIONS) as turn,  # type: ignore[arg-type]
    ):
        with pytest.raises(RuntimeError, match="transcribed"):
            await turn.answer()
        for frame in _frames(500, loud=True) + _frames(200, loud=False):
            await turn.hear(frame)
            await asyncio.sleep(0)
        transcript = await turn.transcribe()
        assert transcript.text == "what is the terminal velocity"
        assert dialogue.confirmed == [], "nobody has asked yet"
        clock.advance(7)
        reply = await turn.answer()
        assert reply.drafted
        assert dialogue.confirmed == [transcript.text]
        assert reply.timings_ms["commit_to_first_audio"] == 0, "the caller's own time is not the turn's"
        with pytest.raises(RuntimeError, match="committed"):
            await turn.answer()


async def test_silence_has_no_answer_even_if_somebody_asks() -> None:
    clock = FakeClock()
    async with (
        _runtime(WordByWord(), clock) as runtime,
        await Turn.open(runtime, Echo(clock), ENGLISH, OPTIONS) as turn,  # type: ignore[arg-type]
    ):
        with pytest.raises(NothingHeardError):
            await turn.transcribe()
        with pytest.raises(RuntimeError, match="transcript"):
            await turn.answer()


async def test_where_speech_was_found_already_nothing_is_detected_and_everything_is_heard() -> None:
    clock = FakeClock()
    transcriber = WordByWord()
    async with (
        _runtime(transcriber, clock) as runtime,
        await Turn.open(runtime, Echo(clock), ENGLISH, OPTIONS, detecting=False) as turn,  # type: ignore[arg-type]
    ):
        for frame in _frames(40, loud=False) + _frames(300, loud=True):
            await turn.hear(frame)
        reply = await turn.commit()
    assert reply.transcript.text == "what is the"
    assert "detect" not in reply.rungs


async def test_a_language_nobody_hears_is_refused_at_the_start() -> None:
    clock = FakeClock()
    async with _runtime(WordByWord(), clock) as runtime:
        with pytest.raises(UnsupportedLanguageError):
            await Turn.open(runtime, Echo(clock), Context(language="zh"), OPTIONS)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(20, 400)), max_size=6), st.one_of(st.none(), st.just("other words"))
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_heard_what_is_said_answers_the_final_transcript(
    stretches: list[tuple[bool, int]], final: str | None
) -> None:
    frames = [frame for loud, milliseconds in stretches for frame in _frames(milliseconds, loud=loud)]
    try:
        reply, dialogue = asyncio.run(_turn(WordByWord(final=final), frames))
    except NothingHeardError:
        return
    assert dialogue.confirmed == [reply.transcript.text]
    # Every prepared answer but the one that was said has given its voice back.
    assert dialogue.released == len(dialogue.prepared) - 1
