"""One spoken turn: sound comes in while the student speaks; at the commit the answer is already made, or made at once.

While audio arrives, each partial transcript that has held still for a while becomes a *draft*: it is understood,
looked up, answered and spoken, and the sound is held back. At the commit the final transcript decides: the same
words, and the held sound is released; other words, and the draft is thrown away and everything runs again. Nothing
made before the commit leaves the turn without that confirmation (a draft carries its generation, and only the
latest generation can be released).

While speech pauses, sound is held back from a recogniser that makes use of pauses: it makes its final text then, and
has it ready if the commit comes. If speech goes on, what was held back comes first.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

from aula.assistant.dialogue import Dialogue, Prepared
from aula.assistant.endpointing import Endpointer, EndpointingOptions, SpeechStarted, SpeechState
from aula.core.errors import AudioTooLongError, NothingHeardError
from aula.core.settings import Settings
from aula.core.telemetry import DRAFTS, TURN_SECONDS
from aula.core.traces import span
from aula.core.types import (
    SPEECH_RATE,
    Capability,
    Context,
    DetectRequest,
    Float32,
    Transcript,
)
from aula.runtime import LiveDetection, LiveTranscription, Runtime

TAIL_MS = 200
"""Of quiet after speech, which a recogniser hears in any case: a soft last sound may lie there."""

GUESS_MS = 90
"""Of quiet, after which a recogniser is asked once what its text would be; one that takes long for it says nothing yet.
A button is let go some 250 ms after the last word, and quiet is noticed some 60 ms late."""


class TurnState(StrEnum):
    LISTENING = "listening"
    TRANSCRIBED = "transcribed"
    COMMITTED = "committed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """`draft_after_ms`: how long a partial must hold still, in milliseconds of sound, to be worth a draft."""

    max_seconds: float
    min_confidence: float
    draft_after_ms: int
    endpointing: EndpointingOptions

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            max_seconds=settings.number("question.max_seconds"),
            min_confidence=settings.number("question.min_confidence"),
            draft_after_ms=settings.whole("turn.draft_after_ms"),
            endpointing=EndpointingOptions.from_settings(settings),
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What the turn came to. `timings_ms` holds the stages and clock A (`commit_to_first_audio`); `drafted` says
    whether the answer was ready before the commit. `audio` yields int16 chunks at `rate`, first chunk at once."""

    transcript: Transcript
    prepared: Prepared
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    drafted: bool

    @property
    def audio(self) -> AsyncIterator[np.ndarray[tuple[int], np.dtype[np.int16]]]:
        return self.prepared.audio()


@dataclass(frozen=True, slots=True)
class _Draft:
    generation: int
    text: str
    task: asyncio.Task[Prepared]


