"""Quotas, admission, batches, breakers, streams and bad input, each met once on the way through `submit`."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.core.errors import (
    AulaError,
    BackendError,
    DeadlineError,
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    InputError,
    ModelNotFoundError,
    NoRungError,
    OverloadError,
    SettingsError,
)
from aula.core.types import Capability, Context, DetectRequest, SpeakRequest, Why
from aula.runtime import Rules, Rung, Runtime
from aula.scheduling.admission import Quota
from aula.serving.group import HUNG_S
from tests.serving.hand import House, by_hand, rung, runtime, settle, start, work

QUESTION = Context()
EMBED, DETECT, SPEAK = Capability.EMBED, Capability.DETECT, Capability.SPEAK
BROKEN = BackendError("out of order", next_step="mend it")


@pytest.fixture
async def clock() -> AsyncIterator[FakeClock]:
    with by_hand():
        yield FakeClock()


async def result(task: "asyncio.Task[Any]") -> Any:
    await work()
    assert task.done(), "silent"
    return task.result()


async def ask(running: Runtime, payload: Any = ("why",), capability: Capability = EMBED, **fields: Any) -> Any:
    return await result(start(running, capability, payload, replace(QUESTION, **fields)))


async def test_requests_that_wait_share_a_batch_and_come_apart_again(clock: FakeClock) -> None:
    house = House(clock)
    running = runtime(rung("best", house), clock=clock)
    await ask(running)
    house.batches.clear()
    tasks = [start(running, EMBED, texts, QUESTION) for texts in (["a"], ["bb", "ccc"], ["dddd"], ["e" * 300])]
    values = [(await result(task)).value.tolist() for task in tasks]
    assert values == [[[1]], [[2], [3]], [[4]], [[300]]]
    assert house.batches == [1, 3, 1], "the first at once; the rest behind it, by bucket"


async def test_rows_come_in_the_order_of_their_texts(clock: FakeClock) -> None:
    texts = ["ccc", "a", "e" * 300, "bb", "", "dddd"]
    running = runtime(rung("best", House(clock)), clock=clock)
    assert (await ask(running, texts)).value.ravel().tolist() == [3, 1, 300, 2, 0, 4]


async def test_no_texts_are_no_rows(clock: FakeClock) -> None:
    assert (await ask(runtime(rung("best", House(clock)), clock=clock), [])).value.shape == (0, 1)


@pytest.mark.parametrize(("bad", "error"), [("raise", ValueError), ("nan", NoRungError), ("shape", NoRungError)])
async def test_one_bad_request_does_not_harm_its_batch_mates(
    clock: FakeClock, bad: str, error: type[Exception]
) -> None:
    running = runtime(rung("best", House(clock)), clock=clock)
    await ask(running)
    tasks = [start(running, EMBED, [text], QUESTION) for text in ("first", "good", bad, "fine")]
    await work()
    assert [task.exception() is None for task in tasks] == [True, True, False, True]
    with pytest.raises(error):
        tasks[2].result()


async def test_what_one_rung_cannot_do_the_next_does_once(clock: FakeClock) -> None:
    best, second = House(clock), House(clock)
    running = runtime(rung("best", best), rung("second", second), clock=clock)
    assert (await ask(running)).why is Why.BEST
    best.failure = BROKEN
    outcome = await ask(running)
    assert (outcome.rung, outcome.why) == ("second", Why.RETRIED)
    second.failure = BROKEN
    with pytest.raises(NoRungError, match="out of order") as caught:
        await ask(running)
    assert caught.value.reason is None, "it was tried: no refusal"


async def test_a_breaker_opens_after_three_failures_and_closes_after_three_canaries(clock: FakeClock) -> None:
    best = House(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.failure = BROKEN
    for _ in range(3):
        await ask(running)
    assert (await ask(running)).why is Why.OUT_OF_ORDER
    best.failure = None
    for seconds in (2.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "best"
    assert [(event.rung, event.state, event.cause) for event in running.events] == [
        ("best", "open", "failures"),
        ("best", "closed", "canaries"),
    ]


@pytest.mark.parametrize("error", [MemoryError(), DeviceMemoryError("the card is full", next_step="wait")], ids=repr)
async def test_a_full_memory_steps_down_at_once_and_is_tried_again_later(clock: FakeClock, error: Exception) -> None:
    best = House(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.failure = error
    assert (await ask(running)).why is Why.RETRIED
    assert (await ask(running)).why is Why.OUT_OF_ORDER, "one full memory is enough"
    assert running.events[-1].cause == "memory"
    best.failure = None
    clock.advance(4.0)
    await work()
    assert (await ask(running)).rung == "second"
    for seconds in (1.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "best"


async def test_a_model_with_a_sticky_error_is_loaded_anew(clock: FakeClock) -> None:
    class Sticky(House):
        def load(self) -> House:
            self.failure = None  # a new model has forgotten the old one's error
            return super().load()

    best = Sticky(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    best.failure = DeviceLostError("an illegal address was met", next_step="load it anew")
    for _ in range(3):
        assert (await ask(running)).rung == "second"
    for seconds in (2.0, 4.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "best"
    assert (best.loads, best.is_closed) == (2, True)


async def test_a_rung_that_could_not_be_loaded_is_loaded_by_a_later_canary(clock: FakeClock) -> None:
    house = House(clock)
    house.load_failure = ModelNotFoundError("absent", next_step="install it")
    running = runtime(rung("best", house), clock=clock)
    for retry in (2.0, 2.0):
        with pytest.raises(NoRungError, match="absent") as caught:
            await ask(running)
        assert (caught.value.reason, caught.value.retry_after_s) == ("no_rung", retry)
    assert house.loads == 1, "refused at once"
    house.load_failure = None
    for seconds in (2.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "best"


async def test_what_a_user_can_mend_is_said_at_once_and_hidden_by_no_other_rung(clock: FakeClock) -> None:
    house = House(clock)
    house.load_failure = SettingsError("no such voice", next_step="choose another")
    running = runtime(rung("best", house), rung("second", House(clock)), clock=clock)
    with pytest.raises(SettingsError):
        await ask(running)
    house.load_failure = None
    assert (await ask(running)).rung == "best"


async def test_an_operator_may_choose_the_rung(clock: FakeClock) -> None:
    running = runtime(rung("best", House(clock)), rung("second", House(clock)), clock=clock)
    running.override(EMBED, "second")
    assert (await ask(running)).why is Why.OVERRIDE
    running.override(EMBED, None)
    assert (await ask(running)).rung == "best"
    for capability, name in ((EMBED, "third"), (SPEAK, "best")):
        with pytest.raises(SettingsError):
            running.override(capability, name)


@pytest.mark.parametrize(
    ("quota", "reason"),
    [(Quota(rate=1.0, burst=1), "rate"), (Quota(device_ms_a_minute=60.0), "device_time")],
)
async def test_quotas_are_met_once_a_request_and_say_when_to_come_back(
    clock: FakeClock, quota: Quota, reason: str
) -> None:
    house = House(clock)
    house.takes_s = 0.1
    running = runtime(rung("best", house), clock=clock, rules=Rules({"a": quota}))
    await running_loaded(running)
    await ask(running, ["one", "two", "three"], tenant="a")
    with pytest.raises(OverloadError) as caught:
        await ask(running, tenant="a")
    assert caught.value.reason == reason
    assert caught.value.retry_after_s is not None
    await ask(running, tenant="nobody knows this class")
    clock.advance(caught.value.retry_after_s)
    await ask(running, tenant="a")


async def running_loaded(running: Runtime) -> None:
    warming = asyncio.ensure_future(running.warm(QUESTION, [EMBED]))
    await work()
    await warming


async def test_costs_are_measured_at_load_and_what_cannot_be_in_time_is_refused(clock: FakeClock) -> None:
    house = House(clock)
    house.takes_s = 0.2
    running = runtime(rung("best", house), clock=clock)
    await running_loaded(running)
    with pytest.raises(OverloadError) as caught:
        await ask(running, deadline=clock.now() + 0.1)
    assert caught.value.reason == "predicted_late"
    assert (await ask(running, deadline=clock.now() + 0.3)).rung == "best"


async def test_a_slow_minute_is_not_believed_for_ever(clock: FakeClock) -> None:
    """Nothing that is refused can teach better: while the worker idles, the costs come back to what was measured."""
    house = House(clock)
    house.takes_s = 0.01
    running = runtime(rung("best", house), clock=clock)
    await running_loaded(running)
    house.takes_s = 1.0
    for _ in range(20):
        await ask(running)
    house.takes_s = 0.01
    ends = []
    for _ in range(60):
        try:
            await ask(running, deadline=clock.now() + 0.02)
            ends.append(True)
        except OverloadError:
            ends.append(False)
    assert (ends[0], ends[-1]) == (False, True)


async def test_two_rungs_never_share_one_answer(clock: FakeClock) -> None:
    best, second = House(clock), House(clock)
    running = runtime(rung("best", best), rung("second", second), clock=clock)
    await running_loaded(running)
    task = start(running, EMBED, ["one", "two"], QUESTION)
    await settle()
    await work(1)
    best.failure = BROKEN
    outcome = await result(task)
    assert (outcome.rung, outcome.why) == ("second", Why.RETRIED)
    assert sum(second.batches[-2:]) == 2, "the first was made again"


async def test_cancelling_while_it_waits_while_it_runs_and_when_it_has_just_ended(clock: FakeClock) -> None:
    house = House(clock)
    running = runtime(rung("best", house, DETECT), clock=clock)
    for jobs in (0, 1):
        task = start(running, DETECT, DetectRequest(), QUESTION)
        await settle()
        if jobs:
            next(iter(running._groups[DETECT].places.values())).thread.run()  # type: ignore[attr-defined]
        task.cancel()
        await work()
        assert task.cancelled()
    assert house.open_streams == 0
    assert (await ask(running, DetectRequest(), DETECT)).rung == "best", "the worker is free"


async def test_every_chunk_of_a_stream_is_billed_and_meets_its_deadline(clock: FakeClock) -> None:
    house = House(clock)
    rules = Rules({"a": Quota(device_ms_a_minute=250.0)})
    running = runtime(rung("best", house, DETECT), clock=clock, rules=rules)
    stream = (await ask(running, DetectRequest(), DETECT, tenant="a", deadline=10.0)).value
    house.takes_s = 0.1
    for _ in range(3):
        assert await result(asyncio.ensure_future(stream.feed(np.zeros(320, np.float32)))) == [0.5]
    with pytest.raises(OverloadError, match="device_time"):
        await ask(running, DetectRequest(), DETECT, tenant="a")
    clock.advance(10.0)
    with pytest.raises(DeadlineError):
        await stream.feed(np.zeros(320, np.float32))
    await result(asyncio.ensure_future(stream.close()))
    await stream.close()
    assert house.open_streams == 0
    with pytest.raises(RuntimeError, match="closed"):
        await stream.feed(np.zeros(320, np.float32))


async def test_a_stream_stays_where_it_was_opened(clock: FakeClock) -> None:
    running = runtime(rung("best", House(clock), DETECT), rung("second", House(clock), DETECT), clock=clock)
    stream = (await ask(running, DetectRequest(), DETECT)).value
    running.override(DETECT, "second")
    assert await result(asyncio.ensure_future(stream.feed(np.zeros(320, np.float32)))) == [0.5]
    assert stream.rung == "best"
    await result(asyncio.ensure_future(stream.close()))


@pytest.mark.parametrize(
    "samples",
    ["sound", np.zeros(10), np.zeros((2, 10), np.float32), np.array([np.nan], np.float32), np.zeros(10**6, np.float32)],
    ids=["text", "float64", "two rows", "NaN", "larger than any profile"],
)
async def test_bad_sound_is_said_and_never_reaches_the_stream(clock: FakeClock, samples: Any) -> None:
    house = House(clock)
    running = runtime(rung("best", house, DETECT), clock=clock)
    stream = (await ask(running, DetectRequest(), DETECT)).value
    with pytest.raises(InputError):
        await result(asyncio.ensure_future(stream.feed(samples)))
    await result(asyncio.ensure_future(stream.feed(np.zeros(320, np.float32))))
    assert stream._stream.fed == 320
    await result(asyncio.ensure_future(stream.close()))


@pytest.mark.parametrize(
    "fields",
    [{"tenant": ""}, {"tenant": None}, {"tenant": "x" * 1000}, {"tier": "exam"}, {"deadline": math.nan},
     {"deadline": "soon"}, {"deadline": True}, {"language": 7}],
    ids=str,
)  # fmt: skip
async def test_a_context_that_cannot_be_is_said(clock: FakeClock, fields: dict[str, Any]) -> None:
    running = runtime(rung("best", House(clock)), clock=clock)
    with pytest.raises(InputError):
        await ask(running, **fields)
    assert (running.statistics().failed, running.statistics().in_flight) == (1, 0)


@pytest.mark.parametrize("payload", ["one text", [1], None, np.zeros(3), {"a": 1}, ["a", None]], ids=str)
async def test_a_payload_of_the_wrong_kind_is_said(clock: FakeClock, payload: Any) -> None:
    with pytest.raises(TypeError, match="embed does not take"):
        await ask(runtime(rung("best", House(clock)), clock=clock), payload)


async def test_a_text_larger_than_any_profile_is_said_and_leaves_nothing_behind(clock: FakeClock) -> None:
    running = runtime(rung("best", House(clock)), clock=clock)
    with pytest.raises(InputError, match="fits no profile"):
        await ask(running, ["short", "x" * 200_000])
    assert running.statistics().schedulers[0].waiting == 0


@pytest.mark.parametrize("deadline", [1e9, math.inf, 3.2e7])
async def test_deadlines_far_away_are_lawful(clock: FakeClock, deadline: float) -> None:
    assert (await ask(runtime(rung("best", House(clock)), clock=clock), deadline=deadline)).rung == "best"


async def test_a_model_that_hangs_is_left_behind_and_the_next_rung_answers(clock: FakeClock) -> None:
    best = House(clock)
    running = runtime(rung("best", best), rung("second", House(clock)), clock=clock)
    await ask(running)
    task = start(running, EMBED, ["why"], QUESTION)
    await settle()
    hanging = running._groups[EMBED].places[EMBED, "best"].thread
    hanging.jobs.clear()  # type: ignore[attr-defined]
    clock.advance(HUNG_S)
    await settle()
    assert (await result(task)).why is Why.RETRIED
    assert hanging.is_lost
    assert running.events[0].cause == "hung"
    for seconds in (2.0, 0.5, 0.5):
        clock.advance(seconds)
        await work()
    assert (await ask(running)).rung == "best", "loaded anew, in a thread of its own"
    assert best.loads == 2


async def test_whoever_has_a_deadline_does_not_wait_for_what_hangs(clock: FakeClock) -> None:
    running = runtime(rung("best", House(clock)), clock=clock)
    await ask(running)
    task = start(running, EMBED, ["why"], Context(deadline=clock.now() + 0.5))
    await settle()
    clock.advance(1.5)
    await settle()
    with pytest.raises(DeadlineError) as caught:
        task.result()
    assert caught.value.reason is None
    await work()


async def test_whoever_waits_behind_what_hangs_is_told_at_the_deadline(clock: FakeClock) -> None:
    running = runtime(rung("best", House(clock)), clock=clock)
    await ask(running)
    hanging = start(running, EMBED, ["why"], QUESTION)
    await settle()
    behind = start(running, EMBED, ["why"], Context(deadline=clock.now() + 0.5))
    stays = start(running, EMBED, ["why"], QUESTION)
    await settle()
    clock.advance(0.5)
    await settle()
    with pytest.raises(OverloadError, match="predicted_late"):
        behind.result()
    await work()
    assert hanging.result().rung == stays.result().rung == "best"


async def test_a_clock_that_jumps_back_costs_nobody_anything(clock: FakeClock) -> None:
    house = House(clock)
    running = runtime(rung("best", house), clock=clock)
    await ask(running)
    clock._now -= 100.0
    assert (await ask(running, deadline=clock.now() + 1.0)).rung == "best"
    clock.advance(1e6)
    assert (await ask(running)).rung == "best"


async def test_a_model_that_ends_the_process_ends_its_own_request_alone(clock: FakeClock) -> None:
    class Exits(House):
        def embed(self, texts: Any) -> Any:
            if "exit" in texts:
                raise SystemExit(3)
            return super().embed(texts)

    running = runtime(rung("best", Exits(clock)), clock=clock)
    await ask(running)
    with pytest.raises(NoRungError):
        await ask(running, ["exit"])
    assert (await ask(running)).rung == "best"


async def test_closing_tells_whoever_waits(clock: FakeClock) -> None:
    house = House(clock)
    running = runtime(rung("best", house), clock=clock)
    tasks = [start(running, EMBED, ["why"], QUESTION) for _ in range(3)]
    await settle()
    closing = asyncio.ensure_future(running.close())
    await work()
    await closing
    assert [task.exception() is None for task in tasks] == [True, False, False]
    assert all(isinstance(task.exception(), AulaError) for task in tasks[1:])
    with pytest.raises(EngineError, match="closed"):
        await ask(running)


async def test_speech_is_made_chunk_by_chunk_in_turn_with_others(clock: FakeClock) -> None:
    running = runtime(rung("voice", House(clock), SPEAK), clock=clock)
    speeches = [(await ask(running, SpeakRequest("abc"), SPEAK)).value for _ in range(2)]
    heard: list[int] = []

    async def listen(speech: Any) -> None:
        async for chunk in speech:
            heard.append(chunk.item())  # noqa: PERF401 - one by one is what is looked at

    listening = asyncio.gather(*(listen(speech) for speech in speeches))
    await work()
    await listening
    assert heard == [97, 97, 98, 98, 99, 99]
    assert [await anext(speech, None) for speech in speeches] == [None, None], "it has ended, and stays so"


def test_ladders_and_settings_that_contradict_are_refused() -> None:
    clock = FakeClock()
    rungs = [rung("a", House(clock)), rung("b", House(clock))]
    running = Runtime(rungs, clock, rules=Rules(ladders={EMBED: ("b",)}))
    assert [one.name for one in running.statistics().rungs] == ["b"]
    with pytest.raises(SettingsError, match="a, b"):
        Runtime(rungs, clock, rules=Rules(ladders={EMBED: ("c",)}))
    with pytest.raises(SettingsError, match="sum to at most 1"):
        Runtime(rungs, clock, rules=Rules(shares={"question": 0.9, "batch": 0.2}))
    twice: list[Rung] = [rung("a", House(clock)), rung("a", House(clock))]
    with pytest.raises(SettingsError, match="names of their own"):
        Runtime(twice, clock)
