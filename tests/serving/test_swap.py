"""A new model beside the old one: it takes the place whole, or not at all."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.core.errors import BackendError, SettingsError
from aula.core.types import Capability, Context, DetectRequest
from aula.runtime import Runtime, Swap
from tests.serving.hand import HandThread, House, by_hand, rung, runtime, settle, start, work

EMBED, DETECT = Capability.EMBED, Capability.DETECT
ASKED = Context()


class Named(House):
    """Its vectors say which model made them."""

    def __init__(self, clock: FakeClock, mark: float) -> None:
        super().__init__(clock)
        self.mark = mark

    def embed(self, texts: Any) -> Any:
        return super().embed(texts) * 0 + np.float32(self.mark)


async def _done(awaitable: Any) -> Any:
    task = asyncio.ensure_future(awaitable)
    await work()
    return await task


async def _mark(running: Runtime) -> float:
    outcome = await _done(running.submit(EMBED, ["a"], ASKED))
    return float(outcome.value[0, 0])


async def test_the_new_model_serves_after_its_canary_and_the_old_one_is_closed() -> None:
    with by_hand():
        clock = FakeClock()
        old, new = Named(clock, 1), Named(clock, 2)
        running = runtime(rung("best", old), clock=clock)
        assert await _mark(running) == 1
        told: Swap = await _done(running.swap(rung("best", new)))
        assert told.error is None
        assert await _mark(running) == 2
        assert old.is_closed
        await _done(running.close())
        assert new.is_closed


async def test_what_runs_on_the_old_one_ends_there_and_what_comes_meanwhile_is_served() -> None:
    with by_hand():
        clock = FakeClock()
        old, new = Named(clock, 1), Named(clock, 2)
        running = runtime(rung("best", old), clock=clock)
        await _mark(running)
        first = start(running, EMBED, ["a"], ASKED)
        await settle()
        waiting = start(running, EMBED, ["b"], ASKED)
        swapping = asyncio.ensure_future(running.swap(rung("best", new)))
        await settle()
        old_thread, new_thread = HandThread.all
        while not swapping.done():
            assert new_thread.run()
            await settle()
        assert not old.is_closed, "a batch is on its way there"
        while old_thread.run():
            await settle()
        assert first.result().value[0, 0] == 1
        await work()
        assert waiting.result().value[0, 0] == 2
        assert old.is_closed


@pytest.mark.parametrize("fault", ["load", "raise", "nan"])
async def test_a_bad_one_never_serves_and_the_reason_is_told(fault: str) -> None:
    with by_hand():
        clock = FakeClock()
        old, bad = Named(clock, 1), Named(clock, float("nan") if fault == "nan" else 2)
        broken = BackendError("another TensorRT", next_step="build it here")
        bad.load_failure = broken if fault == "load" else None
        bad.failure = broken if fault == "raise" else None
        running = runtime(rung("best", old), clock=clock)
        await _mark(running)
        told: Swap = await _done(running.swap(rung("best", bad)))
        assert told.error is not None
        assert ("NaN" if fault == "nan" else "another TensorRT") in str(told.error)
        assert await _mark(running) == 1
        assert not running.events, "no breaker is to blame"
        assert (old.is_closed, len((await running.memory())[0].loaded)) == (False, 1)


async def test_a_stream_stays_on_the_old_model_which_is_closed_after_it() -> None:
    with by_hand():
        clock = FakeClock()
        old, new = House(clock), House(clock)
        running = runtime(rung("best", old, DETECT), clock=clock)
        stream = (await _done(running.submit(DETECT, DetectRequest(), ASKED))).value
        await _done(running.swap(rung("best", new, DETECT)))
        assert await _done(stream.feed(np.zeros(320, np.float32))) == [0.5]
        assert not old.is_closed
        await _done(stream.close())
        await work()
        assert old.is_closed
        again = (await _done(running.submit(DETECT, DetectRequest(), ASKED))).value
        await _done(again.close())
        assert not new.is_closed


async def test_a_swap_mends_an_open_breaker_at_once() -> None:
    with by_hand():
        clock = FakeClock()
        old = Named(clock, 1)
        running = runtime(rung("best", old), rung("second", Named(clock, 3)), clock=clock)
        await _mark(running)
        old.failure = BackendError("worn out", next_step="swap it")
        for _ in range(3):
            assert await _mark(running) == 3
        await _done(running.swap(rung("best", Named(clock, 2))))
        assert await _mark(running) == 2
        assert running.events[-1].cause == "swap"


async def test_closing_while_a_swap_is_under_way_ends_both() -> None:
    with by_hand():
        clock = FakeClock()
        new = Named(clock, 2)
        running = runtime(rung("best", Named(clock, 1)), clock=clock)
        await _mark(running)
        swapping = asyncio.ensure_future(running.swap(rung("best", new)))
        await settle()
        await _done(running.close())
        await work()
        assert swapping.done()
        assert swapping.exception() is None or isinstance(swapping.exception(), RuntimeError)
        assert new.is_closed or not new.loads


async def test_a_swap_that_is_cancelled_leaves_the_old_one_and_may_be_tried_again() -> None:
    with by_hand():
        clock = FakeClock()
        running = runtime(rung("best", Named(clock, 1)), clock=clock)
        await _mark(running)
        given_up = Named(clock, 2)
        swapping = asyncio.ensure_future(running.swap(rung("best", given_up)))
        await settle()
        swapping.cancel()
        await work()
        assert swapping.cancelled()
        assert await _mark(running) == 1
        assert (await _done(running.swap(rung("best", Named(clock, 3))))).error is None
        assert await _mark(running) == 3
        assert given_up.is_closed or not given_up.loads


async def test_only_a_rung_that_is_there_can_be_swapped_and_once_at_a_time() -> None:
    with by_hand():
        clock = FakeClock()
        running = runtime(rung("best", House(clock)), clock=clock)
        for other in (rung("other", House(clock), worker="best"), rung("best", House(clock), worker="other")):
            with pytest.raises(SettingsError, match="best on best"):
                await running.swap(other)
        with pytest.raises(SettingsError, match="doctor"):
            await running.swap(rung("best", House(clock), Capability.SPEAK))
        first = asyncio.ensure_future(running.swap(rung("best", House(clock))))
        await settle()
        with pytest.raises(SettingsError, match="already"):
            await running.swap(replace(rung("best", House(clock))))
        await work()
        assert (await first).error is None