class Turn:
    """A student's question from first sound to first sound of the answer, push-to-talk.

    `hear` frames as they come, then `commit` once (or `transcribe`, and `answer` where an answer is asked for); or
    `close` at any moment. Use `async with Turn.open(...)`.
    """

    def __init__(
        self,
        runtime: Runtime,
        dialogue: Dialogue,
        context: Context,
        options: TurnOptions,
        detection: LiveDetection | None,
        transcription: LiveTranscription,
        rungs: dict[str, str],
    ) -> None:
        self._clock = runtime.clock
        self._telemetry = runtime.telemetry
        self._dialogue = dialogue
        self._context = context
        self._options = options
        self._detection = detection
        self._transcription = transcription
        self._rungs = rungs
        self._endpointer = Endpointer(options.endpointing)
        self._state = TurnState.LISTENING
        self._lead: deque[Float32] = deque()
        self._speech_started = detection is None
        self._transcribed_samples = 0
        self._partial = ""
        self._still_samples = 0
        self._is_settled = False
        self._has_guessed = False
        self._generation = 0
        self._draft: _Draft | None = None
        self._committed = self._transcribed = 0.0
        self._transcript: Transcript | None = None

    @classmethod
    async def open(
        cls, runtime: Runtime, dialogue: Dialogue, context: Context, options: TurnOptions, *, detecting: bool = True
    ) -> Self:
        """Open the streams. Raises UnsupportedLanguageError where no rung hears the language, NoRungError.

        Without `detecting` all that is heard is taken for speech: whoever listens has found it already.
        """
        heard = await runtime.submit(Capability.TRANSCRIBE, dialogue.vocabulary(), context)
        if not detecting:
            rungs = {Capability.TRANSCRIBE.value: heard.rung}
            return cls(runtime, dialogue, context, options, None, heard.value, rungs)
        try:
            found = await runtime.submit(Capability.DETECT, DetectRequest(), context)
        except BaseException:
            await heard.value.close()
            raise
        rungs = {Capability.TRANSCRIBE.value: heard.rung, Capability.DETECT.value: found.rung}
        return cls(runtime, dialogue, context, options, found.value, heard.value, rungs)

    @property
    def state(self) -> TurnState:
        return self._state

    @property
    def partial(self) -> str:
        """The hypothesis so far; any of it may change until the commit."""
        return self._partial

    @property
    def speech_started(self) -> bool:
        return self._speech_started

    async def hear(self, samples: Float32) -> None:
        """Take the next float32 samples at 16 kHz. Raises AudioTooLongError beyond the longest question."""
        self._expect(TurnState.LISTENING, "hear")
        if self._detection is None:
            await self._transcribe(samples)
            return
        events = [self._endpointer.feed(probability) for probability in await self._detection.feed(samples)]
        silent = self._endpointer.state in (SpeechState.SILENCE, SpeechState.STARTING)
        pausing = self._transcription.takes_pauses and self._endpointer.paused_ms > TAIL_MS
        if not (silent or pausing) and self._lead:
            samples = np.concatenate([*self._lead, samples])
            self._lead.clear()
        self._speech_started |= any(isinstance(event, SpeechStarted) for event in events)
        if silent or pausing:
            self._remember(samples, all_of_it=not silent)
        else:
            await self._transcribe(samples)
        if not self._endpointer.paused_ms:
            self._has_guessed = False
        guessing = self._transcription.takes_pauses and self._endpointer.paused_ms > GUESS_MS
        if (pausing and not self._is_settled) or (guessing and not self._has_guessed):
            self._has_guessed = True
            await self._pause()

    def hurry(self) -> None:
        """The student has finished, and `commit` or `transcribe` comes once all that waits was heard."""
        self._transcription.hurry()

    async def commit(self) -> Reply:
        """The student has finished. Returns when the first sound of the answer is ready to leave.

        Raises NothingHeardError where there was no speech, or no word of it could be made out.
        """
        with span("turn", tenant=self._context.tenant) as traced:
            await self.transcribe()
            reply = await self.answer()
            traced.tell(drafted=reply.drafted)
            return reply

    async def transcribe(self) -> Transcript:
        """The student has finished: the final text. A drafted answer is held on. Raises NothingHeardError."""
        self._expect(TurnState.LISTENING, "transcribe")
        self._state = TurnState.TRANSCRIBED
        self._committed = self._clock.now()
        if not self._speech_started:
            raise NothingHeardError(
                "no speech was found in the sound", next_step="speak closer to the microphone, or type: aula ask --text"
            )
        with span("transcribe.commit"):
            self._transcript = await self._transcription.commit()
        self._transcribed = self._clock.now()
        return self._transcript

    async def answer(self) -> Reply:
        """The answer, its first sound ready to leave: the draft, where it answers what was transcribed."""
        self._expect(TurnState.TRANSCRIBED, "answer")
        transcript = self._transcript
        if transcript is None:
            raise RuntimeError("answer() needs a transcript, and there is none")
        self._state = TurnState.COMMITTED
        asked = self._clock.now()
        prepared, drafted = await self._prepared(transcript)
        first_audio = self._clock.now()
        self._dialogue.confirm(prepared)
        self._telemetry.add(DRAFTS, "hit" if drafted else "miss")
        # What passed between transcript and question for an answer was the caller's time, and no stage of ours.
        waited = asked - self._transcribed
        self._telemetry.observe(TURN_SECONDS, first_audio - self._committed - waited)
        timings = {
            "transcribe": 1000 * (self._transcribed - self._committed),
            **prepared.timings_ms,
            "commit_to_first_audio": 1000 * (first_audio - self._committed - waited),
        }
        rounded = {stage: round(milliseconds, 3) for stage, milliseconds in timings.items()}
        return Reply(transcript, prepared, {**self._rungs, **prepared.rungs}, rounded, drafted)

    async def close(self) -> None:
        """Give everything back; an unreleased draft is thrown away. Lawful at any time, twice too."""
        if self._state is TurnState.CLOSED:
            return
        self._state = TurnState.CLOSED
        try:
            await self._discard_draft()
        finally:
            try:
                await self._transcription.close()
            finally:
                if self._detection is not None:
                    await self._detection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _expect(self, state: TurnState, call: str) -> None:
        if self._state is not state:
            raise RuntimeError(f"{call}() needs a turn that is {state}; this one is {self._state}")

    def _remember(self, samples: Float32, *, all_of_it: bool) -> None:
        """Keep the last moments before speech, since its first sound is softer than the threshold; of a pause that is
        no silence yet all."""
        self._lead.append(samples)
        if all_of_it:
            return
        endpointing = self._options.endpointing
        room = (endpointing.lead_ms + endpointing.start_ms) * SPEECH_RATE // 1000
        while sum(map(len, self._lead)) - len(self._lead[0]) >= room:
            self._lead.popleft()

    async def _transcribe(self, samples: Float32) -> None:
        self._transcribed_samples += len(samples)
        if self._transcribed_samples > self._options.max_seconds * SPEECH_RATE:
            raise AudioTooLongError(
                f"the question is longer than {self._options.max_seconds:g} seconds",
                next_step="cut it to the question itself, or raise question.max_seconds",
            )
        self._is_settled = False
        partial = await self._transcription.feed(samples)
        if partial.text != self._partial:
            self._partial = partial.text
            self._still_samples = 0
            return
        self._still_samples += len(samples)
        still_long_enough = 1000 * self._still_samples >= self._options.draft_after_ms * SPEECH_RATE
        if self._partial and still_long_enough and (self._draft is None or self._draft.text != self._partial):
            await self._start_draft(self._partial)

    async def _pause(self) -> None:
        """The recogniser may have its final text; the answer to that need not wait for it to hold still."""
        partial = await self._transcription.pause(self._endpointer.paused_ms / 1000)
        self._is_settled, self._partial = partial.settled, partial.text
        if partial.settled and partial.text and (self._draft is None or self._draft.text != partial.text):
            await self._start_draft(partial.text)

    async def _start_draft(self, text: str) -> None:
        await self._discard_draft()
        self._generation += 1
        self._draft = _Draft(self._generation, text, asyncio.create_task(self._dialogue.prepare(text, self._context)))

    async def _discard_draft(self) -> None:
        draft, self._draft = self._draft, None
        if draft is None:
            return
        draft.task.cancel()
        # Waiting on the set does not swallow a cancellation of our own, as awaiting the task would.
        await asyncio.wait({draft.task})
        if not draft.task.cancelled() and draft.task.exception() is None:
            await draft.task.result().close()

    async def _prepared(self, transcript: Transcript) -> tuple[Prepared, bool]:
        if transcript.confidence is not None and transcript.confidence < self._options.min_confidence:
            await self._discard_draft()
            return await self._dialogue.prepare_unclear(self._context), False
        draft = self._draft
        if draft is not None and draft.generation == self._generation and draft.text == transcript.text:
            self._draft = None
            with contextlib.suppress(Exception):  # what broke the draft will say so again, to whom it concerns
                return await draft.task, True
        await self._discard_draft()
        return await self._dialogue.prepare(transcript.text, self._context), False
