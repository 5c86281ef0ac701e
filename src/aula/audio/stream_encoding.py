"""Sound as bytes while it is made: wav, pcm, flac, mp3 and opus, a piece at a time.

Mono, at STREAM_RATE, which is what OpenAI's clients expect of `pcm` and every encoder here takes. A stream does not
know its length beforehand: a WAV says the largest one, as ffmpeg does to a pipe, and a FLAC says none.
"""

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from aula.audio.resampling import Resampler
from aula.core.errors import InputError
from aula.core.types import Float32, Int16

STREAM_RATE = 24_000
_UNKNOWN = 0xFFFF_FFFF


class Encoder(Protocol):
    """Takes float32 [n] at STREAM_RATE; gives what bytes there are by then, perhaps none."""

    def encode(self, samples: Float32) -> bytes: ...

    def finish(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class StreamFormat:
    name: str
    media_type: str
    open: Callable[[], Encoder]


class SoundStream:
    """int16 chunks at `rate` in, bytes out. One thread at a time."""

    def __init__(self, format_name: str, rate: int) -> None:
        """Raises InputError for a format that nothing here encodes."""
        self.format = find_format(format_name)
        self._resampler = Resampler(rate, STREAM_RATE)
        self._encoder = self.format.open()

    def feed(self, chunk: Int16) -> bytes:
        return self._encoder.encode(self._resampler.feed(chunk.astype(np.float32) / np.float32(32768)))

    def finish(self) -> bytes:
        """The rest; nothing is lawful after it."""
        return self._encoder.encode(self._resampler.flush()) + self._encoder.finish()


def find_format(name: str) -> StreamFormat:
    if name not in FORMATS:
        raise InputError(
            f"nothing here encodes {name!r}", available=list(FORMATS), next_step="choose one of these formats"
        )
    return FORMATS[name]


class _Pcm:
    """Little-endian int16, behind a header or none."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def encode(self, samples: Float32) -> bytes:
        header, self._header = self._header, b""
        return header + np.rint(samples * 32767).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return self.encode(np.zeros(0, np.float32))


def _wav_header() -> bytes:
    """RIFF of PCM (Microsoft and IBM, 1991), whose end nobody knows yet."""
    coding = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, STREAM_RATE, 2 * STREAM_RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN, b"WAVE") + coding + struct.pack("<4sI", b"data", _UNKNOWN)


class _Sink(io.RawIOBase):
    """Keeps what is appended. An encoder that goes back to mend its header finds nobody who still has it."""

    def __init__(self) -> None:
        super().__init__()
        self._place = self._end = 0
        self._kept = bytearray()

    def write(self, data: Any) -> int:
        raw = bytes(data)
        if self._place == self._end:
            self._kept += raw
            self._end += len(raw)
        self._place += len(raw)
        return len(raw)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._end)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def take(self) -> bytes:
        raw, self._kept = bytes(self._kept), bytearray()
        return raw


class _Libsndfile:
    def __init__(self, kind: str, subtype: str, **options: Any) -> None:
        import soundfile

        self._sink = _Sink()
        self._file = soundfile.SoundFile(self._sink, "w", STREAM_RATE, 1, subtype, format=kind, **options)

    def encode(self, samples: Float32) -> bytes:
        if len(samples):
            self._file.write(samples)
        return self._sink.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._sink.take()


class _Mp3(_Libsndfile):
    """80 kbit/s, constant: a player that finds no length counts on the rate. LAME begins with an empty frame, which it
    fills with the length at the end. A player would believe it, so it is taken out: a frame of MPEG-2 layer III whose
    payload is nothing but zeros."""

    _HEADER = 4

    def __init__(self) -> None:
        super().__init__("MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
        self._begun = bytearray()
        self._is_begun = False

    def encode(self, samples: Float32) -> bytes:
        return self._without_length(super().encode(samples), last=False)

    def finish(self) -> bytes:
        return self._without_length(super().finish(), last=True)

    def _without_length(self, raw: bytes, *, last: bool) -> bytes:
        if self._is_begun:
            return raw
        self._begun += raw
        second = self._begun.find(b"\xff\xf3", self._HEADER)
        if second < 0 and not last:
            return b""
        self._is_begun = True
        has_length = second > 0 and not any(self._begun[self._HEADER : second])
        return bytes(self._begun[second if has_length else 0 :])


FORMATS: Mapping[str, StreamFormat] = {
    one.name: one
    for one in (
        StreamFormat("mp3", "audio/mpeg", _Mp3),
        StreamFormat("opus", "audio/ogg", lambda: _Libsndfile("OGG", "OPUS")),
        StreamFormat("flac", "audio/flac", lambda: _Libsndfile("FLAC", "PCM_16")),
        StreamFormat("wav", "audio/wav", lambda: _Pcm(_wav_header())),
        StreamFormat("pcm", "audio/pcm", _Pcm),
    )
}
"""AAC is absent: no free encoder of it comes as a light, maintained package."""
