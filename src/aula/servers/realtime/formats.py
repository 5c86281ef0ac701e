"""Sound on the wire: PCM16 at 24 kHz, and G.711 at 8 kHz; inside, float32 at the recogniser's rate.

G.711 (ITU-T, 1972) keeps a sample as sign, exponent and mantissa in eight bits. Decoding is a table of 256 values;
encoding is a table over all 16-bit samples, made once by choosing the nearest of these 256.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from aula.audio.resampling import Resampler
from aula.core.errors import NotAudioError
from aula.core.types import SPEECH_RATE, Float32, Int16


class Coding(StrEnum):
    """The protocol's own names."""

    PCM = "audio/pcm"
    ULAW = "audio/pcmu"
    ALAW = "audio/pcma"


@dataclass(frozen=True, slots=True)
class Format:
    coding: Coding
    rate: int
    """Samples a second."""
    width: int
    """Bytes a sample."""

    def milliseconds(self, length: int) -> float:
        """How long `length` bytes sound."""
        return 1000 * length / (self.rate * self.width)


FORMATS = {
    Coding.PCM: Format(Coding.PCM, 24_000, 2),
    Coding.ULAW: Format(Coding.ULAW, 8_000, 1),
    Coding.ALAW: Format(Coding.ALAW, 8_000, 1),
}


class SoundIn:
    """A stream of bytes in one format to float32 at SPEECH_RATE."""

    def __init__(self, form: Format) -> None:
        self.format = form
        self._resampler = Resampler(form.rate, SPEECH_RATE)

    def feed(self, raw: bytes) -> Float32:
        """Raises NotAudioError for a part of a sample."""
        return self._resampler.feed(decoded(raw, self.format.coding))

    def flush(self) -> Float32:
        """What the filter still holds; the next `feed` begins anew."""
        return self._resampler.flush()


class SoundOut:
    """int16 [n] at a voice's rate to bytes in one format."""

    def __init__(self, form: Format, rate: int) -> None:
        self.format = form
        self._resampler = Resampler(rate, form.rate)

    def feed(self, samples: Int16) -> bytes:
        return self._bytes(self._resampler.feed(samples.astype(np.float32) / np.float32(32768)))

    def flush(self) -> bytes:
        return self._bytes(self._resampler.flush())

    def _bytes(self, samples: Float32) -> bytes:
        return encoded((samples * 32767).round().astype(np.int16), self.format.coding)


def decoded(raw: bytes, coding: Coding) -> Float32:
    """float32 [n] in [-1, 1]. Raises NotAudioError for an odd number of bytes of PCM16."""
    if coding is Coding.PCM:
        if len(raw) % 2:
            raise NotAudioError(
                f"{len(raw)} bytes are no whole number of 16-bit samples", next_step="send two bytes a sample"
            )
        return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(32768)
    levels: Float32 = _levels(coding).astype(np.float32) / np.float32(32768)
    return levels[np.frombuffer(raw, np.uint8)]


def encoded(samples: Int16, coding: Coding) -> bytes:
    """int16 [n] to bytes."""
    if coding is Coding.PCM:
        return samples.astype("<i2", copy=False).tobytes()
    return _codes(coding)[samples.astype(np.int32) + 32768].tobytes()


@cache
def _levels(coding: Coding) -> Int16:
    """The 16-bit sample that each of the 256 codes stands for."""
    code = np.arange(256, dtype=np.int32)
    if coding is Coding.ULAW:
        code ^= 0xFF
        magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
        return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)
    code ^= 0x55
    exponent, mantissa = code >> 4 & 7, (code & 0x0F) << 4
    magnitude = np.where(exponent == 0, mantissa + 8, mantissa + 0x108 << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


@cache
def _codes(coding: Coding) -> NDArray[np.uint8]:
    """The code nearest to each 16-bit sample, uint8 [65536]."""
    levels = _levels(coding).astype(np.int32)
    order = np.argsort(levels, kind="stable")
    ranked = levels[order]
    edges = (ranked[1:] + ranked[:-1]) / 2
    codes: NDArray[np.uint8] = order[np.searchsorted(edges, np.arange(-32768, 32768))].astype(np.uint8)
    return codes
