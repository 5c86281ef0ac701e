"""Text to the sound of it: from the cache where it was said before, else from the `speak` rung, and then kept."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from aula.assistant.speaking import SpeechCache, speech_key
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Int16, SpeakRequest
from aula.runtime import LiveSpeech, Runtime

CACHE_RUNG = "cache"
"""What a reply names as its `speak` rung when it was spoken before."""


@dataclass(eq=False)
class Sound:
    """int16 chunks at `rate`; `close` stops the voice, lawful twice."""

    rung: str
    rate: int
    chunks: AsyncIterator[Int16]
    live: LiveSpeech | None = None

    async def close(self) -> None:
        if self.live is not None:
            await self.live.aclose()


class Voice:
    """Speaks answers and remembers how they sound."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._cache = SpeechCache.from_settings(settings)

    async def say(self, request: SpeakRequest, context: Context) -> Sound:
        """Raises UnsupportedLanguageError and NoRungError where nothing speaks the language."""
        key = self._key(request, context)
        if (kept := self._cache.cached(key)) is not None:
            return Sound(CACHE_RUNG, kept.rate, _each(kept.chunks))
        outcome = await self._runtime.submit(Capability.SPEAK, request, context)
        live: LiveSpeech = outcome.value
        return Sound(outcome.rung, live.rate, self._cache.recorded(key, live, live.rate), live)

    def _key(self, request: SpeakRequest, context: Context) -> str:
        usual = {"en": "speech.voice_en", "zh": "speech.voice_zh"}.get(context.language)
        voice = request.voice or (self._settings.text(usual) if usual else "")
        pace = request.words_per_minute or self._settings.whole("speech.words_per_minute")
        return speech_key(request.text, context.language, voice, words_per_minute=pace)


async def _each(chunks: Iterable[Int16]) -> AsyncIterator[Int16]:
    for chunk in chunks:
        yield chunk
