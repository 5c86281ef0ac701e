"""The loudspeaker: int16 chunks are heard as they come."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from aula.audio.devices import Device, agree_on_format, load_sounddevice, lost, opening
from aula.audio.resampling import Resampler
from aula.core.clock import Clock, SystemClock
from aula.core.types import Float32, Int16

_FULL_SCALE = np.float32(32_768)

_LATENCY_SECONDS = 0.03
"""Asked of the device: short beside an answer's 100 ms, and long enough for a callback that waits for Python."""


@dataclass(frozen=True, slots=True)
class LoudspeakerStatistics:
    """Samples at the device's rate: queued = played + dropped + waiting. `gaps`: times that the queue ran dry
    inside one answer; `underflows`: times that the device itself ran dry."""

    queued: int
    played: int
    dropped: int
    waiting: int
    gaps: int
    underflows: int


class Loudspeaker:
    """Inside its with-block the device is open and silent, so that the first chunk sounds at once.

        async with Loudspeaker(22_050) as loudspeaker:
            async for chunk in speech:
                await loudspeaker.play(chunk)
            await loudspeaker.drained()

    The queue holds `capacity_seconds`. Nothing is lost when it is full: `play` waits.
    """

    def __init__(
        self,
        rate: int,
        device: Device = None,
        *,
        capacity_seconds: float = 10.0,
        clock: Clock | None = None,
        module: Any = None,
    ) -> None:
        """`rate` of the chunks, in samples a second. `module` stands in for sounddevice."""
        self.rate = rate
        self.device = device
        self._capacity_seconds = capacity_seconds
        self._resampler = Resampler(rate, rate)
        self._clock = clock or SystemClock()
        self._module = module
        self._lock = threading.Lock()
        self._chunks: deque[Int16] = deque()
        self._stream: Any = None
        self._lost = self._closing = self._loop_waits = self._heard = self._ran_dry = False
        self._waiting = self._queued = self._played = self._dropped = self._gaps = self._underflows = 0
        self._stops = 0

    async def __aenter__(self) -> Self:
        """Raises DeviceError where there is no PortAudio or no loudspeaker."""
        module = self._module = self._module or load_sounddevice()
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        agreed = agree_on_format(module, "output", self.device, "int16", self.rate)
        self._resampler = Resampler(self.rate, agreed.rate)
        self._capacity = max(1, int(agreed.rate * self._capacity_seconds))
        self._stream = opening(
            module,
            "output",
            lambda: module.OutputStream(
                device=self.device,
                samplerate=agreed.rate,
                channels=agreed.channels,
                dtype="int16",
                latency=_LATENCY_SECONDS,
                callback=self._fill,
                finished_callback=self._finished,
            ),
        )
        try:
            opening(module, "output", self._stream.start)
        except BaseException:
            self._close()
            raise
        return self

    async def play(self, chunk: Int16) -> None:
        """Queue int16 [n], waiting for room. Returns without it when `stop` comes meanwhile. Raises TypeError for
        another dtype or shape, DeviceError when the device goes away."""
        if chunk.dtype != np.int16 or chunk.ndim != 1:
            raise TypeError(f"a chunk is {chunk.dtype}{list(chunk.shape)}; expected int16[n]")
        if self._resampler.rate == self._resampler.target_rate:
            await self._queue(chunk.copy())
        else:
            await self._queue(_to_int16(self._resampler.feed(chunk.astype(np.float32) / _FULL_SCALE)))

    async def drained(self) -> None:
        """Return when the last sample has left the device, or after `stop`. The next chunk begins a new answer."""
        await self._queue(_to_int16(self._resampler.flush()))
        while True:
            with self._lock:
                self._check_alive()
                if not self._waiting:
                    heard, self._heard, self._ran_dry = self._heard, False, False
                    break
                self._expect_move()
            await self._moved.wait()
        if heard:
            await self._clock.sleep_until(self._clock.now() + float(self._stream.latency))

    def stop(self) -> None:
        """Silence now: forget what is queued. Chunks may follow."""
        with self._lock:
            self._stops += 1
            self._dropped += self._waiting
            self._waiting = 0
            self._chunks.clear()
            self._heard = self._ran_dry = False
            self._wake()
        self._resampler.flush()

    def statistics(self) -> LoudspeakerStatistics:
        with self._lock:
            return LoudspeakerStatistics(
                self._queued, self._played, self._dropped, self._waiting, self._gaps, self._underflows
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._close()

    def _close(self) -> None:
        self._closing = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    async def _queue(self, chunk: Int16) -> None:
        stops = self._stops
        while True:
            with self._lock:
                self._check_alive()
                if self._stops != stops or not len(chunk):
                    return
                # A chunk above the capacity is taken alone rather than never.
                if not self._waiting or self._waiting + len(chunk) <= self._capacity:
                    self._gaps += self._ran_dry
                    self._ran_dry = False
                    self._chunks.append(chunk)
                    self._waiting += len(chunk)
                    self._queued += len(chunk)
                    return
                self._expect_move()
            await self._moved.wait()

    def _check_alive(self) -> None:
        if self._lost:
            raise lost("output")
        if self._stream is None:
            raise RuntimeError("this loudspeaker is not open; use it in a with-block")

    def _expect_move(self) -> None:
        self._loop_waits = True
        self._moved.clear()

    def _fill(self, block: Int16, _frames: int, _moment: Any, status: Any) -> None:
        """Called in PortAudio's thread; `block` is int16 [n, channels], to be filled whole."""
        with self._lock:
            self._underflows += bool(status.output_underflow)
            filled = 0
            while self._chunks and filled < len(block):
                chunk = self._chunks.popleft()
                taken = min(len(chunk), len(block) - filled)
                block[filled : filled + taken] = chunk[:taken, None]
                if taken < len(chunk):
                    self._chunks.appendleft(chunk[taken:])
                filled += taken
            block[filled:] = 0
            self._waiting -= filled
            self._played += filled
            self._heard = self._heard or filled > 0
            self._ran_dry = self._heard and not self._waiting
            self._wake()

    def _finished(self) -> None:
        """Called in PortAudio's thread when the stream has stopped, asked or not."""
        with self._lock:
            self._lost = not self._closing
            self._wake()

    def _wake(self) -> None:
        # One call waits in the loop at most, however long the loop is busy.
        if self._loop_waits:
            self._loop_waits = False
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._moved.set)


def _to_int16(samples: Float32) -> Int16:
    bounded: Float32 = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return bounded.astype(np.int16)
