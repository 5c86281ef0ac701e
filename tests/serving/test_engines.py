"""Engines as they are: tensors in, tensors out, through the same scheduler as every other request."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, StatePair
from aula.core.clock import FakeClock
from aula.core.errors import (
    BackendError,
    DeadlineError,
    InputError,
    ModelNotFoundError,
    NoRungError,
    OverloadError,
    SettingsError,
)
from aula.core.settings import Settings
from aula.core.types import Capability, Context, TensorSpec
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rules, Rung, Runtime, open_runtime
from aula.scheduling.admission import Quota
from aula.serving.tensors import checked_tensors
from tests.serving.hand import by_hand, work

CONTEXT = Context()
TWICE = EngineInfo(
    "twice",
    "1",
    "toy",
    (TensorSpec("x", "float32", ("batch", "width")), TensorSpec("bias", "int64", ("batch",))),
    (TensorSpec("y", "float32", ("batch", "width")),),
    4,
    ({"batch": (1, 4), "width": (1, 64)},),
)
Arrays = Mapping[str, NDArray[Any]]


class Twice(Session):
    """y = 2 x + bias"""

    backend = "toy"

    def __init__(self, clock: FakeClock, options: SessionOptions | None = None) -> None:
        super().__init__(TWICE.inputs, TWICE.outputs, options or SessionOptions())
        self.clock, self.takes_s, self.rows = clock, 0.001, list[int]()
        self.failure: Exception | None = None

    def _run(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        self.rows.append(len(tensors["x"]))
        self.clock.advance(self.takes_s)
        if self.failure is not None:
            raise self.failure
        return {"y": (2 * tensors["x"] + tensors["bias"][:, None]).astype(np.float32)}


def arrays(rows: int = 1, width: int = 3, value: float = 1.0) -> dict[str, NDArray[Any]]:
    return {"x": np.full((rows, width), value, np.float32), "bias": np.arange(rows)}


def engine_rung(session: Twice, name: str = "twice", worker: str = "engine") -> Rung:
    return Rung(
        engine_rung_info(name, "y = 2 x + bias"),
        worker,
        lambda: SessionEngine(session, TWICE, {"width": 3}),
        engine=TWICE,
    )


@pytest.fixture
async def clock() -> AsyncIterator[FakeClock]:
    with by_hand():
        yield FakeClock()


def start(running: Runtime, inputs: Any, context: Context = CONTEXT, name: str = "twice") -> "asyncio.Task[Arrays]":
    return asyncio.ensure_future(running.infer(name, inputs, context))


async def ask(running: Runtime, inputs: Any, context: Context = CONTEXT, name: str = "twice") -> Arrays:
    task = start(running, inputs, context, name)
    await work()
    assert task.done(), "silent"
    return task.result()


async def test_arrays_in_and_arrays_out(clock: FakeClock) -> None:
    running = Runtime([engine_rung(Twice(clock))], clock)
    assert running.engines() == (TWICE,)
    made = await ask(running, arrays(2))
    assert made["y"].tolist() == [[2, 2, 2], [3, 3, 3]]
    counts = running.statistics()
    assert (counts.answered, counts.rungs[0].capability, counts.rungs[0].served) == (1, Capability.INFER, 1)


async def test_requests_of_one_shape_share_a_run_and_come_apart_again(clock: FakeClock) -> None:
    session = Twice(clock)
    running = Runtime([engine_rung(session)], clock)
    await ask(running, arrays())
    session.rows.clear()
    asked = [arrays(), arrays(2, value=2), arrays(width=5), arrays(2, value=3), arrays(1, value=4), arrays(1, value=5)]
    tasks = [start(running, inputs) for inputs in asked]
    await work()
    for task, inputs in zip(tasks, asked, strict=True):
        assert np.array_equal(task.result()["y"], 2 * inputs["x"] + inputs["bias"][:, None])
    assert sum(session.rows) == 8
    assert max(session.rows) <= TWICE.max_batch
    assert len(session.rows) < len(asked), "some ran together"


async def test_an_engine_whose_rows_depend_on_each_other_runs_alone(clock: FakeClock) -> None:
    session, alone = Twice(clock), replace(TWICE, max_batch=1)
    rung = Rung(engine_rung_info("twice", ""), "engine", lambda: SessionEngine(session, alone, {}), engine=alone)
    running = Runtime([rung], clock)
    await ask(running, arrays())
    session.rows.clear()
    tasks = [start(running, arrays(2)) for _ in range(3)]
    await work()
    assert [len(task.result()["y"]) for task in tasks] == [2, 2, 2]
    assert session.rows == [2, 2, 2]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "was given"),
        ([1, 2], "was given list"),
        ({**arrays(), "z": np.zeros(1)}, "was given"),
        ({**arrays(), "x": np.ones((1, 3))}, "float64"),
        ({**arrays(), "x": [[1.0]]}, "is list"),
        ({**arrays(), "x": np.ones(3, np.float32)}, r"float32 \[3\]"),
        ({**arrays(), "x": np.ones((1, 0), np.float32)}, "holds nothing"),
        ({**arrays(2), "x": np.ones((1, 3), np.float32)}, "batch is 1 in one input"),
        (arrays(5), "no profile"),
        (arrays(1, 65), "no profile"),
        (arrays(value=float("nan")), "NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_tensors_that_the_engine_does_not_take_are_the_callers_fault(
    clock: FakeClock, inputs: Any, told: str
) -> None:
    session = Twice(clock)
    running = Runtime([engine_rung(session)], clock)
    with pytest.raises(InputError, match=told):
        await ask(running, inputs)
    assert not session.rows, "no engine saw them"
    assert (await ask(running, arrays()))["y"].shape == (1, 3)
    assert not running.events, "and no rung is blamed"


async def test_infinity_is_a_number(clock: FakeClock) -> None:
    running = Runtime([engine_rung(Twice(clock))], clock)
    assert np.isinf((await ask(running, arrays(value=float("inf"))))["y"]).all()


async def test_one_engine_can_be_loaded_by_name_and_tells_its_runs(clock: FakeClock) -> None:
    loaded: list[str] = []

    def rung(name: str) -> Rung:
        info = replace(TWICE, name=name)

        def load() -> SessionEngine:
            loaded.append(name)
            return SessionEngine(Twice(clock), info, {})

        return Rung(engine_rung_info(name, ""), name, load, engine=info)

    running = Runtime([rung("one"), rung("two")], clock)
    loading = asyncio.ensure_future(running.load("two"))
    await work()
    assert loading.done()
    assert loaded == ["two"]
    assert running.engine("two").platform == "toy"
    with pytest.raises(ModelNotFoundError, match="one, two"):
        running.engine("three")
    with pytest.raises(ModelNotFoundError, match="one, two"):
        await running.load("three")
    tasks = [start(running, arrays(), name="two") for _ in range(3)]
    await work()
    assert all(task.done() for task in tasks)
    one, two = running.statistics().rungs
    assert (one.engine, one.runs, one.run_s) == ("one", 0, 0.0)
    assert (two.engine, two.served) == ("two", 3)
    assert 1 <= two.runs < 3, "some ran together"
    assert two.run_s == pytest.approx(3 * 0.001), "and each counts its run whole"


async def test_an_engine_that_cannot_be_loaded_says_so(clock: FakeClock) -> None:
    def load() -> SessionEngine:
        raise BackendError("the file is damaged", next_step="build it anew")

    running = Runtime([Rung(engine_rung_info("twice", ""), "engine", load, engine=TWICE)], clock)
    loading = asyncio.ensure_future(running.load("twice"))
    await work()
    with pytest.raises(NoRungError, match="damaged"):
        loading.result()


async def test_an_unknown_name_says_which_there_are(clock: FakeClock) -> None:
    running = Runtime([engine_rung(Twice(clock))], clock)
    with pytest.raises(ModelNotFoundError, match="twice"):
        await ask(running, arrays(), name="thrice")
    with pytest.raises(TypeError, match="infer"):
        await running.submit(Capability.INFER, arrays(), CONTEXT)


async def test_quota_tier_and_deadline_are_met_like_any_other_request(clock: FakeClock) -> None:
    running = Runtime([engine_rung(Twice(clock))], clock, rules=Rules(usual=Quota(rate=1.0, burst=2)))
    await ask(running, arrays(), replace(CONTEXT, tier="batch"))
    assert running.statistics().schedulers[0].tier_ms["batch"] > 0
    with pytest.raises(OverloadError, match="predicted_late"):
        await ask(running, arrays(), replace(CONTEXT, deadline=clock.now() + 1e-6))
    with pytest.raises(DeadlineError):
        await ask(running, arrays(), replace(CONTEXT, deadline=clock.now()))
    await ask(running, arrays())
    with pytest.raises(OverloadError, match="rate"):
        await ask(running, arrays())
    with pytest.raises(InputError, match="tier"):
        await ask(running, arrays(), replace(CONTEXT, tier="none"))


async def test_a_broken_engine_steps_down_its_own_ladder_and_no_other(clock: FakeClock) -> None:
    best, second, other = Twice(clock), Twice(clock), Twice(clock)
    foreign = replace(TWICE, name="other")
    rungs = [
        engine_rung(best, "twice@sm90", "gpu"),
        engine_rung(second, "twice", "cpu"),
        Rung(engine_rung_info("other", ""), "cpu", lambda: SessionEngine(other, foreign, {}), engine=foreign),
    ]
    running = Runtime(rungs, clock)
    assert [engine.name for engine in running.engines()] == ["twice", "other"]
    await ask(running, arrays())
    best.failure = BackendError("the card is gone", next_step="wait")
    for _ in range(3):
        assert (await ask(running, arrays()))["y"].shape == (1, 3)
    assert [(event.capability, event.rung, event.state) for event in running.events] == [
        (Capability.INFER, "twice@sm90", "open")
    ]
    running.override("infer.twice", "twice@sm90")
    with pytest.raises(NoRungError):
        await ask(running, arrays())
    assert (await ask(running, arrays(), name="other"))["y"].shape == (1, 3)
    with pytest.raises(SettingsError, match=r"infer\.twice"):
        running.override("infer.nobody", None)


async def test_one_request_that_breaks_a_run_does_not_harm_its_mates(clock: FakeClock) -> None:
    class Picky(Twice):
        def _run(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
            if (tensors["x"] == 13).any():
                raise ValueError("unlucky")
            return super()._run(tensors)

    running = Runtime([engine_rung(Picky(clock))], clock)
    await ask(running, arrays())
    tasks = [start(running, arrays(value=value)) for value in (1, 2, 13, 4)]
    await work()
    assert [task.exception() is None for task in tasks] == [True, True, False, True]
    assert isinstance(tasks[2].exception(), ValueError)


async def test_an_engine_that_gives_the_wrong_rows_is_at_fault(clock: FakeClock) -> None:
    class Short(Twice):
        def _run(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
            made = super()._run(tensors)
            return {"y": made["y"][:-1]} if (tensors["x"] == 13).any() else made

    running = Runtime([engine_rung(Short(clock))], clock)
    await ask(running, arrays())
    tasks = [start(running, arrays(value=value)) for value in (1, 2, 13, 4)]
    await work()
    assert [task.exception() is None for task in tasks] == [True, True, False, True], "nobody gets another's rows"
    with pytest.raises(NoRungError, match="for 1 rows"):
        tasks[2].result()


async def test_another_engine_takes_its_place_while_it_serves(clock: FakeClock) -> None:
    class Wide(Twice):
        backend = "wide"

    old = Twice(clock)
    running = Runtime([engine_rung(old)], clock)
    await ask(running, arrays())
    swapping = asyncio.ensure_future(running.swap(engine_rung(Wide(clock))))
    await work()
    assert swapping.result().error is None
    assert running.engines()[0].platform == "wide"
    assert (await ask(running, arrays()))["y"].shape == (1, 3)
    assert old._closed


async def test_an_engine_that_cannot_be_measured_is_closed_and_nobody_is_served_by_it(clock: FakeClock) -> None:
    session = Twice(clock)
    session.failure = BackendError("it cannot", next_step="build it anew")
    running = Runtime([engine_rung(session)], clock)
    with pytest.raises(NoRungError, match="it cannot"):
        await ask(running, arrays())
    assert session._closed


async def test_an_engine_with_states_is_nobodys_to_share(clock: FakeClock) -> None:
    states = SessionOptions(states=(StatePair("bias", "y"),), state_shapes={"bias": (1,)})
    session = Twice(clock, states)
    with pytest.raises(SettingsError, match="states"):
        SessionEngine(session, TWICE, {})


async def test_the_embedders_own_engine_is_there_by_default(clock: FakeClock, tmp_path: Any) -> None:
    running = open_runtime(Settings({"home": str(tmp_path), "whisper": "none"}), clock=clock)
    (info,) = running.engines()
    assert (info.name, info.max_batch, info.outputs[0].shape) == ("minilm", 8, ("batch", 384))
    tokens = np.ones((2, 7), np.int64)
    assert set(checked_tensors(info, {"input_ids": tokens, "attention_mask": tokens})) == {
        "input_ids",
        "attention_mask",
    }
