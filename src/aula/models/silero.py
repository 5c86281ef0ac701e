"""Silero VAD: how probable speech is in each 32 ms of sound.

The graph comes with the package silero-vad, which is found but never imported, since it would load PyTorch. Of the
graphs in that package this one is the cheapest here: fixed state shapes, no branches on the sample rate, and as
many chunks in one run as there are. Its probabilities equal those of silero_vad.onnx bit for bit.
Source: https://github.com/snakers4/silero-vad (release 6.2.3), whose wrapper prepends 64 samples since release 5.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from aula.backends.session import SessionOptions, StatePair, open_session
from aula.core.errors import BackendError, ModelNotFoundError
from aula.core.types import SPEECH_RATE, Capability, Context, DetectRequest, Float32, Licence, RungInfo

INFO = RungInfo(
    "silero-vad",
    Capability.DETECT,
    frozenset({"*"}),
    "speech in any language, one probability for each 32 ms",
    (Licence("Silero VAD", "MIT", "weights in the package silero-vad"),),
)

CHUNK = 512
"""Samples at 16 kHz that one probability stands for."""

CHUNK_MS = 1000 * CHUNK // SPEECH_RATE

_CONTEXT = 64
"""Samples of the chunk before that the graph wants in front of each chunk; zeros before the first."""

_MOST_CHUNKS = 64
"""In one run. Longer runs are no faster and would take memory in proportion to the sound."""

_MOST_IDLE = 32
"""Streams that wait to be used again, of 1.5 MB each."""

_GRAPH = "silero_vad_16k_sequence.onnx"
_INSTALL = "pip install --no-deps 'silero-vad>=6.2.2'"
_STATES = (StatePair("h", "hn"), StatePair("c", "cn"))


class SpeechProbability:
    """The detector with its memory of one stream of sound. Not for two threads at once."""

    def __init__(self, graph: Path | None = None) -> None:
        """Raises ModelNotFoundError without the package, BackendError for a damaged graph."""
        self._session = open_session("onnxruntime", graph or find_graph(), SessionOptions(threads=1, states=_STATES))
        self._pending = np.zeros(_CONTEXT, np.float32)

    def feed(self, samples: Float32) -> list[float]:
        """float32 [n] at 16 kHz in [-1, 1], any n; one probability for each chunk of 512 that it completes.

        Raises TypeError for another dtype, ValueError for another shape and for non-finite samples, of which one
        would spoil the memory for good; BackendError after `close`.
        """
        if samples.dtype != np.float32:
            raise TypeError(f"samples are {samples.dtype}; convert them to float32 in [-1, 1]")
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise ValueError(f"samples of shape {list(samples.shape)} must be [n] and finite")
        joined = np.concatenate((self._pending, samples))
        chunks = (len(joined) - _CONTEXT) // CHUNK
        self._pending = joined[chunks * CHUNK :].copy()
        if not chunks:
            return []
        windows = sliding_window_view(joined, _CONTEXT + CHUNK)[::CHUNK]
        return [
            float(probability)
            for start in range(0, chunks, _MOST_CHUNKS)
            for probability in self._run(windows[start : start + _MOST_CHUNKS])
        ]

    def _run(self, windows: Float32) -> Float32:
        produced = self._session.run({"input": np.ascontiguousarray(windows)})
        return produced["speech_probs"].reshape(-1)

    def reset(self) -> None:
        """Forget everything: another stream begins."""
        self._session.reset()
        self._pending = np.zeros(_CONTEXT, np.float32)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SileroDetector:
    """Implements `Detector`: each stream has a memory of its own, and leaves it to the next when it closes, since
    reading the graph anew takes 3 ms."""

    def __init__(self) -> None:
        """Raises ModelNotFoundError without the package."""
        self._graph = find_graph()
        self._idle: list[SpeechProbability] = []

    def start(self, request: DetectRequest, context: Context) -> "LentProbability":  # noqa: ARG002 - the contract
        return LentProbability(self._idle.pop() if self._idle else SpeechProbability(self._graph), self._take_back)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take_back(self, stream: SpeechProbability) -> None:
        if len(self._idle) < _MOST_IDLE:
            stream.reset()
            self._idle.append(stream)
        else:
            stream.close()


class LentProbability:
    """A stream of SileroDetector's, until it is closed."""

    def __init__(self, stream: SpeechProbability, give_back: Callable[[SpeechProbability], None]) -> None:
        self._stream: SpeechProbability | None = stream
        self._give_back = give_back

    def feed(self, samples: Float32) -> list[float]:
        """As SpeechProbability's; RuntimeError after `close`."""
        if self._stream is None:
            raise RuntimeError("this stream was closed; start a new one")
        try:
            return self._stream.feed(samples)
        except BackendError:
            # What failed once is not handed to anybody else.
            stream, self._stream = self._stream, None
            stream.close()
            raise

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._give_back(stream)


def find_graph() -> Path:
    """Where the installed package keeps the graph. Raises ModelNotFoundError where it is absent or too old."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise ModelNotFoundError("the package silero-vad, which finds speech, is absent", next_step=_INSTALL)
    graph = Path(package.origin).parent / "data" / _GRAPH
    if not graph.is_file():
        raise ModelNotFoundError(
            f"the installed silero-vad has no {_GRAPH}",
            available=sorted(other.name for other in graph.parent.glob("*.onnx")),
            next_step=_INSTALL,
        )
    return graph
