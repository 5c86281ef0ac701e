"""One kind of work for each call of a capability: how large it is, how it is run, and a try of it that harms nobody."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.capabilities import RawEngine
from aula.core.errors import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    InputError,
    ProcessAwayError,
    ProcessLostError,
)
from aula.core.types import (
    SPEECH_RATE,
    Capability,
    Context,
    DetectRequest,
    Float32,
    Partial,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
    Understanding,
)
from aula.serving.tensors import ELEMENTS, infer

MOST_TEXTS = 8
"""In one batch on a processor: the batch of the encoder's profile `passages`; more gained nothing there."""

TEXTS: Mapping[int, float] = {256: 1.0, 1024: 5.0, 131_072: 20.0}
"""Characters of a text (64 and 256 tokens, and what is cut to 256), and roughly what each costs beside the first."""
SOUND: Mapping[int, float] = {SPEECH_RATE // 10: 1.0, SPEECH_RATE: 10.0, 60 * SPEECH_RATE: 600.0}
"""Samples of a chunk: 100 ms, 1 s, and a minute, which is the longest that may come at once."""
ONCE: Mapping[int, float] = {1: 1.0}

PROBE_TEXT = "What is inertia, and why does a book on a table stay where it is? "
PROBE_WORDS = ("what is a force", "one two three")


Work = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """`run` gives a value for each payload. `buckets`: greatest size of each, and its guessed cost beside the least.
    `work`: the same for one payload of a model that is shared pass by pass: the stream, and what it has to do.
    `is_last`: somebody waits for what a stream comes to."""

    name: str
    run: Callable[[Any, Sequence[Any]], Sequence[Any]]
    buckets: Mapping[int, float]
    most: Callable[[Any], int] = lambda _: 1
    work: Callable[[Any], tuple[Any, Work]] | None = None
    is_last: bool = False


def attempt(task: Task, model: Any, payloads: Sequence[Any]) -> list[Any]:
    """A value or an exception for each payload. Where all of them together fail, each is tried alone, so that a bad
    one harms no other; a device or a process that is gone is not tried again."""
    try:
        values = list(task.run(model, payloads))
        if len(values) != len(payloads):
            raise EngineError(f"{len(values)} values for {len(payloads)} requests", next_step="run: aula doctor")
        return values
    except MemoryError as error:
        failure: Exception = DeviceMemoryError("the memory is full", next_step="send less at once")
        failure.__cause__ = error
    except Exception as error:
        failure = error
    if len(payloads) == 1:
        return [failure]
    if isinstance(failure, (DeviceLostError, ProcessAwayError, ProcessLostError)):
        return [failure] * len(payloads)
    return [value for payload in payloads for value in attempt(task, model, (payload,))]


def _embed(model: Any, payloads: Sequence[tuple[str, ...]]) -> list[Any]:
    vectors = model.embed([text for texts in payloads for text in texts])
    count = sum(map(len, payloads))
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or len(vectors) != count:
        shape = getattr(vectors, "shape", type(vectors).__name__)
        raise EngineError(f"{shape} came back for {count} texts", next_step="run: aula doctor")
    ends = np.cumsum([len(texts) for texts in payloads])
    rows = np.split(vectors, ends[:-1])
    return [part if np.isfinite(part).all() else _not_numbers() for part in rows]


def _understand(model: Any, payloads: Sequence[tuple[str, Context]]) -> list[Any]:
    if len(payloads) > 1:
        values = list(model.understand_many([text for text, _ in payloads], [context for _, context in payloads]))
    else:
        values = [model.understand(*payloads[0])]
    return [_understood(value) for value in values]


def _understood(value: Any) -> Any:
    _expect(value, Understanding)
    whole = math.isfinite(value.confidence) and bool(np.isfinite(value.embedding).all())
    return value if whole else _not_numbers()


def _not_numbers() -> EngineError:
    return EngineError("the model gave NaN or infinity", next_step="run: aula doctor")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise EngineError(
            f"the model gave {type(value).__name__} instead of {kind.__name__}", next_step="run: aula doctor"
        )
    return value


def _start(model: Any, payloads: Sequence[tuple[Any, Context]]) -> list[Any]:
    return [model.start(*payload) for payload in payloads]


def _detect(_model: Any, payloads: Sequence[tuple[Any, Float32]]) -> list[Any]:
    return [_expect(stream.feed(samples), list) for stream, samples in payloads]


def _hear(_model: Any, payloads: Sequence[tuple[Any, Float32]]) -> list[Any]:
    return [_expect(stream.feed(samples), Partial) for stream, samples in payloads]


def _pause(_model: Any, payloads: Sequence[tuple[Any, float]]) -> list[Any]:
    return [_expect(stream.pause(seconds), Partial) for stream, seconds in payloads]


def _hearing(payload: tuple[Any, Float32]) -> tuple[Any, Work]:
    stream, samples = payload
    return stream, _expected(stream.feeding(samples), Partial)


def _pausing(payload: tuple[Any, float]) -> tuple[Any, Work]:
    stream, seconds = payload
    return stream, _expected(stream.pausing(seconds), Partial)


def _committing(stream: Any) -> tuple[Any, Work]:
    return stream, _expected(stream.committing(), Transcript)


def _expected(work: Work, kind: type) -> Work:
    return _expect((yield from work), kind)


def _commit(_model: Any, payloads: Sequence[Any]) -> list[Any]:
    return [_expect(stream.commit(), Transcript) for stream in payloads]


def _speak(model: Any, payloads: Sequence[tuple[SpeakRequest, Context]]) -> list[Any]:
    """The sound comes later, chunk by chunk; the request itself is judged now."""
    return [(model.speak(*payload), model.rate) for payload in payloads]


def _sound(_model: Any, payloads: Sequence[Iterator[Any]]) -> list[Any]:
    """The next chunk, None after the last: a StopIteration cannot leave a thread."""
    values = [next(chunks, None) for chunks in payloads]
    return [value if value is None else _expect(value, np.ndarray) for value in values]


def _many_at_once(model: Any) -> int:
    return MOST_TEXTS if hasattr(model, "understand_many") else 1


EMBED = Task("embed", _embed, TEXTS, lambda model: getattr(model, "most_texts", MOST_TEXTS))
UNDERSTAND = Task("understand", _understand, TEXTS, _many_at_once)
DETECT = Task("detect", _start, ONCE)
DETECT_CHUNK = Task("detect.chunk", _detect, SOUND)
TRANSCRIBE = Task("transcribe", _start, ONCE)
TRANSCRIBE_CHUNK = Task("transcribe.chunk", _hear, SOUND, work=_hearing)
TRANSCRIBE_PAUSE = Task("transcribe.pause", _pause, ONCE, work=_pausing)
TRANSCRIBE_COMMIT = Task("transcribe.commit", _commit, ONCE, work=_committing, is_last=True)
SPEAK = Task("speak", _speak, ONCE)
SPEAK_CHUNK = Task("speak.chunk", _sound, ONCE)
INFER = Task("infer", infer, ELEMENTS, lambda model: max(1, model.max_batch))

TASKS: Mapping[Capability, tuple[Task, ...]] = {
    Capability.DETECT: (DETECT, DETECT_CHUNK),
    Capability.TRANSCRIBE: (TRANSCRIBE, TRANSCRIBE_CHUNK, TRANSCRIBE_PAUSE, TRANSCRIBE_COMMIT),
    Capability.UNDERSTAND: (UNDERSTAND,),
    Capability.EMBED: (EMBED,),
    Capability.SPEAK: (SPEAK, SPEAK_CHUNK),
    Capability.INFER: (INFER,),
}
"""The first of each opens what the others go on with."""


def checked_samples(samples: Any) -> Float32:
    """float32 [n], else InputError: a stream that was fed anything else might be spoilt for good."""
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
        told = f"{samples.dtype} {list(samples.shape)}" if isinstance(samples, np.ndarray) else type(samples).__name__
        raise InputError(f"sound is {told}", available=["float32 [n]"], next_step="convert it: samples in -1 to 1")
    if not np.isfinite(samples).all():
        raise InputError("the sound holds NaN or infinity", next_step="replace such samples by 0")
    return samples


def canary(capability: Capability, model: Any, language: str) -> None:
    """One small run from end to end. Raises what the model raises, EngineError for what cannot be right."""
    context = Context(language=language)
    match capability:
        case Capability.EMBED:
            value = _embed(model, [(PROBE_TEXT,)])[0]
            if isinstance(value, Exception):
                raise value
        case Capability.UNDERSTAND:
            value = _understand(model, [(PROBE_TEXT, context)])[0]
            if isinstance(value, Exception):
                raise value
        case Capability.INFER:
            _try_engine(model)
        case Capability.SPEAK:
            chunks = model.speak(SpeakRequest("1"), context)
            try:
                _sound(model, [chunks])
            finally:
                if hasattr(chunks, "close"):
                    chunks.close()
        case _:
            listens = capability is Capability.DETECT
            stream = model.start(DetectRequest() if listens else TranscribeRequest(PROBE_WORDS, "canary"), context)
            try:
                (_detect if listens else _hear)(model, [(stream, np.zeros(SPEECH_RATE // 10, np.float32))])
            finally:
                stream.close()


def _try_engine(engine: RawEngine) -> None:
    made = engine.infer(engine.example())
    if any(array.dtype.kind == "f" and np.isnan(array).any() for array in made.values()):
        raise _not_numbers()
