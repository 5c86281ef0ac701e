"""Spans of a turn, where the program around aula uses OpenTelemetry; else nothing, at the cost of one look-up.

aula configures no tracing and asks for no package: whoever has set up a tracer provider has imported `opentelemetry`
before, and only then are spans made. Attributes are in aula's own words: tenant, tier, rung, why.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

TRACER = "aula"


class Span:
    """What can be added once it is known; without a tracer it forgets."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def tell(self, **attributes: str | float | bool) -> None:
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(f"aula.{name}", value)


class _Silence:
    """Around a block of which nobody keeps a trace."""

    _span = Span()

    def __enter__(self) -> Span:
        return self._span

    def __exit__(self, *_: object) -> None: ...


_SILENCE = _Silence()


def span(name: str, **attributes: str | float | bool) -> AbstractContextManager[Span]:
    """A span named `aula.<name>` around the block; an error that leaves the block is recorded in it."""
    api = sys.modules.get("opentelemetry.trace")
    return _SILENCE if api is None else _traced(api, name, attributes)


@contextmanager
def _traced(api: Any, name: str, attributes: Mapping[str, str | float | bool]) -> Iterator[Span]:
    with api.get_tracer(TRACER).start_as_current_span(f"aula.{name}") as opened:
        told = Span(opened)
        told.tell(**attributes)
        yield told
