"""One question, asked by file, by microphone or in writing, and everything that is known of its answer."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from aula.assistant.dialogue import Dialogue, Prepared
from aula.assistant.languages import detect_language
from aula.assistant.turns import Reply, Turn, TurnOptions
from aula.audio.decoding import open_audio
from aula.audio.encoding import WavWriter
from aula.core.clock import Clock
from aula.core.errors import TextError
from aula.core.settings import Settings
from aula.core.types import SPEECH_RATE, Answer, Capability, Context, Float32, Int16, SpeakRequest
from aula.runtime import LiveSpeech, Runtime

FRAME_MS = 20
UNPACED_MS = 320
RELEASE_MS = 250
STUDENT_PACE = 150
"""Words a minute of a synthetic student."""
Watch = Callable[[str], None]
"""Told the partial transcript whenever it changes."""


class Listener(Protocol):
    """Who hears the answer: a loudspeaker, a file."""

    async def play(self, chunk: Int16) -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer. `timings_ms`: transcribe, understand, retrieve, answer, speak_first_byte and
    commit_to_first_audio (clock A), in milliseconds; for a typed question transcribe is 0 and the commit is the
    moment it was handed in. `drafted`: the answer was ready before the commit."""

    transcript: str
    answer: Answer
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    drafted: bool
    audio: Path | None
    audio_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The documented object of `aula ask --json`."""
        return {
            "transcript": self.transcript,
            "language": self.answer.language,
            "intent": self.answer.intent.value,
            "answer": self.answer.text,
            "citations": [
                {
                    "course": citation.course,
                    "document": citation.document,
                    "passage": citation.passage,
                    "score": round(citation.score, 4),
                }
                for citation in self.answer.citations
            ],
            "refused": self.answer.refused,
            "rungs": self.rungs,
            "timings_ms": self.timings_ms,
            "drafted": self.drafted,
            "audio": str(self.audio) if self.audio else None,
            "audio_seconds": round(self.audio_seconds, 3),
        }


async def ask_text(
    dialogue: Dialogue,
    text: str,
    settings: Settings,
    context: Context,
    clock: Clock,
    out: Path | None,
    *listeners: Listener,
) -> Asked:
    """Answer a typed question. Raises TextError for one that is empty, too long or without letters."""
    text = checked_text(text, settings)
    start = clock.now()
    prepared = await dialogue.prepare(text, context)
    dialogue.confirm(prepared)
    timings = {"transcribe": 0.0, **prepared.timings_ms, "commit_to_first_audio": 1000 * (clock.now() - start)}
    rounded = {stage: round(milliseconds, 3) for stage, milliseconds in timings.items()}
    return await _listen(text, prepared, prepared.rungs, rounded, False, out, listeners)


async def ask_file(
    runtime: Runtime,
    dialogue: Dialogue,
    path: Path,
    settings: Settings,
    context: Context,
    out: Path | None,
    *listeners: Listener,
    live: bool = True,
    watch: Watch | None = None,
) -> Asked:
    """Answer a recorded question, fed at speaking pace as a microphone would (`live`), or as fast as it is read.

    Silence before the first word, and a file that is too long for one question, are never waited for. Raises
    what `open_audio` and `Turn` raise.
    """
    with open_audio(path) as file:
        paced = live and (file.seconds is None or file.seconds <= settings.number("question.max_seconds"))
        # Nobody waits for a partial of what is not paced: larger blocks cost fewer hops between threads.
        frames = _Frames(file.frames(FRAME_MS if paced else UNPACED_MS), runtime.clock if paced else None)
        async with await Turn.open(runtime, dialogue, context, TurnOptions.from_settings(settings)) as turn:
            async for frame in frames:
                await _hear(turn, frame, watch)
                frames.speaking = turn.speech_started
            return await _reply(await turn.commit(), out, listeners)


async def ask_frames(
    runtime: Runtime,
    dialogue: Dialogue,
    frames: AsyncIterator[Float32],
    settings: Settings,
    context: Context,
    out: Path | None,
    *listeners: Listener,
    watch: Watch | None = None,
) -> Asked:
    """Answer a question from a microphone; the end of `frames` is the release of the button."""
    async with await Turn.open(runtime, dialogue, context, TurnOptions.from_settings(settings)) as turn:
        async for frame in frames:
            await _hear(turn, frame, watch)
        return await _reply(await turn.commit(), out, listeners)


async def record_question(runtime: Runtime, text: str, voice: str, path: Path, context: Context) -> Path:
    """A question in a synthetic student's voice, as a WAV file, with the silence of a hand that leaves a button."""
    outcome = await runtime.submit(Capability.SPEAK, SpeakRequest(text, voice, STUDENT_PACE), context)
    speech: LiveSpeech = outcome.value
    with WavWriter(path, speech.rate) as writer:
        async for chunk in speech:
            writer.write(chunk)
        writer.write(np.zeros(speech.rate * RELEASE_MS // 1000, np.int16))
    return path


def checked_text(text: str, settings: Settings) -> str:
    """The question without surrounding blanks. Raises TextError."""
    text = " ".join(text.split())
    if not any(character.isalnum() for character in text):
        raise TextError("the question has no words", next_step='ask like this: aula ask --text "What is inertia?"')
    limit = settings.whole("question.max_characters")
    if len(text) > limit:
        raise TextError(
            f"the question has {len(text)} characters, more than {limit}",
            next_step="shorten it, or raise question.max_characters",
        )
    return text


def language_of(text: str, course_language: str) -> str:
    """The language to answer a typed question in: its own, or the course's where it cannot be told."""
    detected = detect_language(text)
    return course_language if detected == "und" else detected


class _Frames:
    """Frames of a file at speaking pace once `speaking` is set, before that as fast as they are taken; without a
    clock never paced."""

    def __init__(self, frames: Iterable[Float32], clock: Clock | None) -> None:
        self._frames = iter(frames)
        self._clock = clock
        self._due: float | None = None
        self.speaking = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Float32:
        frame = next(self._frames, None)
        if frame is None:
            raise StopAsyncIteration
        if self.speaking and self._clock is not None:
            self._due = (self._clock.now() if self._due is None else self._due) + len(frame) / SPEECH_RATE
            await self._clock.sleep_until(self._due)
        return frame


async def _hear(turn: Turn, frame: Float32, watch: Watch | None) -> None:
    before = turn.partial
    await turn.hear(frame)
    if watch is not None and turn.partial != before:
        watch(turn.partial)


async def _reply(reply: Reply, out: Path | None, listeners: Iterable[Listener]) -> Asked:
    return await _listen(
        reply.transcript.text, reply.prepared, reply.rungs, reply.timings_ms, reply.drafted, out, listeners
    )


async def _listen(
    transcript: str,
    prepared: Prepared,
    rungs: dict[str, str],
    timings: dict[str, float],
    drafted: bool,
    out: Path | None,
    listeners: Iterable[Listener],
) -> Asked:
    """Let the answer sound to its end, into the file and to every listener, chunk by chunk."""
    samples = 0
    if prepared.sound is None:
        out = None  # nothing here speaks the language, and a file without sound would say otherwise
    try:
        with WavWriter(out, prepared.rate) if out is not None else nullcontext() as writer:
            async for chunk in prepared.audio():
                samples += len(chunk)
                if writer is not None:
                    writer.write(chunk)
                for listener in listeners:
                    await listener.play(chunk)
    finally:
        await prepared.close()
    return Asked(transcript, prepared.answer, rungs, timings, drafted, out, samples / prepared.rate)
