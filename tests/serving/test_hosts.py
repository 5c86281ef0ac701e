"""Engines in processes of their own: what their deaths come to for requests and breakers. By hand, with no process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aula.backends.hosting.records import HostState
from aula.core.clock import FakeClock
from aula.core.deadlines import seconds_left
from aula.core.errors import (
    BackendError,
    DeadlineError,
    DeviceLostError,
    EngineError,
    NoRungError,
    ProcessAwayError,
    ProcessHungError,
    ProcessLostError,
    ProcessMemoryError,
)
from aula.core.types import Capability, Context, Float32, RungInfo, Why
from aula.runtime import RungChanged, Runtime
from aula.serving.group import GRACE_S, RETURN_S
from tests.serving.hand import Host, House, by_hand, rung, runtime, settle, start, work

QUESTION = Context()
EMBED, UNDERSTAND = Capability.EMBED, Capability.UNDERSTAND


class Guest(House):
    """A model whose engine lives there."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.sessions = [Host()]
        self.kills: type[BackendError] | None = None
        """What the next run does to the process."""
        self.left: list[float | None] = []

    @property
    def host(self) -> Host:
        return self.sessions[0]

    def embed(self, texts: Sequence[str]) -> Float32:
        if "kill" in texts:
            self.kills = ProcessLostError
        return super().embed(texts)

    def meet(self) -> None:
        self.left.append(seconds_left())
        if self.host.state is not HostState.READY:
            raise ProcessAwayError("it is not there", next_step="ask the next rung")
        kills, self.kills = self.kills, None
        if kills is not None:
            self.host.becomes(HostState.WAITING)
            raise kills("it was killed", next_step="ask the next rung")
        super().meet()


@pytest.fixture
async def clock() -> AsyncIterator[FakeClock]:
    with by_hand():
        yield FakeClock()


async def ask(running: Runtime, texts: Sequence[str] = ("why",), **fields: Any) -> Any:
    task = start(running, EMBED, texts, replace(QUESTION, **fields))
    await work()
    assert task.done(), "silent"
    return task.result()


async def back(house: Guest) -> None:
    house.host.becomes(HostState.STARTING)
    house.host.becomes(HostState.READY)
    await work()


@pytest.mark.parametrize("kills", [ProcessLostError, ProcessHungError, ProcessMemoryError, DeviceLostError])
async def test_a_lost_run_is_tried_once_on_the_next_rung_and_the_rung_comes_back_with_its_process(
    clock: FakeClock, kills: type[BackendError]
) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.kills = kills
    outcome = await ask(running, deadline=clock.now() + 1.0)
    assert (outcome.rung, outcome.why) == ("second", Why.RETRIED)
    runs = len(best.batches)
    assert (await ask(running)).why is Why.OUT_OF_ORDER, "nobody else goes there"
    assert len(best.batches) == runs
    await back(best)
    assert (await ask(running)).rung == "best", "one canary is enough"
    assert best.loads == 1, "the model was never loaded anew"
    assert not best.is_closed
    assert [(event.state, event.cause) for event in running.events] == [("open", "process"), ("closed", "canaries")]


async def test_a_process_that_ends_while_nobody_asks_takes_no_request_along(clock: FakeClock) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.host.becomes(HostState.WAITING)
    await settle()
    assert (await ask(running)).why is Why.OUT_OF_ORDER
    await back(best)
    assert (await ask(running)).why is Why.BEST


