"""Captions of a lecture while it is held: sound in, captions and the words that may still change out.

A recogniser that tells times finishes captions by itself, as soon as two hypotheses agree, and its stream stays open.
One that does not (the last rung) is asked for its text at each pause, and after `LONGEST_SECONDS` of speech without.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from aula.assistant.endpointing import Endpointer, EndpointingOptions, SpeechStarted, SpeechState, SpeechStopped
from aula.core.errors import NothingHeardError
from aula.core.types import SPEECH_RATE, Capability, Context, DetectRequest, Float32, Segment, TranscribeRequest
from aula.runtime import LiveDetection, LiveTranscription, Runtime

LONGEST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Caption:
    """Final. Seconds of the lecture; `lag`: from its last word to its being known."""

    start: float
    end: float
    text: str
    lag: float


@dataclass(frozen=True, slots=True)
class Words:
    """What was made of the sound after the last caption; all of it may still change."""

    text: str


class Lecture:
    """Use `async with await Lecture.open(...)`; `hear` and `end` return what there is to show."""

    def __init__(
        self,
        runtime: Runtime,
        request: TranscribeRequest,
        context: Context,
        endpointing: EndpointingOptions,
        detection: LiveDetection,
    ) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._request = replace(request, timestamps=True, early=True)
        self._context = context
        self._endpointer = Endpointer(endpointing)
        self._detection = detection
        self._stream: LiveTranscription | None = None
        self._tells_times = False
        self._lead: deque[Float32] = deque()
        self._heard = 0
        """Samples of the lecture so far."""
        self._began = 0
        """The sample that the open stream begins with."""
        self._finished = 0
        self._told = 0
        """Captions and letters of the open stream that are final."""
        self._shown = ""
        self._opened_at: float | None = None
        self.rung = ""

    @classmethod
    async def open(
        cls, runtime: Runtime, request: TranscribeRequest, context: Context, endpointing: EndpointingOptions
    ) -> Self:
        """Raises what the runtime raises."""
        found = await runtime.submit(Capability.DETECT, DetectRequest(), context)
        return cls(runtime, request, context, endpointing, found.value)

    async def hear(self, samples: Float32) -> list[Caption | Words]:
        """The next float32 samples at 16 kHz. Raises what the runtime raises."""
        if self._opened_at is None:
            self._opened_at = self._clock.now() - len(samples) / SPEECH_RATE
        told: list[Caption | Words] = []
        events = [self._endpointer.feed(probability) for probability in await self._detection.feed(samples)]
        self._heard += len(samples)
        speaks = self._endpointer.state not in (SpeechState.SILENCE, SpeechState.STARTING)
        if self._stream is None and not speaks and not any(isinstance(one, SpeechStarted) for one in events):
            self._remember(samples)
            return told
        if self._stream is None:
            samples = np.concatenate([*self._lead, samples])
            self._lead.clear()
            await self._begin(self._heard - len(samples))
        told += await self._feed(samples)
        paused = any(isinstance(event, SpeechStopped) for event in events)
        too_long = self._heard - self._began > LONGEST_SECONDS * SPEECH_RATE
        if not self._tells_times and (paused or too_long):
            told += await self._finish()
        return told

    async def end(self) -> list[Caption | Words]:
        """The lecture is over: the last words, final."""
        return await self._finish()

    async def close(self) -> None:
        """Lawful twice, and at any time."""
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                await stream.close()
        finally:
            await self._detection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _begin(self, at: int) -> None:
        outcome = await self._runtime.submit(Capability.TRANSCRIBE, self._request, self._context)
        self._stream, self.rung = outcome.value, outcome.rung
        self._began, self._finished, self._told = at, 0, 0

    async def _feed(self, samples: Float32) -> list[Caption | Words]:
        assert self._stream is not None
        partial = await self._stream.feed(samples)
        told: list[Caption | Words] = [self._caption(segment) for segment in partial.finished]
        self._tells_times |= bool(partial.finished)
        self._finished += len(partial.finished)
        self._told += sum(len(segment.text) + 1 for segment in partial.finished)
        words = partial.text[self._told :].strip()
        if words != self._shown or partial.finished:
            self._shown = words
            told.append(Words(words))
        return told

    async def _finish(self) -> list[Caption | Words]:
        stream, self._stream = self._stream, None
        if stream is None:
            return []
        self._shown = ""
        try:
            transcript = await stream.commit()
        except NothingHeardError:
            return [Words("")]
        finally:
            await stream.close()
        self._tells_times |= bool(transcript.segments)
        if transcript.segments:
            segments = transcript.segments[self._finished :]
        else:
            segments = (Segment(0.0, (self._heard - self._began) / SPEECH_RATE, transcript.text),)
        return [*map(self._caption, segments), Words("")]

    def _caption(self, segment: Segment) -> Caption:
        offset = self._began / SPEECH_RATE
        start, end = segment.start + offset, segment.end + offset
        assert self._opened_at is not None
        return Caption(start, end, segment.text.strip(), self._clock.now() - self._opened_at - end)

    def _remember(self, samples: Float32) -> None:
        """The last moments before speech, whose first sound is softer than the threshold."""
        self._lead.append(samples)
        options = self._endpointer.options
        room = (options.lead_ms + options.start_ms) * SPEECH_RATE // 1000
        while sum(map(len, self._lead)) - len(self._lead[0]) >= room:
            self._lead.popleft()
