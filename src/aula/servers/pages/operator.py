"""What the operator's page asks: the state as it changes, and what an operator may change."""

from collections.abc import AsyncGenerator, Callable
from time import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aula.core.errors import InputError
from aula.servers.house import House
from aula.servers.pages.answers import answer, body_as
from aula.servers.pages.feeds import EventStream, Feed, Feeds, event
from aula.servers.pages.state import State, shown

ABILITY = "operate"
EVERY_SECONDS = 2.0
"""How often the state is told anew; turns are told as they end."""
SHOWN_TURNS = 60
"""Of the log, to one who has just come."""


class Override(msgspec.Struct, forbid_unknown_fields=True):
    """`rung` None gives the choice back to the ladder."""

    ladder: str
    rung: str | None


class Renewal(msgspec.Struct, forbid_unknown_fields=True):
    ladder: str
    rung: str


class Operator:
    def __init__(self, house: House, wall: Callable[[], float] = time) -> None:
        self._house = house
        self._state = State(house, wall)
        self._feeds = Feeds()

    async def state(self, request: Request) -> EventStream:
        """Events `turns` (once), `turn` and `state`, until the page is closed."""
        self._house.doorman.admit(request, ABILITY)
        self._feeds.enter()
        return EventStream(self._told(), self._feeds.leave)

    async def override(self, request: Request) -> Response:
        self._house.doorman.admit(request, ABILITY)
        wanted = await body_as(request, Override)
        ladders = [ladder.name for ladder in self._house.runtime.ladders()]
        if wanted.ladder not in ladders:
            raise InputError(
                f"there is no ladder {wanted.ladder[:80]!r}", available=ladders, next_step="name one of these"
            )
        choose: Callable[..., None] = self._house.runtime.override
        choose(wanted.ladder, wanted.rung)
        self._state.forget()
        return answer({"ladder": wanted.ladder, "rung": wanted.rung})

    async def renew(self, request: Request) -> Response:
        """Load a rung's model anew, beside the old one; `error` says why the old one goes on."""
        self._house.doorman.admit(request, ABILITY)
        wanted = await body_as(request, Renewal)
        swapped = await self._house.runtime.renew(wanted.ladder, wanted.rung)
        self._state.forget()
        error = None if swapped.error is None else str(swapped.error)
        return answer({"ladder": wanted.ladder, "rung": swapped.rung, "load_ms": swapped.load_ms, "error": error})

    async def _told(self) -> AsyncGenerator[bytes, None]:
        feed, clock = Feed(), self._house.runtime.clock
        unwatch = self._house.turns.watch(lambda turn: feed.put("turn", shown(turn)))
        try:
            recent = list(self._house.turns.turns)[-SHOWN_TURNS:]
            yield event("turns", [shown(turn) for turn in recent])
            due = clock.now()
            while True:
                if clock.now() >= due:
                    due = clock.now() + EVERY_SECONDS
                    yield b"event: state\ndata: %s\n\n" % await self._state.as_json()
                for name, value in feed.take():
                    yield event(name, value)
                await feed.wait(clock, due)
        finally:
            unwatch()
