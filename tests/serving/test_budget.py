"""What is loaded is known, what is idle makes room, and nothing is loaded into a full device."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import NoRungError
from aula.core.types import Capability, Context, DetectRequest
from aula.runtime import Rules, Rung, Runtime
from aula.serving.budget import Budget
from aula.serving.memory import Memory
from tests.serving.hand import House, by_hand, rung, work

EMBED, DETECT, UNDERSTAND = Capability.EMBED, Capability.DETECT, Capability.UNDERSTAND
MIB = 2**20


def _sized(name: str, house: House, capability: Capability, mib: int) -> Rung:
    return replace(rung(name, house, capability), device="gpu0", needs=lambda: mib * MIB)


class Card:
    """A GPU with 1000 MiB, of which models may take 920; three capabilities, each on a worker of its own."""

    def __init__(self, *sizes: int, used: int = 0) -> None:
        self.clock = FakeClock()
        self.memory = Memory("gpu0", used * MIB, 1000 * MIB)
        self.houses = [House(self.clock) for _ in range(3)]
        rungs = [
            _sized(name, house, capability, mib)
            for name, house, capability, mib in zip(
                ("embedder", "detector", "understander"),
                self.houses,
                (EMBED, DETECT, UNDERSTAND),
                sizes,
                strict=True,
            )
        ]
        self.runtime = Runtime(rungs, self.clock, budget=Budget({}, lambda: [self.memory]))

    async def ask(self, capability: Capability, tier: str = "question") -> Any:
        payload: Any = {EMBED: ["a"], DETECT: DetectRequest(), UNDERSTAND: "why"}[capability]
        self.clock.advance(1.0)
        task = asyncio.ensure_future(self.runtime.submit(capability, payload, Context(tier=tier)))
        await work()
        outcome = await task
        if capability is DETECT:
            closing = asyncio.ensure_future(outcome.value.close())
            await work()
            await closing
        return outcome

    async def loaded(self) -> list[str]:
        (device,) = await self.runtime.memory()
        assert sum(held for _, held in device.loaded) <= (device.limit or 0)
        return [name for name, _ in device.loaded]


async def test_idle_models_of_the_lowest_tier_make_room_first() -> None:
    with by_hand():
        card = Card(400, 400, 400)
        await card.ask(EMBED, "question")
        await card.ask(DETECT, "batch")
        await card.ask(UNDERSTAND)
        assert await card.loaded() == ["embedder", "understander"]
        assert card.houses[1].is_closed
        await card.ask(DETECT, "batch")
        assert await card.loaded() == ["detector", "understander"], "of one tier, the one idle longest"
        assert card.houses[1].loads == 2


async def test_what_never_fits_is_refused_and_nothing_is_put_away_for_it() -> None:
    with by_hand():
        card = Card(400, 400, 2000)
        await card.ask(EMBED)
        await card.ask(DETECT)
        with pytest.raises(NoRungError, match=r"needs 2,000 MiB on gpu0.*Available: embedder 400 MiB"):
            await card.ask(UNDERSTAND)
        assert await card.loaded() == ["embedder", "detector"]
        assert card.houses[2].loads == 0


async def test_a_model_with_an_open_stream_is_not_idle() -> None:
    with by_hand():
        card = Card(600, 600, 100)
        task = asyncio.ensure_future(card.runtime.submit(DETECT, DetectRequest(), Context()))
        await work()
        stream = (await task).value
        with pytest.raises(NoRungError, match="600 MiB"):
            await card.ask(EMBED)
        closing = asyncio.ensure_future(stream.close())
        await work()
        await closing
        card.clock.advance(2.0)
        await work()
        card.clock.advance(0.5)
        await work()
        card.clock.advance(0.5)
        await work()
        assert (await card.ask(EMBED)).rung == "embedder", "the canary found room"


async def test_what_others_on_the_device_use_is_seen() -> None:
    with by_hand():
        card = Card(400, 400, 400, used=600)
        with pytest.raises(NoRungError, match="320 MiB are left"):
            await card.ask(EMBED)


async def test_a_limit_of_the_operator_s_holds_where_it_is_less() -> None:
    with by_hand():
        clock = FakeClock()
        house = House(clock)
        rules = Rules(memory={"gpu": 300 * MIB})
        running = Runtime([_sized("big", house, EMBED, 400)], clock, rules=rules)
        task = asyncio.ensure_future(running.submit(EMBED, ["a"], Context()))
        await work()
        with pytest.raises(NoRungError, match="300 MiB are left"):
            await task


async def test_models_of_one_thread_go_together_and_are_made_anew() -> None:
    with by_hand():
        clock = FakeClock()
        forgotten: list[str] = []
        shared, other = House(clock), House(clock)
        rungs = [
            replace(_sized("one", shared, EMBED, 300), worker="w", forget=lambda: forgotten.append("one")),
            replace(_sized("two", shared, UNDERSTAND, 300), worker="w", forget=lambda: forgotten.append("two")),
            _sized("three", other, DETECT, 600),
        ]
        budget = Budget({"gpu": 900 * MIB}, list)
        running = Runtime(rungs, clock, budget=budget)
        for capability, payload in ((EMBED, ["a"]), (UNDERSTAND, "why"), (DETECT, DetectRequest())):
            task = asyncio.ensure_future(running.submit(capability, payload, Context()))
            await work()
            await task
        assert sorted(forgotten) == ["one", "two"]
        assert [name for device in await running.memory() for name, _ in device.loaded] == ["three"]
