"""Any rate and any number of channels in, mono at one rate out, a block at a time in bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from aula.core.types import SPEECH_RATE, Float32


class Resampler:
    """A stream of blocks to mono float32 at `target_rate`. Not for two threads at once.

    Channels are mixed by their mean. Non-finite samples, which a float file may hold, become 0; what lies
    outside [-1, 1] is clipped, since `Audio` promises that range. The filter looks ahead, so samples come out
    up to about 0.2 s of sound after they went in; `flush` gives back the rest, and then the next signal may begin.
    """

    def __init__(self, rate: int, target_rate: int = SPEECH_RATE) -> None:
        """Raises ValueError for rates below 1."""
        if rate < 1 or target_rate < 1:
            raise ValueError(f"cannot resample from {rate} to {target_rate} samples a second")
        self.rate = rate
        self.target_rate = target_rate
        self._stream = None if rate == target_rate else _open_stream(rate, target_rate)

    def feed(self, block: Float32) -> Float32:
        """float32 [n] or [n, channels] at `rate` in, float32 [m] at `target_rate` out; m may be 0.

        Raises TypeError for another dtype and ValueError for another shape.
        """
        mono = _mono(block)
        return mono if self._stream is None else self._convert(mono, last=False)

    def flush(self) -> Float32:
        """The samples still inside the filter, float32 [m]. The next `feed` begins a new signal."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = self._convert(np.zeros(0, np.float32), last=True)
        self._stream.clear()
        return rest

    def _convert(self, mono: Float32, last: bool) -> Float32:
        assert self._stream is not None
        converted: Float32 = self._stream.resample_chunk(mono, last=last)
        # The filter may overshoot full scale by a fraction.
        return np.clip(converted, -1.0, 1.0)


class FrameCutter:
    """Cuts a stream of float32 [n] blocks of any size into frames of exactly `size` samples."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a frame of {size} samples is too small")
        self.size = size
        self._rest = np.zeros(0, np.float32)

    def feed(self, samples: Float32) -> Iterator[Float32]:
        """Every frame that `samples` completes. Take them all before the next call."""
        joined = np.concatenate((self._rest, samples)) if len(self._rest) else samples
        whole = len(joined) - len(joined) % self.size
        # A copy, so that the remainder does not keep a large block alive, nor change with the caller's buffer.
        self._rest = joined[whole:].copy()
        return (joined[start : start + self.size] for start in range(0, whole, self.size))

    def rest(self) -> Float32:
        """What no frame was made of yet, shorter than `size`; the cutter is empty afterwards."""
        rest, self._rest = self._rest, np.zeros(0, np.float32)
        return rest


def _open_stream(rate: int, target_rate: int) -> Any:
    import soxr

    return soxr.ResampleStream(rate, target_rate, 1, dtype="float32", quality="HQ")


def _mono(block: Float32) -> Float32:
    if block.dtype != np.float32:
        raise TypeError(f"samples are {block.dtype}; convert them to float32 in [-1, 1]")
    if block.ndim not in (1, 2) or (block.ndim == 2 and block.shape[1] < 1):
        raise ValueError(f"samples have the shape {list(block.shape)}; expected [n] or [n, channels]")
    bounded = np.clip(np.where(np.isfinite(block), block, np.float32(0)), -1.0, 1.0)
    return bounded.mean(axis=1, dtype=np.float32) if bounded.ndim == 2 else bounded
