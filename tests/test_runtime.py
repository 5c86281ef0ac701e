import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from aula.core.clock import FakeClock
from aula.core.errors import (
    BackendError,
    DeadlineError,
    ModelNotFoundError,
    NoRungError,
    NothingHeardError,
    UnsupportedLanguageError,
)
from aula.core.types import Capability, Context, Float32, Int16, RungInfo, SpeakRequest, TranscribeRequest
from aula.runtime import Rung, Runtime

ENGLISH = Context(language="en")


class Lengths:
    """Embeds a text as its length; fails when told to. Remembers which threads it ran in."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.threads: set[str] = set()
        self.closed = 0

    def embed(self, texts: Sequence[str]) -> Float32:
        self.threads.add(threading.current_thread().name)
        if self.failure is not None:
            raise self.failure
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def close(self) -> None:
        self.closed += 1


class Counter:
    """Speaks as many one-sample chunks as the text has letters."""

    rate = 10

    def __init__(self) -> None:
        self.stopped = False

    def speak(self, request: SpeakRequest, context: Context) -> Iterator[Int16]:
        try:
            for letter in request.text:
                yield np.array([ord(letter)], dtype=np.int16)
        finally:
            self.stopped = True


def _rung(name: str, model: Any, languages: tuple[str, ...] = ("en",), capability: Any = Capability.EMBED) -> Rung:
    def load() -> Any:
        if isinstance(model, Exception):
            raise model
        return model

    return Rung(RungInfo(name, capability, frozenset(languages)), worker=name, load=load)


async def test_the_best_rung_serves_in_its_own_thread_and_is_named() -> None:
    best = Lengths()
    async with Runtime([_rung("best", best), _rung("second", Lengths())]) as runtime:
        outcome = await runtime.submit(Capability.EMBED, ["ab", "c"], ENGLISH)
        assert outcome.rung == "best"
        assert outcome.value.tolist() == [[2], [1]]
        assert len(best.threads) == 1
        assert threading.current_thread().name not in best.threads
    assert best.closed == 1


@pytest.mark.parametrize(
    "broken",
    [ModelNotFoundError("absent", next_step="install it"), Lengths(BackendError("out of order", next_step="mend it"))],
)
async def test_a_rung_that_cannot_load_or_fails_is_left_for_the_next(broken: Any) -> None:
    async with Runtime([_rung("broken", broken), _rung("second", Lengths())]) as runtime:
        for _ in range(2):
            assert (await runtime.submit(Capability.EMBED, ["ab"], ENGLISH)).rung == "second"
        first, second = runtime.statistics().rungs
        assert (first.served, first.failed, second.served) == (0, 1, 2)
        assert first.unavailable is not None


async def test_when_every_rung_is_out_of_order_the_reasons_are_told() -> None:
    absent = ModelNotFoundError("the weights are absent", next_step="install them")
    async with Runtime([_rung("one", absent), _rung("two", absent)]) as runtime:
        with pytest.raises(NoRungError, match=r"one \(the weights are absent.*two"):
            await runtime.submit(Capability.EMBED, ["ab"], ENGLISH)


async def test_a_language_that_no_rung_knows_is_refused_with_what_there_is() -> None:
    async with Runtime([_rung("best", Lengths(), ("en", "fr"))]) as runtime:
        with pytest.raises(UnsupportedLanguageError) as caught:
            await runtime.submit(Capability.EMBED, ["ab"], Context(language="zh"))
        assert caught.value.available == ("en", "fr")


async def test_a_past_deadline_is_refused_before_any_work() -> None:
    model = Lengths()
    clock = FakeClock(5.0)
    async with Runtime([_rung("best", model)], clock) as runtime:
        with pytest.raises(DeadlineError):
            await runtime.submit(Capability.EMBED, ["ab"], Context(deadline=5.0))
        await runtime.submit(Capability.EMBED, ["ab"], Context(deadline=5.1))
    assert len(model.threads) == 1


async def test_an_error_of_the_request_itself_reaches_the_caller_and_spares_the_rung() -> None:
    model = Lengths()
    async with Runtime([_rung("best", model), _rung("second", Lengths())]) as runtime:
        await runtime.warm(ENGLISH, [Capability.EMBED])
        model.failure = NothingHeardError("only noise", next_step="speak up")
        with pytest.raises(NothingHeardError):
            await runtime.submit(Capability.EMBED, ["ab"], ENGLISH)
        model.failure = None
        assert (await runtime.submit(Capability.EMBED, ["ab"], ENGLISH)).rung == "best"


async def test_every_submission_is_counted_once() -> None:
    async with Runtime([_rung("best", Lengths())]) as runtime:
        await runtime.submit(Capability.EMBED, ["ab"], ENGLISH)
        with pytest.raises(UnsupportedLanguageError):
            await runtime.submit(Capability.EMBED, ["ab"], Context(language="zh"))
        with pytest.raises(TypeError):
            await runtime.submit(Capability.EMBED, [1], ENGLISH)
        counts = runtime.statistics()
    assert (counts.submitted, counts.answered, counts.refused, counts.failed, counts.cancelled) == (3, 1, 1, 1, 0)


async def test_speech_comes_chunk_by_chunk_and_stops_when_it_is_closed() -> None:
    model = Counter()
    async with Runtime([_rung("voice", model, capability=Capability.SPEAK)]) as runtime:
        speech = (await runtime.submit(Capability.SPEAK, SpeakRequest("abc"), ENGLISH)).value
        assert speech.rate == 10
        assert [chunk.item() async for chunk in speech] == [97, 98, 99]
        speech = (await runtime.submit(Capability.SPEAK, SpeakRequest("abc"), ENGLISH)).value
        model.stopped = False
        await anext(speech)
        await speech.aclose()
        assert model.stopped


async def test_a_payload_of_the_wrong_kind_is_named() -> None:
    async with Runtime([_rung("voice", Counter(), capability=Capability.SPEAK)]) as runtime:
        with pytest.raises(TypeError, match="speak does not take TranscribeRequest"):
            await runtime.submit(Capability.SPEAK, TranscribeRequest(), ENGLISH)


async def test_probing_loads_every_rung_and_reports_what_came_of_it() -> None:
    absent = ModelNotFoundError("absent", next_step="install it")
    async with Runtime([_rung("broken", absent), _rung("whole", Lengths())], FakeClock()) as runtime:
        broken, whole = await runtime.probe()
    assert broken.error is absent
    assert whole.error is None
    assert whole.load_ms == 0


async def test_rungs_of_one_worker_never_run_at_once() -> None:
    """Two capabilities on one model share a thread, so the model is never entered twice."""
    busy = threading.Lock()

    class Careful(Lengths):
        def embed(self, texts: Sequence[str]) -> Float32:
            assert busy.acquire(blocking=False), "entered twice"
            try:
                return super().embed(texts)
            finally:
                busy.release()

    import asyncio

    model = Careful()
    rung = _rung("shared", model)
    async with Runtime([rung]) as runtime:
        await asyncio.gather(*(runtime.submit(Capability.EMBED, ["a"], ENGLISH) for _ in range(50)))
    assert len(model.threads) == 1
