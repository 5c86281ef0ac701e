"""Spans through a small stand-in for OpenTelemetry's API; seen to work with the real one, 1.45.2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from aula.core.clock import FakeClock
from aula.core.traces import span
from aula.core.types import Capability, Context
from tests.serving.hand import House, by_hand, rung, runtime, start, work


class Recorded:
    def __init__(self, name: str, parent: "Recorded | None") -> None:
        self.name, self.parent = name, parent
        self.attributes: dict[str, Any] = {}
        self.error: BaseException | None = None

    def set_attribute(self, name: str, value: Any) -> None:
        self.attributes[name] = value


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Recorded] = []
        self.current: Recorded | None = None

    @contextmanager
    def start_as_current_span(self, name: str) -> Iterator[Recorded]:
        recorded = Recorded(name, self.current)
        self.spans.append(recorded)
        before, self.current = self.current, recorded
        try:
            yield recorded
        except BaseException as error:
            recorded.error = error
            raise
        finally:
            self.current = before


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Tracer:
    tracer = Tracer()
    api = ModuleType("opentelemetry.trace")
    api.get_tracer = lambda name: tracer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", api)
    return tracer


def test_without_opentelemetry_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    with span("turn", tenant="a") as traced:
        traced.tell(rung="best")


def test_spans_nest_and_record_what_left_them(tracer: Tracer) -> None:
    def speak() -> None:
        with span("turn", tenant="a"), span("speak") as inner:
            inner.tell(rung="best", drafted=True)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        speak()
    outer, told = tracer.spans
    assert (outer.name, outer.attributes) == ("aula.turn", {"aula.tenant": "a"})
    assert (told.parent, told.attributes) == (outer, {"aula.rung": "best", "aula.drafted": True})
    assert isinstance(told.error, ValueError)


async def test_each_request_is_a_span_that_says_who_served_it(tracer: Tracer) -> None:
    with by_hand():
        clock = FakeClock()
        task = start(runtime(rung("best", House(clock)), clock=clock), Capability.EMBED, ["a"], Context(tenant="b"))
        await work()
        await task
    (told,) = tracer.spans
    assert told.name == "aula.embed"
    assert told.attributes == {
        "aula.tenant": "b",
        "aula.tier": "question",
        "aula.rung": "best",
        "aula.why": "best",
    }
