"""The microphone as an asynchronous iterator of 20 ms frames."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aula.audio.devices import Device, agree_on_format, load_sounddevice, lost, opening
from aula.audio.resampling import FrameCutter, Resampler
from aula.core.types import SPEECH_RATE, Float32

FRAME_MS = 20


@dataclass(frozen=True, slots=True)
class MicrophoneStatistics:
    """Blocks of 20 ms since the device was opened: captured = delivered + dropped + waiting + forgotten.

    `dropped`: the oldest, given up because nobody took them in time; `forgotten`: left over from a recording
    that its caller gave up; `gaps`: times that the device itself lost sound.
    """

    captured: int
    delivered: int
    dropped: int
    waiting: int
    forgotten: int
    gaps: int


@dataclass(frozen=True, slots=True)
class _Next:
    """A captured block, or none yet, or none ever."""

    samples: Float32 | None
    last: bool = False


class Microphone:
    """Push-to-talk. Entering the with-block opens the device, which may take a while; `record` starts at once.

        async with Microphone() as microphone:
            async for frame in microphone.record():   # until somebody calls microphone.stop()
                ...

    Between PortAudio's thread and the event loop stands a queue of `capacity_seconds`; when nobody takes its
    blocks in time, the oldest go first and are counted.
    """

    def __init__(self, device: Device = None, *, capacity_seconds: float = 30.0, module: Any = None) -> None:
        """`module` stands in for sounddevice."""
        self.device = device
        self._module = module
        self._lock = threading.Lock()
        self._blocks: deque[Float32] = deque()
        self._capacity = max(1, round(capacity_seconds * 1000 / FRAME_MS))
        self._stream: Any = None
        self._recording = self._ended = self._lost = self._loop_waits = False
        self._captured = self._delivered = self._dropped = self._forgotten = self._gaps = 0

    async def __aenter__(self) -> Self:
        """Raises DeviceError where there is no PortAudio or no microphone."""
        module = self._module = self._module or load_sounddevice()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        agreed = agree_on_format(module, "input", self.device, "float32", SPEECH_RATE)
        self.rate = agreed.rate
        self._stream = opening(
            module,
            "input",
            lambda: module.InputStream(
                device=self.device,
                samplerate=agreed.rate,
                channels=agreed.channels,
                dtype="float32",
                blocksize=agreed.rate * FRAME_MS // 1000,
                latency="low",
                callback=self._capture,
                finished_callback=self._finished,
            ),
        )
        return self

    async def record(self) -> AsyncIterator[Float32]:
        """float32 [320] at 16 kHz from now until `stop`; the last may be shorter. What was captured before
        `stop` still comes, so end a recording with `stop` rather than by leaving the loop.

        Raises DeviceError when the device goes away, RuntimeError for a second recording at once.
        """
        self._begin()
        resampler = Resampler(self.rate)
        cutter = FrameCutter(SPEECH_RATE * FRAME_MS // 1000)
        try:
            while not (block := self._next_block()).last:
                if block.samples is None:
                    await self._arrived.wait()
                    continue
                for frame in cutter.feed(resampler.feed(block.samples)):
                    yield frame
            for frame in cutter.feed(resampler.flush()):
                yield frame
            if len(rest := cutter.rest()):
                yield rest
            if self._lost:
                raise lost("input")
        finally:
            self.stop()
            self._recording = False

    def stop(self) -> None:
        """The button is released: no more is captured. Lawful at any time."""
        if not self._recording or self._ended:
            return
        self._end(gone=False)
        self._stream.stop()

    def statistics(self) -> MicrophoneStatistics:
        with self._lock:
            return MicrophoneStatistics(
                self._captured, self._delivered, self._dropped, len(self._blocks), self._forgotten, self._gaps
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _begin(self) -> None:
        if self._stream is None or self._recording:
            raise RuntimeError("record() needs an open microphone that is not recording already")
        with self._lock:
            self._forgotten += len(self._blocks)
            self._blocks.clear()
            self._ended = self._lost = False
        self._recording = True
        try:
            opening(self._module, "input", self._stream.start)
        except BaseException:
            self._recording = False
            raise

    def _next_block(self) -> _Next:
        with self._lock:
            if self._blocks:
                self._delivered += 1
                return _Next(self._blocks.popleft())
            self._loop_waits = not self._ended
            self._arrived.clear()
            return _Next(None, last=self._ended)

    def _capture(self, block: Float32, _frames: int, _moment: Any, status: Any) -> None:
        """Called in PortAudio's thread; `block` is float32 [n, channels] of a buffer that is used again."""
        with self._lock:
            if self._ended:
                return
            self._captured += 1
            self._gaps += bool(status.input_overflow)
            if len(self._blocks) == self._capacity:
                self._blocks.popleft()
                self._dropped += 1
            self._blocks.append(block.copy())
            self._wake()

    def _finished(self) -> None:
        """Called in PortAudio's thread when the stream has stopped, asked or not."""
        self._end(gone=True)

    def _end(self, *, gone: bool) -> None:
        with self._lock:
            if not self._ended:
                self._ended, self._lost = True, gone
            self._wake()

    def _wake(self) -> None:
        # One call waits in the loop at most, however long the loop is busy.
        if self._loop_waits:
            self._loop_waits = False
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._arrived.set)
