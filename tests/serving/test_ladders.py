"""What an operator sees of the ladders, and may do to them."""

import asyncio

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import SettingsError
from aula.core.telemetry import RUNG_CHANGES, Telemetry
from aula.core.types import Capability, Context
from tests.serving.hand import House, by_hand, rung, runtime, start, work

EMBED = Capability.EMBED


async def test_a_ladder_tells_its_rungs_and_what_an_operator_chose() -> None:
    with by_hand():
        clock = FakeClock()
        running = runtime(rung("best", House(clock)), rung("last", House(clock)), clock=clock)
        (ladder,) = (one for one in running.ladders() if one.name == EMBED)
        assert (ladder.rungs, ladder.overridden, ladder.renewable) == (
            ("best", "last"),
            None,
            frozenset({"best", "last"}),
        )
        running.override(EMBED, "last")
        assert [one.overridden for one in running.ladders() if one.name == EMBED] == ["last"]
        running.override(EMBED, None)
        assert [one.overridden for one in running.ladders() if one.name == EMBED] == [None]


async def test_a_rung_is_loaded_anew_beside_the_old_one() -> None:
    with by_hand():
        clock = FakeClock()
        loaded: list[House] = []

        class Counted(House):
            def load(self) -> House:
                loaded.append(House(clock))
                return loaded[-1]

        running = runtime(rung("best", Counted(clock)), clock=clock)
        first = start(running, EMBED, ["a"], Context())
        await work()
        await first
        renewing = asyncio.ensure_future(running.renew(EMBED, "best"))
        await work()
        assert (await renewing).error is None
        assert [one.is_closed for one in loaded] == [True, False]


async def test_a_rung_that_there_is_not_cannot_be_loaded_anew() -> None:
    with by_hand():
        running = runtime(rung("best", House(FakeClock())), clock=FakeClock())
        with pytest.raises(SettingsError, match="embed best"):
            await running.renew(EMBED, "worst")


async def test_shares_name_who_used_the_device() -> None:
    with by_hand():
        clock = FakeClock()
        house = House(clock)
        house.takes_s = 0.01
        running = runtime(rung("best", house), clock=clock)
        assert running.shares() == {}
        asked = start(running, EMBED, ["a"], Context(tenant="class-5b"))
        await work()
        await asked
        assert running.shares() == {"class-5b": 1.0}


def test_values_are_a_copy_by_labels() -> None:
    telemetry = Telemetry()
    telemetry.add(RUNG_CHANGES, "embed", "best", "override")
    telemetry.values(RUNG_CHANGES).clear()
    assert telemetry.values(RUNG_CHANGES) == {("embed", "best", "override"): 1.0}
