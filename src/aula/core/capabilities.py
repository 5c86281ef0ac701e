"""What each capability's models promise. A rung implements one of these; callers see only these."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from aula.core.types import (
    Context,
    DetectRequest,
    Float32,
    Int16,
    Partial,
    SpeakRequest,
    TranscribeRequest,
    Transcript,
    Understanding,
)


class DetectionStream(Protocol):
    """How likely each 32 ms of a sound hold speech. All calls of one stream come from one thread."""

    def feed(self, samples: Float32) -> list[float]:
        """Take the next float32 samples [n] at 16 kHz; one probability for each chunk of 512 that became whole."""
        ...

    def close(self) -> None: ...


class Detector(Protocol):
    def start(self, request: DetectRequest, context: Context) -> DetectionStream: ...


class TranscriptionStream(Protocol):
    """One utterance on its way. States: open → committed or closed; no call is lawful after that but `close`.

    All calls of one stream come from one thread.
    """

    def feed(self, samples: Float32) -> Partial:
        """Take the next float32 samples [n] at 16 kHz and return the hypothesis so far. Any n is lawful."""
        ...

    def commit(self) -> Transcript:
        """The student has finished: return the final text. Raises NothingHeardError where there is none."""
        ...

    def close(self) -> None:
        """Give back what the stream holds; lawful at any time, twice too."""
        ...


class Transcriber(Protocol):
    def start(self, request: TranscribeRequest, context: Context) -> TranscriptionStream:
        """Open a stream. Raises UnsupportedLanguageError for a language the model cannot hear."""
        ...


class Embedder(Protocol):
    dimensions: int

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [len(texts), dimensions], each row of unit length."""
        ...


class Understander(Protocol):
    def understand(self, text: str, context: Context) -> Understanding: ...


class Speaker(Protocol):
    rate: int
    """Samples a second of what `speak` yields."""

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        """Mono int16 chunks, the first as early as the engine can. Closing the iterator stops the engine."""
        ...


class RawEngine(Protocol):
    """One engine without states. `max_batch`: rows that a run may have, where rows do not depend on each other; else 1
    for one request a run."""

    max_batch: int

    def infer(self, tensors: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """By name in, by name out. Raises EngineError."""
        ...

    def example(self, rows: int = 1) -> Mapping[str, NDArray[Any]]:
        """Inputs of a usual size, to measure it with and to try it."""
        ...
