"""What each capability's models promise. A rung implements one of these; callers see only these."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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


class PausingStream(TranscriptionStream, Protocol):
    """One that makes use of pauses."""

    def pause(self, seconds: float) -> Partial:
        """Speech has paused for so long, and no sound comes until it goes on, or the commit."""
        ...


class Transcriber(Protocol):
    def start(self, request: TranscribeRequest, context: Context) -> TranscriptionStream:
        """Open a stream. Raises UnsupportedLanguageError for a language the model cannot hear."""
        ...


class Passes(Protocol):
    """What several streams ask of one model, done pass by pass in the model's thread: a stream that comes joins those
    that are under way."""

    def begin(
        self, owner: object, work: Generator[Any, Any, Any], ended: Callable[[Any, float], None], rank: int = 0
    ) -> bool:
        """Whether somebody must begin to call `advance`. `ended` is told what the work came to, a value or an
        exception, and the seconds that it took: of shared passes its part. The lower the `rank`, the sooner."""
        ...

    def advance(self) -> bool:
        """One pass for somebody and one for all; False when nothing is left to do."""
        ...

    def close(self, error: Exception) -> None:
        """Nothing goes on: whoever waits is told the error."""
        ...


class Sharing(Transcriber, Protocol):
    """One whose streams share passes: beside `feed`, `pause` and `commit` they have works of the same meaning,
    `feeding`, `pausing` and `committing`."""

    passes: Passes


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
