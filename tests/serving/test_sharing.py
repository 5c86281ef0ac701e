"""Streams of several students on one model, pass by pass: who is in the thread at once, and what becomes of them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.core.errors import BackendError, EngineError
from aula.core.types import Capability, Context, Float32, Partial, RungInfo, TranscribeRequest, Transcript
from aula.runtime import Rung, Runtime
from aula.serving.group import HUNG_S
from tests.serving.hand import HandThread, by_hand, settle, start, work

TRANSCRIBE = Capability.TRANSCRIBE
QUESTION = Context()
FRAME = np.zeros(320, np.float32)
CLOSED = BackendError("the model was closed", next_step="open another stream")


@pytest.fixture
async def clock() -> AsyncIterator[FakeClock]:
    with by_hand():
        yield FakeClock()


class Stream:
    """Every commit takes `passes` passes."""

    def __init__(self, model: "Model", passes: int) -> None:
        self.model, self.passes, self.is_open = model, passes, True

    def feeding(self, samples: Float32) -> Generator[int, None, Partial]:
        self.model.log.append("fed")
        return Partial("so far")
        yield

    def feed(self, samples: Float32) -> Partial:
        """A canary's."""
        return Partial("")

    def pausing(self, seconds: float) -> Generator[int, None, Partial]:
        yield 1
        return Partial("all", settled=True)

    def pause(self, seconds: float) -> Partial:
        raise AssertionError("a shared model's streams have works")

    def committing(self) -> Generator[int, None, Any]:
        for number in range(self.passes):
            self.model.log.append(f"{self.passes}.{number}")
            yield number
        if self.model.failure is not None:
            raise self.model.failure
        return self.model.value

    def close(self) -> None:
        assert self.is_open, "closed twice"
        self.is_open = False


