"""POST /v1/audio/transcriptions"""

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from aula.assistant.captions import CaptionWriter, Form
from aula.audio.decoding import AudioFile, open_audio
from aula.core.errors import AudioTooLongError, NothingHeardError
from aula.core.types import SPEECH_RATE, UNKNOWN_LANGUAGE, Capability, Context, Segment, TranscribeRequest
from aula.servers.callers import deadline_of, when_gone
from aula.servers.house import House
from aula.servers.openai.forms import read_form
from aula.servers.openai.models import check_model
from aula.servers.openai.shapes import (
    Duration,
    TextDelta,
    TextDone,
    Transcription,
    TranscriptionForm,
    TranscriptionSegment,
    VerboseTranscription,
)
from aula.servers.openai.wire import RUNG, FieldError, events, field_error, reply

BLOCK_MS = 1000
_LISTS = {"timestamp_granularities[]": "timestamp_granularities", "timestamp_granularities": "timestamp_granularities"}
_MEDIA = {"srt": "application/x-subrip", "vtt": "text/vtt"}


@dataclass(eq=False)
class _Heard:
    """What is known so far; the last of it comes with the end of the sound."""

    rung: str = ""
    seconds: float = 0.0
    text: str = ""
    language: str = UNKNOWN_LANGUAGE
    segments: list[Segment] = field(default_factory=list)

    def timed(self) -> list[Segment]:
        """A rung that tells no times gives one segment."""
        return self.segments or ([Segment(0.0, self.seconds, self.text)] if self.text else [])


class Transcriptions:
    def __init__(self, house: House) -> None:
        self._house = house

    async def create(self, request: Request) -> Response:
        caller = self._house.doorman.admit(request, "transcribe")
        deadline = deadline_of(request, self._house.runtime.clock)
        fields, path = await read_form(request, "file")
        form = _form_of(fields)
        check_model(form.model, Capability.TRANSCRIBE)
        if "word" in form.timestamp_granularities:
            raise FieldError(
                "no rung here tells the times of words",
                param="timestamp_granularities",
                available=["segment"],
                next_step="ask for segments",
            )
        context = caller.context(form.language or UNKNOWN_LANGUAGE, deadline)
        file = await asyncio.to_thread(open_audio, path)
        when_gone(request.scope, file.close)
        self._check_length(file.seconds)
        heard = _Heard()
        pieces = self._hear(request, file, form, context, heard)
        first = await anext(pieces, None)  # before the status is sent: whatever is wrong shows by now
        if form.stream:
            return events(_told(first, pieces, heard), heard.rung)
        async for _ in pieces:
            pass
        return _answer(form.response_format, heard)

    async def _hear(
        self, request: Request, file: AudioFile, form: TranscriptionForm, context: Context, heard: _Heard
    ) -> AsyncIterator[str]:
        """Text as it becomes final, into `heard` too. Raises what decoding and the runtime raise."""
        wants_times = form.stream or form.response_format in ("srt", "vtt", "verbose_json")
        wanted = TranscribeRequest(timestamps=wants_times, partials=form.stream, early=form.stream)
        outcome = await self._house.runtime.submit(Capability.TRANSCRIBE, wanted, context)
        stream, heard.rung, heard.language = outcome.value, outcome.rung, context.language
        when_gone(request.scope, stream.close)
        yield ""
        frames = file.frames(BLOCK_MS)
        samples = 0
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            samples += len(frame)
            heard.seconds = samples / SPEECH_RATE
            self._check_length(heard.seconds)
            partial = await stream.feed(frame)
            for segment in partial.finished:
                heard.segments.append(segment)
                yield segment.text
        try:
            transcript = await stream.commit()
        except NothingHeardError:
            return
        told = len(heard.segments)
        heard.text, heard.language = transcript.text, transcript.language
        heard.segments = list(transcript.segments) or heard.segments
        if told:
            for segment in heard.segments[told:]:
                yield segment.text
        elif heard.text:
            yield heard.text

    def _check_length(self, seconds: float | None) -> None:
        most = self._house.settings.number("serve.max_audio_seconds")
        if seconds is not None and seconds > most:
            raise AudioTooLongError(
                f"the recording lasts more than {most:g} s",
                next_step="send it in parts, or raise serve.max_audio_seconds",
            )


async def _told(first: str | None, pieces: AsyncIterator[str], heard: _Heard) -> AsyncIterator[TextDelta | TextDone]:
    """Deltas that together are the text. What was sent cannot be taken back, so only what is final is."""
    del first  # opens the stream, and is empty
    is_first = True
    async for piece in pieces:
        text = piece.strip() if is_first else f" {piece.strip()}"
        if text.strip():
            is_first = False
            yield TextDelta(text)
    yield TextDone(heard.text)


def _form_of(fields: Iterable[tuple[str, str]]) -> TranscriptionForm:
    """Raises FieldError for a field that cannot be."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in _LISTS:
            values.setdefault(_LISTS[name], []).append(value)
        else:
            values[name] = value
    try:
        return msgspec.convert(values, TranscriptionForm, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(error) from error


def _answer(response_format: str, heard: _Heard) -> Response:
    usage = Duration(round(heard.seconds, 3))
    match response_format:
        case "text":
            return PlainTextResponse(heard.text + "\n", headers={RUNG: heard.rung})
        case "srt" | "vtt" as form:
            return Response(_captions(form, heard), 200, {RUNG: heard.rung}, _MEDIA[form])
        case "verbose_json":
            segments = [
                TranscriptionSegment(index, round(one.start, 3), round(one.end, 3), one.text)
                for index, one in enumerate(heard.timed())
            ]
            seconds = round(heard.seconds, 3)
            return reply(VerboseTranscription(heard.text, heard.language, seconds, segments, usage), heard.rung)
    return reply(Transcription(heard.text, usage), heard.rung)


def _captions(form: Form, heard: _Heard) -> str:
    text = io.StringIO()
    writer = CaptionWriter(text, form)
    for segment in heard.timed():
        writer.add(segment)
    return text.getvalue()
