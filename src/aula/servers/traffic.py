"""What is under way, and the end of it: a server that is asked to stop finishes turns first."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aula.core.clock import Clock, within


class Traffic:
    """`turns` are what is finished before the end: requests for answers, and answers of a Realtime conversation.
    `guests` stay from turn to turn; once `closing` is set each leaves by itself, when its turn is over.
    `is_closing`: nothing new is begun."""

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()
        """Where it listens, for HTTP."""
        self.connections = 0
        self.turns = 0
        self.guests = 0
        self.is_warm = True
        self.is_closing = False
        self.closing = asyncio.Event()
        """For feeds without an end, which leave when it is set."""
        self._quiet = asyncio.Event()
        self._quiet.set()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.turns += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self.turns -= 1
            self._left()

    @contextmanager
    def guest(self) -> Iterator[None]:
        self.guests += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self.guests -= 1
            self._left()

    def _left(self) -> None:
        if not self.turns and not self.guests:
            self._quiet.set()

    def close(self) -> None:
        self.is_closing = True
        self.closing.set()

    async def finished(self, clock: Clock, seconds: float) -> bool:
        """Whether all turns ended, and all guests left, in that time."""
        try:
            async with within(clock, seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
