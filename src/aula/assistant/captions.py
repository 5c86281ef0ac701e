"""Captions: what is said and when, as WebVTT or SRT, written while it is heard."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Literal, TextIO

from aula.audio.decoding import open_audio
from aula.core.clock import Clock
from aula.core.errors import AudioError, NothingHeardError
from aula.core.types import SPEECH_RATE, Capability, Context, Float32, Segment, TranscribeRequest
from aula.runtime import Runtime

Form = Literal["vtt", "srt"]
FORMS: tuple[Form, ...] = ("vtt", "srt")

LINE = 42
"""Letters of a line at the most (EBU and BBC subtitle guidelines say 37 to 42)."""

BLOCK_MS = 1000
"""Of a file, for which nobody waits."""

Watch = Callable[[float, str], None]
"""Told the seconds that were heard, and the hypothesis after the last caption."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """`lags` are, for each caption of a live sound, the seconds from its last word to its being written."""

    captions: int
    seconds: float
    took: float
    rung: str
    lags: tuple[float, ...]


class CaptionWriter:
    """Writes each caption as soon as it is known, so that a file that is still growing can be shown."""

    def __init__(self, stream: TextIO, form: Form) -> None:
        self._stream, self._form = stream, form
        self._count = 0
        if form == "vtt":
            self._write("WEBVTT\n\n")

    @property
    def count(self) -> int:
        return self._count

    def add(self, segment: Segment) -> None:
        self._count += 1
        times = f"{_time(segment.start, self._form)} --> {_time(segment.end, self._form)}"
        text = segment.text if self._form == "srt" else _escaped(segment.text)
        number = f"{self._count}\n" if self._form == "srt" else ""
        self._write(f"{number}{times}\n{chr(10).join(_lines(text))}\n\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


async def caption_file(
    runtime: Runtime, path: Path, context: Context, writer: CaptionWriter, watch: Watch | None = None
) -> Captioned:
    """As fast as it is read, in memory that does not grow with it. Raises what `open_audio`, `AudioFile.frames` and
    the runtime raise; what is heard before a file breaks off is written first."""
    with open_audio(path) as file:
        request = TranscribeRequest(timestamps=True, partials=False)
        return await _caption(runtime, _as_they_are(file.frames(BLOCK_MS)), request, context, writer, watch, live=False)


async def caption_frames(
    runtime: Runtime,
    frames: AsyncIterator[Float32],
    context: Context,
    writer: CaptionWriter,
    watch: Watch | None = None,
) -> Captioned:
    """Live: a caption is written as soon as two hypotheses agree on it. Raises what the runtime raises, and, once all
    that was heard is written, what `frames` raises."""
    request = TranscribeRequest(timestamps=True, early=True)
    return await _caption(runtime, frames, request, context, writer, watch, live=True)


async def _caption(
    runtime: Runtime,
    frames: AsyncIterator[Float32],
    request: TranscribeRequest,
    context: Context,
    writer: CaptionWriter,
    watch: Watch | None,
    *,
    live: bool,
) -> Captioned:
    outcome = await runtime.submit(Capability.TRANSCRIBE, request, context)
    stream, clock = outcome.value, runtime.clock
    lags = _Lags(clock, live=live)
    samples, told = 0, 0
    broken: AudioError | None = None
    try:
        try:
            async for frame in frames:
                samples += len(frame)
                lags.heard(len(frame))
                partial = await stream.feed(frame)
                for segment in partial.finished:
                    writer.add(segment)
                    told += len(segment.text) + 1
                    lags.written(segment)
                if watch is not None:
                    watch(samples / SPEECH_RATE, partial.text[told:])
        except AudioError as error:
            broken = error  # what was heard before it is written all the same
        try:
            transcript = await stream.commit()
        except NothingHeardError:
            rest: tuple[Segment, ...] = ()
        else:
            rest = transcript.segments[writer.count :]
        for segment in rest:
            writer.add(segment)
            lags.written(segment)
    finally:
        await stream.close()
    if broken is not None:
        raise broken
    return Captioned(writer.count, samples / SPEECH_RATE, lags.took, outcome.rung, tuple(lags.of))


class _Lags:
    """A live sound's first frame was complete when it was heard; what follows is that much later."""

    def __init__(self, clock: Clock, *, live: bool) -> None:
        self._clock, self._live = clock, live
        self._began: float | None = None
        self._opened = clock.now()
        self.of: list[float] = []

    def heard(self, samples: int) -> None:
        if self._began is None:
            self._began = self._clock.now() - samples / SPEECH_RATE

    def written(self, segment: Segment) -> None:
        if self._live and self._began is not None:
            self.of.append(self._clock.now() - self._began - segment.end)

    @property
    def took(self) -> float:
        return self._clock.now() - self._opened


async def _as_they_are(frames: Iterator[Float32]) -> AsyncIterator[Float32]:
    for frame in frames:
        yield frame


def _time(seconds: float, form: Form) -> str:
    milliseconds = round(1000 * seconds)
    whole, rest = divmod(milliseconds, 1000)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{',' if form == 'srt' else '.'}{rest:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _lines(text: str) -> list[str]:
    """A blank line would end the caption."""
    return wrap(" ".join(text.split()), LINE, break_long_words=False, break_on_hyphens=False)