async def test_a_process_that_ended_before_anybody_watched_is_noticed(clock: FakeClock) -> None:
    class Short(Guest):
        def load(self) -> House:
            self.host.state = HostState.WAITING
            return super().load()

        def embed(self, texts: Sequence[str]) -> Float32:
            return House.embed(self, texts) if self.host.state is HostState.READY else super().embed(texts)

        def meet(self) -> None:
            House.meet(self)

    best = Short(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    assert (await ask(running)).rung == "second"
    await back(best)
    assert (await ask(running)).rung == "best"


@pytest.mark.parametrize("kills", [ProcessLostError, DeviceLostError])
async def test_without_a_lower_rung_the_request_waits_for_the_process_inside_its_deadline(
    clock: FakeClock, kills: type[BackendError]
) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    only.kills = kills
    task = start(running, EMBED, ("why",), replace(QUESTION, deadline=clock.now() + 1.0))
    await work()
    assert not task.done()
    with pytest.raises(NoRungError) as caught:
        await ask(running)
    assert caught.value.reason == "no_rung", "whoever comes meanwhile is refused at once"
    clock.advance(0.5)
    await back(only)
    assert task.done()
    assert task.result().rung == "only"
    counts = running.statistics()
    assert (counts.answered, counts.refused, counts.failed, counts.in_flight) == (2, 1, 0, 0)


@pytest.mark.parametrize(("deadline", "waits_s"), [(1.0, 1.0), (None, RETURN_S), (1e9, RETURN_S)])
async def test_a_process_that_does_not_come_back_in_time_is_told(
    clock: FakeClock, deadline: float | None, waits_s: float
) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    only.kills = ProcessLostError
    task = start(running, EMBED, ("why",), replace(QUESTION, deadline=deadline and clock.now() + deadline))
    await work()
    clock.advance(waits_s - 0.01)
    await work()
    assert not task.done()
    clock.advance(0.02)
    await work()
    with pytest.raises(NoRungError, match=r"it is not there|it was killed"):
        task.result()


async def test_an_override_to_a_rung_whose_process_is_away_waits_for_it_and_never_spins(clock: FakeClock) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    running.override(EMBED, "best")
    runs = len(best.left)
    best.kills = ProcessLostError
    task = start(running, EMBED, ("why",), QUESTION)
    await work()
    assert not task.done()
    assert len(best.left) == runs + 1
    await back(best)
    assert task.result().rung == "best"


async def test_an_override_to_a_rung_that_is_lost_and_cannot_be_loaded_is_told_in_time(clock: FakeClock) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), clock=clock)
    await ask(running)
    running.override(EMBED, "best")
    best.kills = ProcessLostError
    task = start(running, EMBED, ("why",), replace(QUESTION, deadline=clock.now() + 1.0))
    await work()
    next(iter(running._groups[EMBED].places.values())).unload()
    best.load_failure = BackendError("it cannot be loaded any more", next_step="mend it")
    loads = best.loads
    await back(best)
    clock.advance(1.01)
    await work()
    assert isinstance(task.exception(), NoRungError)
    assert best.loads <= loads + 5


async def test_one_that_is_lost_twice_is_not_tried_a_third_time(clock: FakeClock) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    task = start(running, EMBED, ("kill",), QUESTION)
    await work()
    await back(only)
    assert only.host.state is HostState.WAITING, "it did it again"
    assert isinstance(task.exception(), NoRungError)
    await back(only)
    assert (await ask(running)).rung == "only"


async def test_a_request_that_kills_its_process_does_not_take_its_batch_mates_along_twice(clock: FakeClock) -> None:
    best, second = Guest(clock), House(clock)
    running = runtime(rung("best", best), rung("second", second), clock=clock)
    await ask(running)
    tasks = [start(running, EMBED, [text], QUESTION) for text in ("first", "good", "kill", "fine")]
    await work()
    assert [task.result().rung for task in tasks] == ["best", "second", "second", "second"]
    assert second.batches[-3:] == [1, 1, 1], "tried again each alone: whoever did it harms nobody else"


async def test_the_same_where_no_other_rung_serves(clock: FakeClock) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    tasks = [start(running, EMBED, [text], QUESTION) for text in ("first", "good", "kill", "fine")]
    await work()
    for _ in range(4):
        await back(only)
    faults = [task.exception() for task in tasks]
    assert isinstance(faults[2], NoRungError)
    assert [fault is None for fault in faults] == [True, True, False, True]


async def test_a_canary_that_meets_no_process_loads_nothing_anew(clock: FakeClock) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.kills = ProcessLostError
    await ask(running)
    for seconds in (2.0, 4.0, 8.0):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "second"
    await back(best)
    assert (await ask(running)).rung == "best"
    assert (best.loads, best.is_closed) == (1, False)


async def test_models_on_one_process_step_down_and_up_together(clock: FakeClock) -> None:
    house = Guest(clock)
    rungs = [rung("embeds", house, worker="encode"), rung("understands", house, UNDERSTAND, worker="encode")]
    running = runtime(*rungs, clock=clock)
    await ask(running)
    understood = start(running, UNDERSTAND, "why", QUESTION)
    await work()
    assert understood.result().rung == "understands"
    house.host.becomes(HostState.WAITING)
    await settle()
    assert {rung.state for rung in running.statistics().rungs} == {"open"}
    await back(house)
    assert {rung.state for rung in running.statistics().rungs} == {"closed"}


