"""What is under way, and the end of it: a server that is asked to stop finishes turns first."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aula.core.clock import Clock, within


class Traffic:
    """`turns` are what is finished before the end: requests for answers, and turns of a Realtime conversation.
    `is_closing`: nothing new is begun."""

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()
        """Where it listens, for HTTP."""
        self.connections = 0
        self.turns = 0
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
            if not self.turns:
                self._quiet.set()

    def close(self) -> None:
        self.is_closing = True
        self.closing.set()

    async def finished(self, clock: Clock, seconds: float) -> bool:
        """Whether all turns ended in that time."""
        try:
            async with within(clock, seconds):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
