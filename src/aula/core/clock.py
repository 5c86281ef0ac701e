"""Where time comes from. Nothing else in aula reads a clock or sleeps."""

import asyncio
import heapq
import itertools
import time
from types import TracebackType
from typing import Protocol, Self


class Clock(Protocol):
    """Monotonic seconds and a way to wait for a moment."""

    def now(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Return as soon as `now()` has reached `moment`; at once if it is past."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.perf_counter()

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self.now()))


class FakeClock:
    """A clock that moves only when told to, so that tests neither wait nor flake."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep_until(self, moment: float) -> None:
        if moment <= self._now:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment, next(self._order), woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking sleepers in the order of their moments."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back (by {-seconds} s)")
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            self._now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
        self._now = target


class within:  # noqa: N801 - read as a word: `async with within(clock, 5.0):`
    """Raises TimeoutError where the block has not ended after so many seconds of the clock; asyncio.timeout knows
    only the loop's own."""

    __slots__ = ("_cancelling", "_clock", "_is_late", "_is_over", "_seconds", "_sleeper", "_task")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._is_late = self._is_over = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._sleeper = asyncio.ensure_future(self._clock.sleep_until(self._clock.now() + self._seconds))
        self._sleeper.add_done_callback(self._late)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._sleeper.cancel()
        if self._is_late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError(f"not done in {self._seconds:g} s") from error

    def _late(self, sleeper: "asyncio.Future[None]") -> None:
        if not sleeper.cancelled() and not self._is_over:
            self._is_late = True
            self._task.cancel()
