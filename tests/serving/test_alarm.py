import asyncio
from typing import Any

from aula.core.clock import FakeClock
from aula.serving.alarm import Alarm
from tests.serving.hand import settle


async def test_moments_ring_in_their_order_whenever_they_were_set() -> None:
    clock, rung = FakeClock(), list[str]()
    alarm = Alarm(clock)
    for name, moment in (("late", 3.0), ("soon", 1.0), ("then", 2.0)):
        alarm.at(moment, lambda name=name: rung.append(name))  # type: ignore[misc]
    await settle()
    for seconds, heard in ((0.5, []), (0.5, ["soon"]), (5.0, ["soon", "then", "late"])):
        clock.advance(seconds)
        await settle()
        assert rung == heard


async def test_what_is_taken_back_is_silent_and_takes_no_room() -> None:
    clock, rung = FakeClock(), list[int]()
    alarm = Alarm(clock)
    bells = [alarm.at(1e9, lambda: rung.append(1)) for _ in range(10_000)]
    for bell in bells:
        alarm.take_back(bell)
        alarm.take_back(bell)
    assert len(alarm._bells) < 200
    alarm.at(1.0, lambda: rung.append(2))
    clock.advance(2e9)
    await settle()
    clock.advance(0.0)
    await settle()
    assert rung == [2]


async def test_one_may_set_another_from_within() -> None:
    clock, rung = FakeClock(), list[str]()
    alarm = Alarm(clock)

    def first() -> None:
        rung.append("first")
        alarm.at(2.0, lambda: rung.append("second"))

    alarm.at(1.0, first)
    await settle()
    clock.advance(1.0)
    await settle()
    clock.advance(1.0)
    await settle()
    assert rung == ["first", "second"]


async def test_one_that_raises_is_told_and_the_others_ring() -> None:
    clock, rung, told = FakeClock(), list[str](), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    alarm = Alarm(clock)
    alarm.at(1.0, lambda: [][0])
    alarm.at(1.0, lambda: rung.append("other"))
    await settle()
    clock.advance(1.0)
    await settle()
    assert rung == ["other"]
    assert isinstance(told[0]["exception"], IndexError)


async def test_a_closed_one_is_silent() -> None:
    clock, rung = FakeClock(), list[str]()
    alarm = Alarm(clock)
    alarm.at(1.0, lambda: rung.append("never"))
    await settle()
    alarm.close()
    alarm.at(1.0, lambda: rung.append("nor this"))
    clock.advance(2.0)
    await settle()
    assert rung == []
