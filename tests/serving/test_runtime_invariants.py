"""Whatever comes in whatever order, through the runtime: hypothesis prints the steps that break a promise."""

import asyncio
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.backends.hosting.records import HostState
from aula.core.clock import FakeClock
from aula.core.errors import AulaError, BackendError, ProcessAwayError, ProcessLostError
from aula.core.types import Capability, Context, DetectRequest, Outcome
from aula.runtime import LiveDetection, Rules, Runtime
from aula.scheduling.admission import Quota
from tests.serving.hand import HandThread, Host, House, by_hand, rung, runtime, settle, start, work

PAYLOADS = {
    Capability.EMBED: st.lists(st.sampled_from(["a", "raise", "nan", "shape", "b" * 300]), max_size=4),
    Capability.UNDERSTAND: st.sampled_from(["why", "a" * 2000]),
    Capability.DETECT: st.just(DetectRequest()),
}
SUBMIT = st.sampled_from(list(PAYLOADS)).flatmap(
    lambda capability: st.tuples(
        st.just("submit"),
        st.just(capability),
        PAYLOADS[capability],
        st.sampled_from("abc"),
        st.sampled_from(["question", "batch", "exam"]),
        st.one_of(st.none(), st.floats(-0.1, 2.0)),
        st.sampled_from(["en", "en", "zh"]),
    )
)
STEPS = st.lists(
    st.one_of(
        SUBMIT,
        SUBMIT,
        st.tuples(st.just("run"), st.integers(0, 3)),
        st.tuples(st.just("run"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.5, 3.0, 100.0])),
        st.tuples(st.just("fail"), st.sampled_from(["best", "second"]), st.booleans()),
        st.tuples(st.just("unload"), st.sampled_from(["best", "second"]), st.booleans()),
        st.tuples(st.just("kill"), st.sampled_from(["best", "second"]), st.booleans()),
        st.tuples(st.just("return"), st.sampled_from(["best", "second"])),
        st.tuples(st.just("jump"), st.sampled_from([-1000.0, -0.05])),
        st.tuples(st.just("override"), st.sampled_from([None, "best", "second"])),
    ),
    max_size=60,
)


class Hosted(House):
    """Its engine lives in a process, which dies in its next run where it is told so."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.sessions = [Host()]
        self.dies = False

    def meet(self) -> None:
        dies, self.dies = self.dies, False
        if dies:
            self.sessions[0].becomes(HostState.WAITING)
            raise ProcessLostError("it was killed", next_step="wait")
        if self.sessions[0].state is not HostState.READY:
            raise ProcessAwayError("it is not there", next_step="wait")
        super().meet()


BROKEN = BackendError("out of order", next_step="mend it")


def _end_of(task: "asyncio.Task[Outcome]") -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if error is None:
        return "answered"
    return "refused" if isinstance(error, AulaError) and error.reason is not None else "failed"


def _check(running: Runtime, tasks: "list[asyncio.Task[Outcome]]") -> None:
    told = running.statistics()
    assert told.submitted == told.answered + told.refused + told.failed + told.cancelled + told.in_flight
    ends = Counter(_end_of(task) for task in tasks if task.done())
    # A task that was cancelled before its first step never came to submit.
    assert ends["answered"] == told.answered
    assert ends["refused"] == told.refused
    assert ends["failed"] == told.failed
    assert told.in_flight == sum(not task.done() for task in tasks)


async def _play(steps: list[tuple[object, ...]], quota: Quota) -> None:
    clock = FakeClock()
    houses = {"best": Hosted(clock), "second": Hosted(clock)}
    rungs = [rung(name, house, capability, name) for capability in PAYLOADS for name, house in houses.items()]
    running = runtime(*rungs, clock=clock, rules=Rules(usual=quota))
    tasks: list[asyncio.Task[Outcome]] = []
    for step in steps:
        match step:
            case ("submit", Capability() as capability, payload, str(tenant), str(tier), within, str(language)):
                deadline = None if within is None else clock.now() + float(str(within))
                context = Context(language, tenant, tier, deadline)
                tasks.append(start(running, capability, payload, context))
            case ("run", int(which)):
                HandThread.all[which % len(HandThread.all)].run()
            case ("cancel", int(which)) if tasks:
                tasks[which % len(tasks)].cancel()
            case ("wait", float(seconds)):
                clock.advance(seconds)
            case ("fail", str(name), bool(fails)):
                houses[name].failure = BROKEN if fails else None
            case ("unload", str(name), bool(fails)):
                houses[name].load_failure = BROKEN if fails else None
            case ("kill", str(name), bool(in_a_run)):
                if in_a_run:
                    houses[name].dies = True
                else:
                    houses[name].sessions[0].becomes(HostState.WAITING)
            case ("return", str(name)):
                houses[name].sessions[0].becomes(HostState.READY)
            case ("jump", float(seconds)):
                clock._now += seconds
            case ("override", name):
                running.override(Capability.EMBED, None if name is None else str(name))
        await settle()
        _check(running, tasks)
    await work()
    clock.advance(2000.0)  # the clock may have been set back by as much
    await work()
    _check(running, tasks)
    assert all(task.done() for task in tasks), "never silent"
    for task in tasks:
        if _end_of(task) == "answered" and isinstance(task.result().value, LiveDetection):
            closing = asyncio.ensure_future(task.result().value.close())
            await work()
            await closing
        elif _end_of(task) == "answered" and isinstance(task.result().value, np.ndarray):
            assert np.isfinite(task.result().value).all()
    await work()
    assert [house.open_streams for house in houses.values()] == [0, 0], "nothing is left open"
    closing = asyncio.ensure_future(running.close())
    await work()
    await closing


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([Quota(), Quota(concurrency=2), Quota(rate=1.0, burst=3)]))
def test_every_request_is_answered_exactly_once_and_the_books_agree(
    steps: list[tuple[object, ...]], quota: Quota
) -> None:
    with by_hand():
        asyncio.run(_play(steps, quota))
