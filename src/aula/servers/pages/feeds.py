"""Server-sent events. What happens is put into a client's feed, which is bounded: one who does not read loses the
oldest, is told how many, and holds nobody up."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

from aula.core.clock import Clock
from aula.core.errors import OverloadError

MOST_WAITING = 64
"""Events that may wait for one client."""
MOST_FEEDS = 64
"""Clients at once, of all pages together."""
BEAT_SECONDS = 15.0
"""Well under the minute after which proxies give a silent connection up."""


@dataclass(eq=False)
class Feed:
    """One client's events, in order; `latest` ones replace their like that still waits."""

    most: int = MOST_WAITING
    lost: int = 0
    _waiting: deque[tuple[str, Any]] = field(default_factory=deque)
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, name: str, value: Any, *, latest: bool = False) -> None:
        if latest:
            self._waiting = deque(one for one in self._waiting if one[0] != name)
        if len(self._waiting) >= self.most:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append((name, value))
        self._stirred.set()

    def take(self) -> list[tuple[str, Any]]:
        taken, self._waiting = list(self._waiting), deque()
        self._stirred.clear()
        if self.lost:
            taken.insert(0, ("lost", self.lost))
            self.lost = 0
        return taken

    async def wait(self, clock: Clock, until: float) -> bool:
        """Until something is there, or that moment; whether something is."""
        waits = [asyncio.ensure_future(self._stirred.wait()), asyncio.ensure_future(clock.sleep_until(until))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._stirred.is_set()


class Feeds:
    """How many there are."""

    def __init__(self, most: int = MOST_FEEDS) -> None:
        self.open = 0
        self._most = most

    def enter(self) -> None:
        """Raises OverloadError where there are too many."""
        if self.open >= self._most:
            raise OverloadError(
                f"{self.open} pages are watching, which is as many as may",
                reason="connections",
                retry_after_s=5.0,
                next_step="close a page that nobody looks at, or try again in a moment",
            )
        self.open += 1

    def leave(self) -> None:
        self.open -= 1


class EventStream:
    """The answer to a page that watches. `leave` is called once, however it ends, also before it began."""

    def __init__(self, events: AsyncGenerator[bytes, None], leave: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
        self._answer = StreamingResponse(events, headers=headers, media_type="text/event-stream")
        self._events = events
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._leave()
            await self._events.aclose()


def event(name: str, value: Any) -> bytes:
    """JSON has no bare line end, so that one line of data is enough."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value))


BEAT = b": beat\n\n"
