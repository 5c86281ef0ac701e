"""POST /v1/audio/speech"""

import asyncio
import base64
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aula.assistant.languages import detect_language, length
from aula.assistant.voice import Sound, Voice
from aula.audio.stream_encoding import FORMATS, SoundStream
from aula.core.types import Capability, Int16, SpeakRequest
from aula.servers.callers import deadline_of, when_gone
from aula.servers.house import House
from aula.servers.openai.models import check_model
from aula.servers.openai.shapes import SpeechDelta, SpeechDone, SpeechRequest, Usage
from aula.servers.openai.wire import RUNG, FieldError, events, read_json

USUAL_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's names, which programs have written down: here they all mean the usual voice of the language."""


class Speech:
    def __init__(self, house: House) -> None:
        self._house = house
        self._voice = Voice(house.runtime, house.settings)

    async def create(self, request: Request) -> Response:
        caller = self._house.doorman.admit(request, "speak")
        deadline = deadline_of(request, self._house.runtime.clock)
        wanted = await read_json(request, SpeechRequest)
        check_model(wanted.model, Capability.SPEAK)
        if wanted.response_format not in FORMATS:
            raise FieldError(
                f"nothing here encodes {wanted.response_format}",
                param="response_format",
                available=list(FORMATS),
                next_step="choose one of these formats",
                code="unsupported_format",
            )
        context = caller.context(wanted.language or detect_language(wanted.input), deadline)
        sound = await self._voice.say(self._request(wanted), context)
        when_gone(request.scope, sound.close)
        first = await anext(sound.chunks, None)  # before the status is sent: whatever is wrong shows by now
        stream = SoundStream(wanted.response_format, sound.rate)
        pieces = _pieces(stream, first, sound)
        if wanted.stream_format == "sse":
            return events(_told(pieces, wanted.input), sound.rung, done=False)
        return StreamingResponse(pieces, 200, {RUNG: sound.rung}, stream.format.media_type)

    def _request(self, wanted: SpeechRequest) -> SpeakRequest:
        voice = wanted.voice if isinstance(wanted.voice, str) else wanted.voice.id
        usual = self._house.settings.whole("speech.words_per_minute")
        pace = round(usual * wanted.speed) if wanted.speed != 1.0 else None
        return SpeakRequest(wanted.input, None if voice in USUAL_VOICES else voice, pace)


async def _pieces(stream: SoundStream, first: Int16 | None, sound: Sound) -> AsyncIterator[bytes]:
    """Encoded sound as it is made. Encoders take their time, and so have threads of their own."""
    if first is not None and (raw := await asyncio.to_thread(stream.feed, first)):
        yield raw
    async for chunk in sound.chunks:
        if raw := await asyncio.to_thread(stream.feed, chunk):
            yield raw
    if raw := await asyncio.to_thread(stream.finish):
        yield raw


async def _told(pieces: AsyncIterator[bytes], text: str) -> AsyncIterator[SpeechDelta | SpeechDone]:
    async for piece in pieces:
        yield SpeechDelta(base64.b64encode(piece).decode("ascii"))
    words = length(text, detect_language(text))
    yield SpeechDone(Usage(words, 0, words))
