"""Whisper's front end: log-mel frames of 25 ms every 10 ms, in numpy.

Constants: Radford et al. 2022 (arXiv:2212.04356), section 2.2; mel scale and area normalisation: Slaney 1998,
"Auditory Toolbox".
"""

from functools import cache

import numpy as np

from aula.core.errors import AudioTooLongError
from aula.core.types import SPEECH_RATE, Float32

WINDOW = SPEECH_RATE * 25 // 1000
HOP = SPEECH_RATE * 10 // 1000
FRAMES_A_POSITION = 2
"""The encoder's second convolution halves the frames."""

FLOOR = 1e-10
"""Least power before the logarithm."""

RANGE = 8.0
"""What lies further than this below the loudest value, in log10 units, is raised to it."""


@cache
def mel_filters(bins: int, transform: int = WINDOW) -> Float32:
    """float32 [bins, transform // 2 + 1]: triangles on Slaney's mel scale from 0 to 8 kHz, each of area one.

    The scale is linear below 1 kHz (15 mels) and logarithmic above (27 mels for a factor of 6.4).
    """
    top = 15 + 27 * np.log(SPEECH_RATE / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < 15, mels * 1000 / 15, 1000 * 6.4 ** ((mels - 15) / 27))
    centres = np.linspace(0, SPEECH_RATE / 2, transform // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((centres - low) / (middle - low), (high - centres) / (high - middle))
    filters: Float32 = (np.maximum(0, triangles) * 2 / (high - low)).astype(np.float32)
    filters.setflags(write=False)
    return filters


def log_mel(samples: Float32, bins: int, frames: int) -> Float32:
    """float32 [n] at 16 kHz to float32 [bins, frames]; the samples are padded with silence to frames * HOP.

    Raises AudioTooLongError for more samples than that.
    """
    stream = MelStream(bins)
    stream.feed(samples)
    return stream.features(frames)


class MelStream:
    """Log-mel frames of a sound that is still coming in: each frame is computed once, when its last sample is there.

    Frame i looks at 200 samples on either side of sample i * HOP; the ends are mirrored, as the reference does.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._half = WINDOW // 2
        self._buffer = np.zeros(SPEECH_RATE, dtype=np.float32)
        self._count = 0
        self._done: list[Float32] = []
        self._frames_done = 0

    @property
    def samples(self) -> int:
        return self._count

    def feed(self, samples: Float32) -> None:
        """Take the next float32 samples [n] at 16 kHz; any n is lawful."""
        end = self._count + len(samples)
        if end > len(self._buffer):
            self._buffer = np.pad(self._buffer, (0, max(end, 2 * len(self._buffer)) - len(self._buffer)))
        self._buffer[self._count : end] = samples
        self._count = end
        whole = (end - self._half) // HOP + 1
        if whole > self._frames_done and end > WINDOW:
            self._done.append(self._log_power(self._buffer[:end], self._frames_done, whole))
            self._frames_done = whole

    def tail(self, start: int) -> Float32:
        """A copy of the samples from `start` on."""
        return self._buffer[start : self._count].copy()

    def features(self, frames: int) -> Float32:
        """float32 [bins, frames] as the encoder wants them, silence after the sound so far.

        Raises AudioTooLongError where the sound does not fit.
        """
        if self._count > frames * HOP:
            raise AudioTooLongError(
                f"{self._count / SPEECH_RATE:.1f} s of sound do not fit a window of {frames / 100:.1f} s",
                next_step="ask for more frames, or cut the sound",
            )
        window = np.pad(self._buffer[: self._count], (0, frames * HOP - self._count))
        # Frames that see some sound; those after them see only padding.
        last = min(frames, (self._count + self._half - 1) // HOP + 1)
        logs = np.concatenate([*self._done, self._log_power(window, self._frames_done, last)], axis=1)
        logs = np.pad(logs, ((0, 0), (0, frames - logs.shape[1])), constant_values=np.log10(FLOOR))
        scaled = (np.maximum(logs, logs.max() - RANGE) + 4) / 4
        return np.asarray(scaled, dtype=np.float32)

    def _log_power(self, samples: Float32, first: int, after: int) -> Float32:
        """log10 of the mel power of frames first .. after - 1, float32 [bins, after - first]."""
        if after <= first:
            return np.zeros((self.bins, 0), dtype=np.float32)
        start, end = first * HOP - self._half, (after - 1) * HOP + self._half
        chunk = samples[max(0, start) : end]
        mirrored = (max(0, -start), max(0, end - len(samples)))
        if any(mirrored):
            chunk = np.pad(chunk, mirrored, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(chunk, WINDOW)[::HOP]
        spectrum = np.fft.rfft(windows * _hann(), axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        mels: Float32 = mel_filters(self.bins) @ power.T
        return np.log10(np.maximum(mels, np.float32(FLOOR)))


@cache
def _hann() -> Float32:
    """Periodic: the last sample is not the first again."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
