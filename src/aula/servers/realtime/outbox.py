"""What waits to be sent to one client: bounded, for a client that never reads must cost nobody anything."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """`waiting` texts of `characters` together; `sent` since the connection opened."""

    waiting: int
    characters: int
    sent: int


class OutboxFullError(Exception):
    """The client has not read for too long."""


class Outbox:
    """Texts in order. Sound waits while the box is half full (`room`); anything else fills it up to its limit."""

    def __init__(self, limit: int) -> None:
        """`limit` in characters."""
        self._limit = limit
        self._waiting: deque[str] = deque()
        self._characters = 0
        self._sent = 0
        self._more = asyncio.Event()
        self._less = asyncio.Event()

    def put(self, text: str) -> None:
        """Raises OutboxFullError beyond the limit."""
        if self._characters + len(text) > self._limit:
            raise OutboxFullError(f"{self._characters} characters wait already")
        self._waiting.append(text)
        self._characters += len(text)
        self._more.set()

    async def room(self) -> None:
        while 2 * self._characters > self._limit:
            self._less.clear()
            await self._less.wait()

    async def send_all(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Until cancelled, or until `send` raises."""
        while True:
            while self._waiting:
                text = self._waiting[0]
                await send(text)
                self._waiting.popleft()
                self._characters -= len(text)
                self._sent += 1
                self._less.set()
            self._more.clear()
            await self._more.wait()

    def rest(self) -> list[str]:
        """What was not sent."""
        rest = list(self._waiting)
        self._waiting.clear()
        self._characters = 0
        return rest

    def statistics(self) -> OutboxStatistics:
        return OutboxStatistics(len(self._waiting), self._characters, self._sent)
