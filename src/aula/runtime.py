"""Floor 4: joins models and serves capabilities. Everything above asks here: `await runtime.submit(...)`.

Each loaded model lives in one worker thread, since none of them may be called from two; the event loop stays free.
A capability has rungs, best first. One that cannot be loaded, or that fails, is left for the next; every outcome
names the rung that served it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType
from typing import Any, Self, TypeVar

from aula.core.capabilities import DetectionStream, TranscriptionStream
from aula.core.clock import Clock, SystemClock
from aula.core.errors import (
    AulaError,
    DeadlineError,
    EngineError,
    NoRungError,
    SettingsError,
    StorageError,
    UnsupportedLanguageError,
)
from aula.core.settings import Settings
from aula.core.types import (
    Capability,
    Context,
    DetectRequest,
    Float32,
    Int16,
    Outcome,
    Partial,
    RungInfo,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
)
from aula.engine.precision import Progress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to serve a capability. `load` runs in the thread named `worker`; rungs on one model share both."""

    info: RungInfo
    worker: str
    load: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class RungStatistics:
    name: str
    capability: Capability
    served: int
    failed: int
    unavailable: str | None


@dataclass(frozen=True, slots=True)
class RungReport:
    """What loading a rung came to: `load_ms` in milliseconds, or the `error` that keeps it from serving."""

    info: RungInfo
    load_ms: float
    error: AulaError | None


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """submitted = answered + refused + failed + cancelled + in flight."""

    submitted: int
    answered: int
    refused: int
    failed: int
    cancelled: int
    rungs: tuple[RungStatistics, ...]


class _Loaded:
    """A rung with its model, its thread and its history."""

    def __init__(self, rung: Rung, executor: ThreadPoolExecutor) -> None:
        self.rung = rung
        self.executor = executor
        self.model: Any = None
        self.unavailable: AulaError | None = None
        self.served = 0
        self.failed = 0

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *arguments))

    async def load(self) -> Any:
        """The model, loaded once, in its own thread (which also puts rival loads in line)."""
        return await self.call(self._load) if self.model is None else self.model

    def _load(self) -> Any:
        if self.model is None:
            self.model = self.rung.load()
        return self.model


class LiveTranscription:
    """A transcription stream whose work is done in the rung's thread."""

    def __init__(self, loaded: _Loaded, stream: TranscriptionStream) -> None:
        self._loaded = loaded
        self._stream = stream

    async def feed(self, samples: Float32) -> Partial:
        return await self._loaded.call(self._stream.feed, samples)

    async def commit(self) -> Transcript:
        return await self._loaded.call(self._stream.commit)

    async def close(self) -> None:
        await self._loaded.call(self._stream.close)


class LiveDetection:
    """A detection stream whose work is done in the rung's thread."""

    def __init__(self, loaded: _Loaded, stream: DetectionStream) -> None:
        self._loaded = loaded
        self._stream = stream

    async def feed(self, samples: Float32) -> list[float]:
        return await self._loaded.call(self._stream.feed, samples)

    async def close(self) -> None:
        await self._loaded.call(self._stream.close)


