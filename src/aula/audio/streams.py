"""Sound that comes over the network or a pipe, for as long as it comes, in memory that does not grow.

Bytes go through a pipe of the system, from which libsndfile decodes: WAV, AIFF, MP3, OGG Vorbis and Opus (FLAC wants to
look back). What nobody takes stays with the sender.
"""

import asyncio
import http.client
import os
import socket
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import numpy as np

from aula.audio.resampling import FrameCutter, Resampler
from aula.core.errors import AudioError, EmptyAudioError, InputError, NotAudioError
from aula.core.types import SPEECH_RATE, Float32

STANDARD_INPUT = "-"
SCHEMES = ("http", "https")
PATIENCE_S = 15.0
"""Without a byte, after which a stream is given up."""

FRAME_MS = 100
_CHUNK = 4096
_HEAD = 8192
"""Bytes that are there before a decoder is opened: soundfile opens one at a time in a process, and all others would
wait with one that waits for the network."""
_MOST_REDIRECTS = 4


def is_stream(source: str) -> bool:
    return source == STANDARD_INPUT or "://" in source


class AudioStream:
    """float32 frames at 16 kHz of an http(s) address, or of standard input for "-". Use it in a with-block; entering it
    connects.

    Raises InputError for an address that cannot be one, AudioError for one that does not answer, refuses, or falls
    silent, NotAudioError for bytes that no decoder knows, EmptyAudioError for none.
    """

    def __init__(self, source: str, *, patience_s: float = PATIENCE_S) -> None:
        self._source, self._patience_s = source, patience_s
        if source != STANDARD_INPUT:
            _check(source)
        self._socket: socket.socket | None = None
        self._failed: AudioError | None = None
        self._handle: Any = None
        self._reading = threading.Lock()
        self._begun = threading.Event()

    def __enter__(self) -> Self:
        if self._source == STANDARD_INPUT:
            self._descriptor = _standard_input()
            self._begun.set()
            return self
        response = self._connected(self._source)
        self._descriptor, writing = os.pipe()
        threading.Thread(target=self._fetch, args=(response, writing), name="aula-stream", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        # Whoever reads is at its end now; of a pipe that says nothing the system disposes.
        if self._reading.acquire(timeout=1.0):
            if self._handle is not None:
                self._handle.close()
            os.close(self._descriptor)

    async def frames(self) -> AsyncIterator[Float32]:
        """The last one is perhaps shorter. Each is decoded when the one before was taken."""
        frames = self._frames()
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            yield frame

    def _frames(self) -> Iterator[Float32]:
        with self._reading:
            handle = self._decoder()
        resampler = Resampler(handle.samplerate)
        cutter = FrameCutter(SPEECH_RATE * FRAME_MS // 1000)
        buffer = np.empty((max(1, handle.samplerate * FRAME_MS // 1000), handle.channels), np.float32)
        count = 0
        while len(block := self._read(buffer)):
            count += len(block)
            yield from cutter.feed(resampler.feed(block))
        yield from cutter.feed(resampler.flush())
        if len(rest := cutter.rest()):
            yield rest
        if self._failed is not None:
            raise self._failed
        if not count:
            raise EmptyAudioError(f"{self._source} brought no samples", next_step="look whether it plays")

    def _decoder(self) -> Any:
        import soundfile

        self._begun.wait()
        try:
            self._handle = soundfile.SoundFile(self._descriptor, closefd=False)
        except (soundfile.LibsndfileError, TypeError) as error:
            if self._failed is not None:
                raise self._failed from error
            raise NotAudioError(
                f"{self._source} does not bring sound that can be decoded while it comes",
                available=("WAV", "AIFF", "MP3", "OGG Vorbis", "OGG Opus"),
                next_step=_by_ffmpeg(self._source),
            ) from error
        self._handle.seekable = lambda: False
        return self._handle

    def _read(self, buffer: Float32) -> Float32:
        import soundfile

        with self._reading:
            try:
                block: Float32 = self._handle.read(out=buffer)
                return block
            except soundfile.LibsndfileError:
                return buffer[:0]  # it broke off

    def _connected(self, address: str) -> http.client.HTTPResponse:
        for _ in range(_MOST_REDIRECTS):
            parts = urlsplit(address)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            try:
                connection = kind(parts.hostname or "", parts.port, timeout=self._patience_s)
                connection.connect()
                self._socket = connection.sock
                path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
                connection.request("GET", path, headers={"User-Agent": "aula", "Accept": "audio/*, */*;q=0.5"})
                response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(error) or type(error).__name__
                raise AudioError(
                    f"{address} cannot be heard ({reason})", next_step="correct the address, or start what sends there"
                ) from error
            moved = response.getheader("Location") if 300 <= response.status < 400 else None
            if moved is None:
                break
            connection.close()
            address = urljoin(address, moved)
            _check(address)
        if response.status != http.client.OK:
            response.close()
            raise AudioError(
                f"{address} answers {response.status} {response.reason}".rstrip(), next_step="correct the address"
            )
        return response

    def _fetch(self, response: http.client.HTTPResponse, writing: int) -> None:
        """In a thread of its own: it waits for the network, and for whoever takes the sound."""
        try:
            head = bytearray()
            while len(head) < _HEAD and (content := response.read1(_CHUNK)):
                head += content
            os.write(writing, head)  # a pipe holds so much
            self._begun.set()
            while content := response.read1(_CHUNK):
                view = memoryview(content)
                while view:
                    view = view[os.write(writing, view) :]
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        except TimeoutError:
            self._failed = AudioError(
                f"nothing came from {self._source} for {self._patience_s:g} s", next_step="look whether it still plays"
            )
        except BrokenPipeError:
            pass  # nobody listens any longer
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._failed = AudioError(f"{self._source} broke off ({error})", next_step="connect again")
        finally:
            os.close(writing)
            response.close()
            self._begun.set()


def _check(address: str) -> None:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{address!r} is no address ({error})", next_step="write http://host:port/path") from error
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"{parts.scheme} is not among what is heard here", available=SCHEMES, next_step=_by_ffmpeg(address)
        )
    if not host:
        raise InputError(f"{address!r} names no host", next_step="write http://host:port/path")


def _by_ffmpeg(source: str) -> str:
    return f'let ffmpeg decode it: ffmpeg -i "{source}" -ac 1 -ar 16000 -f wav - | aula captions -'


def _standard_input() -> int:
    try:
        descriptor = os.dup(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError) as error:
        raise InputError("there is no standard input", next_step="name a file or an address") from error
    if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(
            "nothing is piped into standard input", next_step="for example: ffmpeg -i FILE -f wav - | aula captions -"
        )
    return descriptor
