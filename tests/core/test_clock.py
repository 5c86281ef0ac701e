import asyncio

import pytest

from aula.core.clock import FakeClock, SystemClock


async def test_fake_clock_wakes_sleepers_in_order_and_no_earlier() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, moment: float) -> None:
        await clock.sleep_until(moment)
        woken.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper(name, moment)) for name, moment in (("late", 2.0), ("early", 1.0))]
    await asyncio.sleep(0)
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(5)
    await asyncio.gather(*tasks)
    assert sorted(name for name, _ in woken) == ["early", "late"]
    assert clock.now() == 5.5


async def test_sleeping_until_the_past_returns_at_once() -> None:
    await FakeClock(10.0).sleep_until(3.0)
    await SystemClock().sleep_until(0.0)


async def test_a_cancelled_sleeper_does_no_harm() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep_until(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    clock.advance(2)
    assert clock.now() == 2


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="go back"):
        FakeClock().advance(-1)
    clock = SystemClock()
    assert clock.now() <= clock.now()