class Runtime:
    """Serves capabilities from rungs. Use as an async context manager; leaving it frees models and threads."""

    def __init__(
        self, rungs: Sequence[Rung], clock: Clock | None = None, stopping: threading.Event | None = None
    ) -> None:
        """`stopping` is set when the runtime closes, so that a load that takes long can give up."""
        self.clock = clock or SystemClock()
        self._stopping = stopping or threading.Event()
        workers = {rung.worker for rung in rungs}
        self._executors = {name: ThreadPoolExecutor(1, thread_name_prefix=f"aula-{name}") for name in workers}
        self._loaded = [_Loaded(rung, self._executors[rung.worker]) for rung in rungs]
        self._counts = dict.fromkeys(("submitted", "answered", "refused", "failed", "cancelled"), 0)

    async def submit(self, capability: Capability, payload: Any, context: Context) -> Outcome:
        """Serve one request on the best rung that can.

        | capability | payload           | value of the outcome                           |
        |------------|-------------------|------------------------------------------------|
        | DETECT     | DetectRequest     | LiveDetection                                  |
        | TRANSCRIBE | TranscribeRequest | LiveTranscription                              |
        | UNDERSTAND | str               | Understanding                                  |
        | EMBED      | sequence of str   | float32 [n, d]                                 |
        | SPEAK      | SpeakRequest      | async iterator of int16 chunks, and their rate |

        Raises DeadlineError before any work when the deadline is past, UnsupportedLanguageError when no rung
        knows the language, NoRungError when every rung that knows it is out of order, and the errors that
        belong to the request itself.
        """
        self._counts["submitted"] += 1
        end = "failed"
        try:
            outcome = await self._serve(capability, payload, context)
            end = "answered"
            return outcome
        except (DeadlineError, UnsupportedLanguageError, NoRungError):
            end = "refused"
            raise
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        finally:
            self._counts[end] += 1

    async def warm(self, context: Context, capabilities: Iterable[Capability] = tuple(Capability)) -> None:
        """Load the best rung of each capability now, so that the first request does not pay for it."""
        for capability in capabilities:
            for loaded in self._able(capability, context):
                if await self._model(loaded) is not None:
                    break

    async def probe(self) -> list[RungReport]:
        """Load every rung, also those that would only serve when a better one fails, and say what came of it."""
        reports = []
        for loaded in self._loaded:
            start = self.clock.now()
            try:
                await self._model(loaded)
            except (SettingsError, StorageError) as error:
                loaded.unavailable = error
            load_ms = 1000 * (self.clock.now() - start)
            reports.append(RungReport(loaded.rung.info, load_ms, loaded.unavailable))
        return reports

    def statistics(self) -> RuntimeStatistics:
        rungs = tuple(
            RungStatistics(
                loaded.rung.info.name,
                loaded.rung.info.capability,
                loaded.served,
                loaded.failed,
                str(loaded.unavailable) if loaded.unavailable else None,
            )
            for loaded in self._loaded
        )
        return RuntimeStatistics(**self._counts, rungs=rungs)

    async def close(self) -> None:
        """Close every model in its own thread, then end the threads. A load that is under way is told to stop."""
        self._stopping.set()
        closed: set[int] = set()
        for loaded in self._loaded:
            if loaded.model is not None and id(loaded.model) not in closed and hasattr(loaded.model, "close"):
                closed.add(id(loaded.model))
                await loaded.call(loaded.model.close)
            loaded.model = None
        for executor in self._executors.values():
            executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _serve(self, capability: Capability, payload: Any, context: Context) -> Outcome:
        if context.deadline is not None and self.clock.now() >= context.deadline:
            raise DeadlineError(
                f"the deadline passed before {capability} could start", next_step="ask again, or allow more time"
            )
        able = self._able(capability, context)
        for loaded in able:
            if await self._model(loaded) is None:
                continue
            try:
                value = await self._call(loaded, capability, payload, context)
            except EngineError as error:
                loaded.failed += 1
                loaded.unavailable = error
                continue
            loaded.served += 1
            return Outcome(value, loaded.rung.info.name)
        reasons = [f"{loaded.rung.info.name} ({loaded.unavailable})" for loaded in able]
        raise NoRungError(
            f"nothing on this machine can {capability} now: {'; '.join(reasons)}", next_step="run: aula doctor"
        )

    def _able(self, capability: Capability, context: Context) -> list[_Loaded]:
        rungs = [loaded for loaded in self._loaded if loaded.rung.info.capability is capability]
        able = [loaded for loaded in rungs if loaded.rung.info.serves(context.language)]
        if rungs and not able:
            raise UnsupportedLanguageError(
                f"nothing here can {_VERBS[capability]} the language {context.language!r}",
                available=sorted({language for loaded in rungs for language in loaded.rung.info.languages}),
                next_step=_LANGUAGE_ADVICE.get(capability, "choose one of these languages"),
            )
        return able

    async def _model(self, loaded: _Loaded) -> Any:
        """The rung's model, or None where it cannot be loaded (now or earlier)."""
        if loaded.unavailable is not None:
            return None
        try:
            return await loaded.load()
        except (SettingsError, StorageError):
            raise  # the user can mend these, and no other rung should hide them
        except AulaError as error:
            failure = error
        except Exception as error:  # whatever a foreign library raises, the next rung may still serve
            failure = EngineError(
                f"{loaded.rung.info.name} failed to load: {type(error).__name__}: {error}", next_step="run: aula doctor"
            )
            failure.__cause__ = error
        loaded.failed += 1
        loaded.unavailable = failure
        return None

    async def _call(self, loaded: _Loaded, capability: Capability, payload: Any, context: Context) -> Any:
        model = loaded.model
        match capability, payload:
            case Capability.DETECT, DetectRequest():
                return LiveDetection(loaded, await loaded.call(model.start, payload, context))
            case Capability.TRANSCRIBE, TranscribeRequest():
                return LiveTranscription(loaded, await loaded.call(model.start, payload, context))
            case Capability.UNDERSTAND, str():
                return await loaded.call(model.understand, payload, context)
            case Capability.EMBED, _:
                return await loaded.call(model.embed, payload)
            case Capability.SPEAK, SpeakRequest():
                # The request itself is judged now; the sound comes later, chunk by chunk.
                chunks = await loaded.call(model.speak, payload, context)
                return LiveSpeech(loaded, chunks, model.rate)
        raise TypeError(f"{capability} does not take {type(payload).__name__}")


