"""Mono int16 sound to a WAV file that is there as a whole or not at all."""

import os
import secrets
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from aula.core.errors import StorageError
from aula.core.types import Int16

_BYTES_PER_SAMPLE = 2
_HEADER_BYTES = 44
_MOST_SAMPLES = (0xFFFF_FFFF - _HEADER_BYTES) // _BYTES_PER_SAMPLE
"""A WAV file counts its bytes in 32 bits."""


class WavWriter:
    """Writes chunks as they come, into a hidden file beside `path` that takes its name when the with-block ends.

    An error or an interrupt inside the block leaves neither file behind, and an earlier file at `path` as it was.
    """

    def __init__(self, path: Path, rate: int) -> None:
        """`rate` in samples a second. Nothing is touched before the with-block begins."""
        if rate < 1:
            raise ValueError(f"a rate of {rate} samples a second is too low")
        self.path = path
        self.rate = rate
        self.samples = 0
        self._stream: BinaryIO | None = None
        self._partial = path

    def __enter__(self) -> Self:
        """Raises StorageError for a missing or unwritable folder, and for a `path` that is no regular file."""
        # Through a link, since the rename would replace the link itself.
        self.path = _checked_target(self.path)
        self._partial = self.path.with_name(f".aula-{secrets.token_hex(4)}.part")
        try:
            self._stream = self._partial.open("xb")
            self._stream.write(_header(self.rate, 0))
        except OSError as error:
            self._discard()
            raise _storage_error(self.path, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, chunk: Int16) -> None:
        """Append int16 [n]. Raises TypeError for another dtype or shape, StorageError when the disk is full."""
        if chunk.dtype != np.int16 or chunk.ndim != 1:
            raise TypeError(f"a chunk is {chunk.dtype}{list(chunk.shape)}; expected int16[n]")
        if self._stream is None:
            raise ValueError("this writer is not open; use it in a with-block")
        if self.samples + len(chunk) > _MOST_SAMPLES:
            raise StorageError(
                f"{self.path.name} would be longer than a WAV file can be (4 GiB)",
                next_step="write several shorter files",
            )
        try:
            self._stream.write(chunk.astype("<i2", copy=False).tobytes())
        except OSError as error:
            raise _storage_error(self.path, error) from error
        self.samples += len(chunk)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failure:
            raise _storage_error(self.path, failure) from failure
        finally:
            self._discard()

    def _finish(self) -> None:
        assert self._stream is not None
        self._stream.seek(0)
        self._stream.write(_header(self.rate, self.samples))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._partial.replace(self.path)

    def _discard(self) -> None:
        """Close and remove the partial file; after a rename there is none."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError):  # on a full disk, closing tries to write once more
                stream.close()
        with suppress(OSError):
            self._partial.unlink()


def write_wav(path: Path, chunks: Iterable[Int16], rate: int) -> int:
    """Write int16 chunks as one file and return how many samples there were. Raises what WavWriter raises,
    and lets through what `chunks` raises, leaving nothing behind."""
    with WavWriter(path, rate) as writer:
        for chunk in chunks:
            writer.write(chunk)
    return writer.samples


def _header(rate: int, samples: int) -> bytes:
    """RIFF, `fmt ` of PCM (16 bytes) and the head of `data`: Microsoft and IBM (1991)."""
    size = samples * _BYTES_PER_SAMPLE
    form = struct.pack("<4sI4s", b"RIFF", _HEADER_BYTES - 8 + size, b"WAVE")
    coding = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * _BYTES_PER_SAMPLE, _BYTES_PER_SAMPLE, 16)
    return form + coding + struct.pack("<4sI", b"data", size)


def _checked_target(path: Path) -> Path:
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise StorageError(f"there is no folder {target.parent}", next_step="create it, or choose another place")
        if target.exists() and not target.is_file():
            raise StorageError(f"{path} is a folder or a device, not a file", next_step="name a file to write")
        if target.exists() and not os.access(target, os.W_OK):
            raise StorageError(f"{path} is write-protected", next_step="mend its permissions, or choose another name")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL in the name
        raise StorageError(f"{str(path)!r} cannot be written ({error})", next_step="choose another place") from error
    return target


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written ({error.strerror})", next_step="free some space, or choose another folder"
    )