class Model:
    """Implements `Sharing`; a pass is one of everybody's, and takes a second."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.log: list[str] = []
        self.ranks: list[int] = []
        self.works: deque[tuple[Any, Callable[[Any, float], None]]] = deque()
        self.failure: Exception | None = None
        self.value: Any = Transcript("done", "en")
        self.hangs = False
        self.next_passes = 3
        self.passes = self

    def start(self, request: TranscribeRequest, context: Context) -> Stream:
        return Stream(self, self.next_passes)

    def begin(self, owner: Any, work: Any, ended: Callable[[Any, float], None], rank: int = 0) -> bool:
        self.ranks.append(rank)
        self.works.append((work, ended))
        return len(self.works) == 1

    def advance(self) -> bool:
        self.clock.advance(1.0)
        if self.hangs:
            return True
        for work_, ended in [self.works.popleft() for _ in range(len(self.works))]:
            try:
                next(work_)
                self.works.append((work_, ended))
            except StopIteration as end:
                ended(end.value, 0.5)
            except EngineError as error:
                ended(error, 0.5)
        return bool(self.works)

    def close(self, error: Exception = CLOSED) -> None:
        while self.works:
            _, ended = self.works.popleft()
            ended(error, 0.0)


def _runtime(model: Model, clock: FakeClock, at_once: int = 4) -> Runtime:
    info = RungInfo("whisper", TRANSCRIBE, frozenset({"en"}))
    return Runtime([Rung(info, "transcribe", lambda: model, at_once=at_once)], clock)


async def _open(running: Runtime, model: Model, *passes: int) -> list[Any]:
    streams = []
    for count in passes:
        model.next_passes = count
        task = start(running, TRANSCRIBE, TranscribeRequest(), QUESTION)
        await work()
        streams.append(task.result().value)
    return streams


async def test_a_stream_that_comes_joins_those_that_are_under_way(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock)
    long, short = await _open(running, model, 7, 2)
    first = asyncio.ensure_future(long.commit())
    await work(2)
    second = asyncio.ensure_future(short.commit())
    await work(5)
    assert (second.done(), first.done()) == (True, False), "it came later, and is done before"
    await work()
    assert [(await task).text for task in (first, second)] == ["done"] * 2
    assert model.log == ["7.0", "7.1", "7.2", "7.3", "2.0", "7.4", "2.1", "7.5", "7.6"]
    (scheduler,) = running.statistics().schedulers
    assert scheduler.tier_ms["question"] == pytest.approx(2 * 500.0, abs=1), "each pays its part"


async def test_sound_is_taken_between_two_passes_of_others(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock)
    writing, listening = await _open(running, model, 9, 1)
    commit = asyncio.ensure_future(writing.commit())
    await work(2)
    feed = asyncio.ensure_future(listening.feed(FRAME))
    await work(3)
    assert feed.done()
    assert not commit.done()
    assert (await feed).text == "so far"
    await work()
    assert commit.done()


async def test_what_somebody_waits_for_goes_before_what_may_wait(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock)
    streams = []
    for tier in ("question", "caption"):
        task = start(running, TRANSCRIBE, TranscribeRequest(), Context(tier=tier))
        await work()
        streams.append(task.result().value)
    for stream in streams:
        for call in (stream.feed(FRAME), stream.pause(1.0), stream.commit()):
            task = asyncio.ensure_future(call)
            await work()
            await task
    assert model.ranks == [1, 1, 0, 3, 3, 2]


async def test_no_more_streams_than_the_model_has_rows(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock, at_once=2)
    streams = await _open(running, model, 2, 2, 2)
    tasks = [asyncio.ensure_future(stream.commit()) for stream in streams]
    await settle()
    (scheduler,) = running.statistics().schedulers
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    await work()
    assert all(task.done() for task in tasks)


async def test_a_pause_is_passed_on(clock: FakeClock) -> None:
    model = Model(clock)
    (stream,) = await _open(_runtime(model, clock), model, 1)
    assert stream.takes_pauses
    pause = asyncio.ensure_future(stream.pause(0.3))
    await work()
    assert (await pause).settled


@pytest.mark.parametrize("failure", [BackendError("broken", next_step="mend it"), None])
async def test_what_goes_wrong_is_its_own_streams_alone(clock: FakeClock, failure: EngineError | None) -> None:
    """An error, and an answer that is none."""
    model = Model(clock)
    running = _runtime(model, clock)
    first, second = await _open(running, model, 3, 1)
    tasks = [asyncio.ensure_future(first.commit()), asyncio.ensure_future(second.feed(FRAME))]
    model.failure, model.value = failure, "no transcript"
    await work()
    assert (await tasks[1]).text == "so far"
    with pytest.raises(EngineError, match="broken" if failure else "str instead of Transcript"):
        await tasks[0]
    model.failure, model.value = None, Transcript("done", "en")
    again = asyncio.ensure_future(second.commit())
    await work()
    assert (await again).text == "done"


async def test_a_thread_that_hangs_takes_all_its_streams_along_at_once(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock)
    first, second = await _open(running, model, 3, 3)
    thread = HandThread.all[-1]
    tasks = [asyncio.ensure_future(stream.commit()) for stream in (first, second)]
    await settle()
    thread.jobs.clear()  # it does not come back
    clock.advance(HUNG_S)
    await settle()
    for task in tasks:
        with pytest.raises(BackendError, match="did not come back"):
            await task
    (scheduler,) = running.statistics().schedulers
    assert scheduler.running == 0
    with pytest.raises(BackendError, match="hung"):
        await first.feed(FRAME)
    for seconds in (2.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    (fresh,) = await _open(running, model, 2)
    commit = asyncio.ensure_future(fresh.commit())
    model.works.clear()
    await work()
    assert (await commit).text == "done", "in a thread of its own"


async def test_whoever_waits_when_the_runtime_closes_hears_of_it(clock: FakeClock) -> None:
    model = Model(clock)
    running = _runtime(model, clock)
    (stream,) = await _open(running, model, 50)
    commit = asyncio.ensure_future(stream.commit())
    await work(3)
    closing = asyncio.ensure_future(running.close())
    await work()
    await closing
    with pytest.raises(BackendError, match="closed"):
        await commit
    assert len(model.log) < 10, "nobody waited for the fifty passes"