class LiveSpeech:
    """Async iterator of int16 chunks made in the rung's thread, with their `rate`; `aclose` stops the voice."""

    def __init__(self, loaded: _Loaded, chunks: Any, rate: int) -> None:
        self._loaded = loaded
        self._chunks = chunks
        self.rate = rate

    def __aiter__(self) -> AsyncIterator[Int16]:
        return self

    async def __anext__(self) -> Int16:
        # A StopIteration cannot cross a future, so the end is told by a value.
        chunk: Int16 | None = await self._loaded.call(next, self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        if hasattr(self._chunks, "close"):
            await self._loaded.call(self._chunks.close)


_VERBS = {
    Capability.DETECT: "find speech in",
    Capability.TRANSCRIBE: "hear",
    Capability.UNDERSTAND: "understand",
    Capability.EMBED: "embed",
    Capability.SPEAK: "speak",
}
_LANGUAGE_ADVICE = {
    Capability.TRANSCRIBE: 'type the question instead: aula ask --text "..."',
    Capability.SPEAK: "read the answer on the screen, or choose a course in one of these languages",
}


def open_runtime(settings: Settings, *, clock: Clock | None = None, progress: Progress | None = None) -> Runtime:
    """A runtime with every rung this package knows. Nothing is loaded before it is first asked for.

    `progress` hears what an engine build is doing, from the thread that builds.
    """
    from aula.models import bert, espeak, intents, silero

    stopping = threading.Event()
    report = _reporter(stopping, progress)

    @cache
    def encoder() -> bert.SentenceEncoder:
        return bert.SentenceEncoder.minilm(settings, report)

    return Runtime(
        [
            Rung(silero.INFO, "detect", silero.SileroDetector),
            *_hearing_rungs(settings, clock, report),
            Rung(
                bert.UNDERSTAND_INFO,
                "encode",
                lambda: intents.IntentUnderstander(encoder(), settings.home / "engines"),
            ),
            Rung(bert.EMBED_INFO, "encode", encoder),
            Rung(espeak.INFO, "speak", lambda: espeak.EspeakSpeaker(settings)),
        ],
        clock,
        stopping,
    )


def open_hearing(
    settings: Settings, *, clock: Clock | None = None, progress: Progress | None = None, last_resort: bool = True
) -> Runtime:
    """As `open_runtime`, for `transcribe` alone. Without `last_resort` only Whisper serves."""
    stopping = threading.Event()
    rungs = _hearing_rungs(settings, clock, _reporter(stopping, progress))
    return Runtime(rungs if last_resort else rungs[:-1], clock, stopping)


def _hearing_rungs(settings: Settings, clock: Clock | None, report: Progress) -> list[Rung]:
    """Every Whisper at hand, the best first, and PocketSphinx."""
    from aula.models import sphinx, whisper_transcriber

    def whisper(place: whisper_transcriber.Place) -> Rung:
        return Rung(
            place.info,
            "transcribe",
            lambda: whisper_transcriber.WhisperTranscriber.open(place, settings, report, clock),
        )

    return [
        *(whisper(place) for place in whisper_transcriber.find_places(settings)),
        Rung(sphinx.INFO, "transcribe", lambda: sphinx.SphinxTranscriber(settings)),
    ]


def _reporter(stopping: threading.Event, progress: Progress | None) -> Progress:
    def report(what: str, share: float) -> None:
        if stopping.is_set():
            raise InterruptedError("the runtime is closing")
        if progress is not None:
            progress(what, share)

    return report
