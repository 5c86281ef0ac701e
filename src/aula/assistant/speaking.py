"""Spoken answers kept on disk, since a class asks the same things again and again.

It knows no voice: it passes chunks of samples through, keeps what was spoken to its end, and gives it back.
"""

import asyncio
import contextlib
import hashlib
import json
import struct
import unicodedata
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from aula.core.errors import StorageError
from aula.core.files import write_atomically
from aula.core.settings import Settings
from aula.core.types import Int16

_MAGIC = b"aula speech 1\n"
_DIGEST_BYTES = 32
_COUNT = struct.Struct("<II")
_SUFFIX = ".speech"


@dataclass(frozen=True, slots=True, eq=False)
class SpokenAudio:
    """One whole utterance: mono int16 chunks as the voice made them, at `rate` samples a second."""

    rate: int
    chunks: tuple[Int16, ...]


@dataclass(frozen=True, slots=True)
class SpeechCacheStatistics:
    """`hits` and `misses` of this process; `entries` and `bytes` are what lies on disk now."""

    hits: int
    misses: int
    entries: int
    bytes: int


def speech_key(text: str, language: str, voice: str, **settings: str | int | float | None) -> str:
    """SHA-256, in hexadecimal, of all that decides how an utterance sounds; `settings` are the pace and the like."""
    parts = [unicodedata.normalize("NFC", text.strip()), language, voice, sorted(settings.items())]
    canonical = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


class SpeechCache:
    """A folder of utterances, held under `limit_bytes` by removing what was not heard for longest.

    Several processes may share the folder: entries appear whole and are checked when read; one that is damaged is
    removed and counts as absent. A limit of 0 turns the cache off. A disk that cannot be read or written costs the
    time of speaking again, never an answer.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._hits = 0
        self._misses = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> "SpeechCache":
        return cls(settings.home / "cache" / "speech", settings.whole("speech.cache_mb") * 1_000_000)

    def cached(self, key: str) -> SpokenAudio | None:
        """The utterance of a `speech_key`, or None."""
        if self._limit <= 0:
            return None
        path = self._path(key)
        raw = None
        with contextlib.suppress(OSError):
            raw = path.read_bytes()
        found = None if raw is None else _unpack(raw)
        with contextlib.suppress(OSError):
            if found is not None:
                path.touch()  # what is heard again stays longest
            elif raw is not None:
                path.unlink()
        self._hits += found is not None
        self._misses += found is None
        return found

    async def recorded(self, key: str, chunks: AsyncIterator[Int16], rate: int) -> AsyncIterator[Int16]:
        """Pass int16 `chunks` through as they come, and keep them if they come to their end.

        Closing this iterator closes `chunks`, and nothing is kept; nor is an utterance without sound.
        """
        kept: list[Int16] = []
        try:
            async for chunk in chunks:
                if self._limit > 0:
                    kept.append(chunk)
                yield chunk
        finally:
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()
        if kept:
            await asyncio.to_thread(self.keep, key, SpokenAudio(rate, tuple(kept)))

    def keep(self, key: str, audio: SpokenAudio) -> None:
        """Put one utterance on disk, unless it is larger than the whole cache may be."""
        raw = _pack(audio)
        if len(raw) > self._limit:
            return
        with contextlib.suppress(StorageError, OSError):

            def write(file: IO[bytes]) -> None:
                file.write(raw)

            write_atomically(self._path(key), write)
            self._shrink()

    def statistics(self) -> SpeechCacheStatistics:
        sizes = [size for _, size, _ in self._entries()]
        return SpeechCacheStatistics(self._hits, self._misses, len(sizes), sum(sizes))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _entries(self) -> list[tuple[int, int, Path]]:
        """When last heard, size and path of each entry, the stalest first."""
        entries = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process may have removed it just now
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        return sorted(entries)

    def _shrink(self) -> None:
        entries = self._entries()
        excess = sum(size for _, size, _ in entries) - self._limit
        for _, size, path in entries:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def _pack(audio: SpokenAudio) -> bytes:
    """Magic, rate, number of chunks, length of each, samples (all little-endian), SHA-256 of everything before."""
    lengths = np.array([len(chunk) for chunk in audio.chunks], dtype="<u4")
    samples = np.concatenate(audio.chunks).astype("<i2")
    body = _MAGIC + _COUNT.pack(audio.rate, len(lengths)) + lengths.tobytes() + samples.tobytes()
    return body + hashlib.sha256(body).digest()


def _unpack(raw: bytes) -> SpokenAudio | None:
    body, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return None
    rate, count = _COUNT.unpack_from(body, len(_MAGIC))
    start = len(_MAGIC) + _COUNT.size
    lengths = np.frombuffer(body, "<u4", count, start)
    samples = np.frombuffer(body, "<i2", offset=start + lengths.nbytes).astype(np.int16)
    return SpokenAudio(rate, _split(samples, lengths.tolist()))


def _split(samples: Int16, lengths: Sequence[int]) -> tuple[Int16, ...]:
    return tuple(np.split(samples, np.cumsum(lengths)[:-1]))
