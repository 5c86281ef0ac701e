"""A hosted engine behind the runtime, in a real process that is really killed. Waits for events, never for time."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session
from aula.core.clock import SystemClock
from aula.core.errors import DeadlineError, NoRungError
from aula.core.types import Context, TensorSpec
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rung, RungChanged, Runtime
from tests.backends.hosting.leftovers import AT_LAST
from tests.backends.hosting.odd_engines import Odd, OddSession

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are killed as Linux does it")
KILLS = 3
CONTEXT = Context()
ODD = EngineInfo("odd", "1", "odd", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),), 1)


class House:
    """A runtime with a hosted rung, and perhaps one in this process below it."""

    def __init__(self, *, has_second: bool, **hosting: Any) -> None:
        self.session: HostedSession | None = None
        self.closed = asyncio.Event()
        rungs = [self._rung("hosted", partial(self._host, hosting))]
        if has_second:
            rungs.append(self._rung("here", OddSession))
        self.runtime = Runtime(rungs)
        self.runtime.watch(self._heard)

    @property
    def pid(self) -> int:
        assert self.session is not None
        return self.session.health().pid

    async def ask(self, value: float, within_s: float | None = 30.0) -> Any:
        deadline = None if within_s is None else SystemClock().now() + within_s
        x = np.array([value], np.float32)
        return (await self.runtime.infer("odd", {"x": x}, Context(deadline=deadline)))["y"][0]

    async def back(self) -> None:
        await asyncio.wait_for(self.closed.wait(), AT_LAST)
        self.closed.clear()

    def _heard(self, event: RungChanged) -> None:
        if event.rung == "hosted" and event.state == "closed":
            self.closed.set()

    def _host(self, hosting: dict[str, Any]) -> Session:
        self.session = HostedSession(OddSession, Hosting(**hosting))
        return self.session

    def _rung(self, name: str, open_one: Callable[[], Session]) -> Rung:
        return Rung(engine_rung_info(name, "y = 2 x"), name, lambda: SessionEngine(open_one(), ODD, {}), engine=ODD)


@contextlib.asynccontextmanager
async def house(*, has_second: bool = True, **hosting: Any) -> AsyncIterator[House]:
    made = House(has_second=has_second, **hosting)
    async with made.runtime:
        yield made


@pytest.mark.parametrize("has_second", [True, False])
async def test_killed_again_and_again_every_request_is_answered_once(has_second: bool) -> None:
    async with house(has_second=has_second, settled_s=0.0) as one:
        await one.ask(1)
        for _ in range(KILLS):
            tasks = [asyncio.ensure_future(one.ask(value)) for value in range(8)]
            await asyncio.sleep(0)
            os.kill(one.pid, signal.SIGKILL)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for value, answer in enumerate(answers):
                if has_second or not isinstance(answer, NoRungError):
                    assert answer == 2 * value
                else:
                    assert answer.reason == "no_rung", "it came when no process was there, and was refused at once"
            await one.back()
            assert await one.ask(5) == 10
        counts = one.runtime.statistics()
        assert counts.submitted == 1 + 9 * KILLS == counts.answered + counts.refused
        assert [(event.rung, event.state) for event in one.runtime.events] == KILLS * [
            ("hosted", "open"),
            ("hosted", "closed"),
        ]
        assert one.runtime.telemetry.text().count('result="failed"') == 0


async def test_a_request_that_kills_the_process_harms_itself_alone() -> None:
    async with house(has_second=False, settled_s=0.0) as one:
        await one.ask(1)
        killer = asyncio.ensure_future(one.ask(Odd.KILLED))
        with pytest.raises(NoRungError, match="SIGKILL"):
            await killer
        assert one.closed.is_set(), "it came back, and was killed again"
        one.closed.clear()
        await one.back()
        assert await one.ask(2) == 4


async def test_a_request_that_hangs_is_told_at_its_deadline_and_the_process_is_ended_behind_it() -> None:
    async with house(has_second=True, settled_s=0.0, hang_s=2.0) as one:
        await one.ask(1)
        with pytest.raises(DeadlineError):
            await one.ask(Odd.HANG, within_s=0.2)
        await one.back()
        assert one.session is not None
        assert one.session.statistics().hung == 1
        assert await one.ask(2) == 4
