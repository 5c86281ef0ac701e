"""Calls back at moments of the clock. It guards turns (a hang, a deadline long past) and is never on their way."""

import asyncio
import heapq
import math
from collections.abc import Callable
from itertools import count

from aula.core.clock import Clock


class Bell:
    """One moment; rung once, or never where it was taken back."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call


class Alarm:
    """One task sleeps until the earliest moment; where nothing is set, none does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bells: list[tuple[float, int, Bell]] = []
        self._order = count()
        self._silent = 0
        self._sleeper: asyncio.Task[None] | None = None
        self._sleeps_until = math.inf

    def now(self) -> float:
        return self._clock.now()

    def at(self, moment: float, call: Callable[[], None]) -> Bell:
        bell = Bell(call)
        heapq.heappush(self._bells, (moment, next(self._order), bell))
        if moment < self._sleeps_until:
            self._sleep(moment)
        return bell

    def take_back(self, bell: Bell) -> None:
        if bell.call is None:
            return
        bell.call = None
        self._silent += 1
        # A deadline in a year would else be kept for a year.
        if self._silent > 64 and 2 * self._silent > len(self._bells):
            self._bells = [entry for entry in self._bells if entry[2].call is not None]
            heapq.heapify(self._bells)
            self._silent = 0

    def close(self) -> None:
        self._bells.clear()
        self._sleeps_until = -math.inf
        if self._sleeper is not None:
            self._sleeper.cancel()

    def _sleep(self, moment: float) -> None:
        if self._sleeper is not None:
            self._sleeper.cancel()
        self._sleeps_until = moment
        self._sleeper = asyncio.get_running_loop().create_task(self._wait(moment))

    async def _wait(self, moment: float) -> None:
        await self._clock.sleep_until(moment)
        self._sleeper, self._sleeps_until = None, math.inf
        now = self._clock.now()
        while self._bells and self._bells[0][0] <= now:
            bell = heapq.heappop(self._bells)[2]
            call, bell.call = bell.call, None
            if call is None:
                self._silent -= 1
                continue
            try:
                call()
            except Exception as error:  # a defect, said aloud; the others are called all the same
                asyncio.get_running_loop().call_exception_handler({"message": f"{call} failed", "exception": error})
        while self._bells and self._bells[0][2].call is None:
            heapq.heappop(self._bells)
            self._silent -= 1
        if self._bells and self._bells[0][0] < self._sleeps_until:
            self._sleep(self._bells[0][0])
