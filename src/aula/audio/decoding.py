"""Audio files in, 16 kHz mono frames out, in memory that does not grow with the file.

A file that ends early gives all that can be read and then raises TruncatedAudioError, so that a caller may
choose between refusing it and making do. It counts as ended early when its container says so: fewer samples
than its header promises, a decoder that fails in the middle, or what `containers` finds in the bytes.
"""

import difflib
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from aula.audio.containers import ends_early
from aula.audio.resampling import FrameCutter, Resampler
from aula.core.errors import (
    AudioError,
    AudioTooLongError,
    EmptyAudioError,
    NotAudioError,
    StorageError,
    TruncatedAudioError,
)
from aula.core.types import SPEECH_RATE, Audio, Float32

_UNKNOWN_LENGTH = 2**63 - 1
"""libsndfile's SF_COUNT_MAX: a FLAC made by a stream encoder does not say how long it is."""

_LENGTH_SLACK_SECONDS = {"MP3": 0.1, "OGG": 0.1}
"""Their headers count the encoder's padding in packets, and encoders differ by a packet or two."""

_READ_MILLISECONDS = 100
"""Large enough that calls cost little, small enough that little is lost where a decoder gives up."""

_FORMATS = (
    ("WAV", "WAV", "PCM_16"),
    ("FLAC", "FLAC", "PCM_16"),
    ("MP3", "MP3", "MPEG_LAYER_III"),
    ("OGG Vorbis", "OGG", "VORBIS"),
    ("OGG Opus", "OGG", "OPUS"),
    ("AIFF", "AIFF", "PCM_16"),
)


class AudioFile:
    """An open file; `open_audio` makes it. Use it in a with-block.

    `rate` and `channels` are the file's own. `seconds` is what its header promises, clamped to what the file
    can hold where the container allows that; None where the header does not say.
    """

    def __init__(self, path: Path, handle: Any, early: bool) -> None:
        # soundfile seeks after every read, which fails at the end of a FLAC of unknown length.
        handle.seekable = lambda: False
        self.path = path
        self.rate: int = handle.samplerate
        self.channels: int = handle.channels
        self.format: str = _format_name(handle.format, handle.subtype)
        self._promised: int | None = None if handle.frames == _UNKNOWN_LENGTH else handle.frames
        self.seconds: float | None = None if self._promised is None else self._promised / self.rate
        self._slack = _LENGTH_SLACK_SECONDS.get(handle.format, 0.0) * self.rate
        self._handle = handle
        self._early = early

    def frames(self, milliseconds: int = 20) -> Iterator[Float32]:
        """float32 [16 · milliseconds] at 16 kHz, the last one perhaps shorter. Each call starts at the beginning;
        one iteration at a time.

        After the last readable sample it raises TruncatedAudioError if the file ends early, or EmptyAudioError
        if there was none.
        """
        resampler = Resampler(self.rate)
        cutter = FrameCutter(SPEECH_RATE * milliseconds // 1000)
        samples_read, broken = 0, False
        for block in self._blocks(max(1, self.rate * _READ_MILLISECONDS // 1000)):
            if block is None:
                broken = True
                break
            samples_read += len(block)
            yield from cutter.feed(resampler.feed(block))
        yield from cutter.feed(resampler.flush())
        rest = cutter.rest()
        if len(rest):
            yield rest
        self._judge_end(samples_read, broken)

    def _blocks(self, size: int) -> Iterator[Float32 | None]:
        """float32 [n, channels] views of one buffer; None where the decoder gave up."""
        from soundfile import LibsndfileError

        buffer = np.empty((size, self.channels), np.float32)
        try:
            self._handle.seek(0)
            while len(block := self._handle.read(out=buffer)):
                yield block
        except LibsndfileError:
            yield None

    def _judge_end(self, samples_read: int, broken: bool) -> None:
        short = self._promised is not None and self._promised - samples_read > self._slack
        if broken or short or self._early:
            raise _truncated(self.path, samples_read / self.rate, self.seconds if short else None)
        if not samples_read:
            raise _empty(self.path)

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(path: Path) -> AudioFile:
    """Open WAV, FLAC, MP3, OGG Vorbis, OGG Opus or AIFF of any rate and any number of channels.

    Raises AudioError for a path that is absent or no file, StorageError for one that may not be read,
    EmptyAudioError for no bytes or no samples, NotAudioError for what no decoder knows, and TruncatedAudioError
    for a file that ends inside its header; one that ends later says so at the end of `frames`.
    """
    import soundfile

    _check_path(path)
    try:
        with path.open("rb") as stream:
            early = ends_early(stream)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read ({error.strerror})", next_step="mend its permissions, or copy it elsewhere"
        ) from error
    try:
        handle = soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the name ends in .raw
        if early:
            raise _truncated(path, 0.0, None) from error
        raise NotAudioError(
            f"{path.name} is not audio that can be decoded here",
            available=available_formats(),
            next_step=f'convert it: ffmpeg -i "{path.name}" -ac 1 -ar 16000 question.wav',
        ) from error
    if not handle.frames and not early:
        handle.close()
        raise _empty(path)
    return AudioFile(path, handle, early)


def read_audio(path: Path, max_seconds: float) -> Audio:
    """The whole file as 16 kHz mono. Raises AudioTooLongError above `max_seconds`, and what `open_audio` and
    `AudioFile.frames` raise."""
    with open_audio(path) as file:
        if file.seconds is not None and file.seconds > max_seconds:
            raise _too_long(path, max_seconds, f"{file.seconds:.1f} s")
        limit = int(max_seconds * SPEECH_RATE)
        frames: list[Float32] = []
        total = 0
        for frame in file.frames():
            total += len(frame)
            # The file may hold more than its header says; one sample may come from the resampler's rounding.
            if total > limit + 1:
                raise _too_long(path, max_seconds, f"more than {max_seconds:g} s")
            frames.append(frame)
    return Audio(np.concatenate(frames), SPEECH_RATE)


def available_formats() -> list[str]:
    """Names of the formats that this libsndfile can decode, of those that aula promises."""
    import soundfile

    return [name for name, kind, subtype in _FORMATS if soundfile.check_format(kind, subtype)]


def _format_name(kind: str, subtype: str) -> str:
    return f"OGG {subtype.title()}" if kind == "OGG" else kind


def _check_path(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(
            f"there is no file {str(path)!r}",
            available=_similar_names(path),
            next_step="correct the path",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be reached ({error.strerror})", next_step="mend the permissions of its folder"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path} is a folder", next_step="name one audio file in it")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is a pipe or a device, not a file", next_step="save the sound to a file first")
    if status.st_size == 0:
        raise EmptyAudioError(f"{path.name} has 0 bytes", next_step="record or copy it again")


def _similar_names(path: Path) -> list[str]:
    try:
        return difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 3)
    except (OSError, ValueError):
        return []


def _empty(path: Path) -> EmptyAudioError:
    return EmptyAudioError(
        f"{path.name} has a header and no samples", next_step="check the microphone and record it again"
    )


def _truncated(path: Path, readable: float, promised: float | None) -> TruncatedAudioError:
    of_promised = f" of {promised:.1f} s" if promised is not None else ""
    return TruncatedAudioError(
        f"{path.name} ends early or is damaged: {readable:.1f} s{of_promised} could be read",
        next_step="copy or record it again",
    )


def _too_long(path: Path, max_seconds: float, length: str) -> AudioTooLongError:
    return AudioTooLongError(
        f"{path.name} lasts {length}, above the limit of {max_seconds:g} s",
        next_step="ask a shorter question, or raise question.max_seconds",
    )
