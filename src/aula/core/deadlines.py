"""The deadline of the work that runs now, for whoever is called without one: an embedder takes texts, and its engine's
process still stops waiting when nobody waits any longer."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aula.core.clock import Clock

_UNTIL: ContextVar[tuple[Clock, float] | None] = ContextVar("aula_until", default=None)


@contextmanager
def work_until(clock: Clock, deadline: float | None) -> Iterator[None]:
    """`deadline` is a moment of the clock; None means whenever."""
    token = _UNTIL.set(None if deadline is None else (clock, deadline))
    try:
        yield
    finally:
        _UNTIL.reset(token)


def seconds_left() -> float | None:
    """Of the work that runs in this thread or task, which may be less than none; None where it has no deadline."""
    until = _UNTIL.get()
    return None if until is None else until[1] - until[0].now()