async def test_news_that_comes_late_does_not_keep_a_rung_away(clock: FakeClock) -> None:
    """On a busy machine the process is there again before the thread has told that it was lost."""

    class Quick(Guest):
        def meet(self) -> None:
            try:
                super().meet()
            except ProcessLostError:
                self.host.becomes(HostState.READY)
                raise

    best = Quick(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.kills = ProcessLostError
    assert (await ask(running)).rung in ("best", "second")
    assert (await ask(running)).rung == "best"


async def test_the_deadline_of_the_request_is_what_the_engine_hears(clock: FakeClock) -> None:
    best = Guest(clock)
    running = runtime(rung("best", best), clock=clock)
    await ask(running)
    best.left.clear()
    await ask(running, deadline=clock.now() + 3.0)
    await ask(running)
    tasks = [start(running, EMBED, ("why",), replace(QUESTION, deadline=clock.now() + s)) for s in (5.0, 7.0, 6.0)]
    await work()
    assert all(task.done() for task in tasks)
    assert best.left == [3.0, None, 5.0, 7.0], "of a batch, the latest: until then somebody waits"
    assert seconds_left() is None


async def test_an_engine_that_tells_that_the_deadline_passed_is_slow_and_not_broken(clock: FakeClock) -> None:
    class Late(House):
        def meet(self) -> None:
            super().meet()
            if (left := seconds_left()) is not None and left <= 0:
                raise DeadlineError("the deadline passed before the engine answered", next_step="allow more time")

    best = Late(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.takes_s = 0.5
    with pytest.raises(DeadlineError):
        await ask(running, deadline=clock.now() + 0.4)
    assert not running.events
    assert running.statistics().failed == 1
    assert clock.now() < 0.5 + GRACE_S


async def test_closing_tells_those_who_wait_for_a_process(clock: FakeClock) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    only.kills = ProcessLostError
    task = start(running, EMBED, ("why",), QUESTION)
    await work()
    closing = asyncio.ensure_future(running.close())
    await work()
    await work()
    assert closing.done()
    with pytest.raises(EngineError):
        task.result()


async def test_a_caller_who_goes_while_the_process_is_away_is_forgotten(clock: FakeClock) -> None:
    only = Guest(clock)
    running = runtime(rung("only", only), clock=clock)
    await ask(running)
    only.kills = ProcessLostError
    task = start(running, EMBED, ("why",), QUESTION)
    await work()
    task.cancel()
    await settle()
    await back(only)
    counts = running.statistics()
    assert (counts.cancelled, counts.in_flight) == (1, 0)
    assert (await ask(running)).rung == "only"


async def test_whoever_watches_hears_every_event_until_it_ends(clock: FakeClock) -> None:
    best = House(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    heard: list[RungChanged] = []
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def bad(event: RungChanged) -> None:
        raise ValueError("this one is broken")

    running.watch(bad)
    end = running.watch(heard.append)
    running.override(EMBED, "second")
    assert [(event.rung, event.cause) for event in heard] == [("second", "override")]
    assert len(told) == 1, "one that raises is said aloud, and silences no other"
    end()
    end()
    running.override(EMBED, None)
    assert len(heard) == 1
    assert len(running.events) == 2


def test_only_sessions_in_processes_are_watched(clock: FakeClock) -> None:
    from aula.serving.hosts import all_there, hosted_sessions
    from aula.serving.places import Place, Rung
    from aula.serving.threads import WorkerThread

    house = Guest(clock)
    house.sessions = [Host(), object()]  # type: ignore[list-item]
    place = Place(Rung(RungInfo("r", EMBED, frozenset({"en"})), "w", house.load), WorkerThread("w"))
    assert (hosted_sessions(place), all_there(place)) == ([], True)
    place.model = house
    assert hosted_sessions(place) == [house.host]
    house.host.state = HostState.STARTING
    assert not all_there(place)


def test_process_errors_are_errors_of_an_engine() -> None:
    assert all(issubclass(kind, BackendError) for kind in (ProcessAwayError, ProcessLostError))
