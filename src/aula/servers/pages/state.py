"""What an operator sees: figures alone, and never a word of what somebody asked."""

from collections import Counter
from collections.abc import Callable
from time import time
from typing import Any

import msgspec

from aula.core.telemetry import DRAFTS, REFUSALS
from aula.servers.guests import Guests
from aula.servers.house import House
from aula.servers.pages.spread import by_clock, over_time, spread
from aula.servers.turn_log import TurnRecord

SHOWN_EVENTS = 30
FRESH_SECONDS = 1.0
"""A state that is younger is shown again: however many look, the runtime is asked once a second."""


class State:
    def __init__(self, house: House, wall: Callable[[], float] = time) -> None:
        """`wall` is Unix time, as in the log of turns."""
        self._house = house
        self._wall = wall
        self._made = -FRESH_SECONDS
        self._last: bytes = b""

    async def as_json(self) -> bytes:
        now = self._house.runtime.clock.now()
        if not self._last or now - self._made >= FRESH_SECONDS:
            self._made = now
            self._last = msgspec.json.encode(await self._now())
        return self._last

    def forget(self) -> None:
        """Something was changed: the next look must see it."""
        self._last = b""

    async def _now(self) -> dict[str, Any]:
        runtime, wall = self._house.runtime, self._wall()
        now = runtime.clock.now()
        told = runtime.statistics()
        ladders = runtime.ladders()
        turns = by_clock(tuple(self._house.turns.turns))
        return {
            "now": wall,
            "requests": {
                name: getattr(told, name)
                for name in ("submitted", "answered", "refused", "failed", "cancelled", "in_flight")
            },
            "waiting": sum(one.waiting for one in told.schedulers),
            "running": sum(one.running for one in told.schedulers),
            "late": sum(one.late for one in told.schedulers),
            "ladders": [
                {
                    "name": ladder.name,
                    "overridden": ladder.overridden,
                    "rungs": [
                        {
                            "name": rung.name,
                            "state": rung.state,
                            "served": rung.served,
                            "failed": rung.failed,
                            "unavailable": rung.unavailable,
                            "renewable": rung.name in ladder.renewable,
                        }
                        for rung in told.rungs
                        if rung.capability == ladder.name.partition(".")[0] and rung.name in ladder.rungs
                    ],
                }
                for ladder in ladders
            ],
            "shares": runtime.shares(),
            "refusals": self._refusals(),
            "drafts": {labels[0]: count for labels, count in runtime.telemetry.values(DRAFTS).items()},
            "memory": [
                {"device": one.device, "limit": one.limit, "used": one.used, "loaded": one.loaded}
                for one in await runtime.memory()
            ],
            "events": [
                {
                    "ago": max(0.0, now - one.moment),
                    "ladder": one.capability,
                    "rung": one.rung,
                    "state": one.state,
                    "cause": one.cause,
                }
                for one in list(runtime.events)[-SHOWN_EVENTS:]
            ],
            "clocks": {
                clock: {
                    "all": spread([turn.timings_ms["commit_to_first_audio"] for turn in those]),
                    "minutes": over_time(those, wall),
                }
                for clock, those in turns.items()
            },
        }

    def _refusals(self) -> dict[str, float]:
        """By reason: at the door, where quotas of keys are, and behind it."""
        found = Counter({labels[0]: count for labels, count in self._house.runtime.telemetry.values(REFUSALS).items()})
        if isinstance(self._house.doorman, Guests):
            found.update(self._house.doorman.refused)
        return dict(found)


def shown(turn: TurnRecord) -> dict[str, Any]:
    """A turn without its words."""
    return {
        "moment": turn.moment,
        "tenant": turn.tenant,
        "course": turn.course,
        "language": turn.language,
        "door": turn.door,
        "clock": turn.clock,
        "intent": turn.intent,
        "refused": turn.refused,
        "drafted": turn.drafted,
        "timings_ms": turn.timings_ms,
        "rungs": turn.rungs,
        "error": turn.error,
    }
