"""Percentiles of turns, now and over time."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aula.servers.turn_log import TurnRecord

MINUTES = 60
TOTAL = "commit_to_first_audio"


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds; each is a value that was measured (nearest rank)."""

    count: int
    p50: float
    p95: float
    p99: float


def spread(values: Sequence[float]) -> Spread | None:
    """None where there is nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(len(ordered), *(ordered[max(0, math.ceil(q * len(ordered)) - 1)] for q in (0.5, 0.95, 0.99)))


def by_clock(turns: Iterable[TurnRecord]) -> dict[str, list[TurnRecord]]:
    """The turns that were answered, by the clock that measured them: A, B, C or text."""
    sorted_out: dict[str, list[TurnRecord]] = defaultdict(list)
    for turn in turns:
        if turn.error is None and TOTAL in turn.timings_ms:
            sorted_out[turn.clock].append(turn)
    return dict(sorted_out)


def over_time(turns: Iterable[TurnRecord], now: float, minutes: int = MINUTES) -> list[tuple[float, Spread | None]]:
    """One for each of the last minutes, the oldest first: the Unix time at which it began, and its turns."""
    last = math.floor(now / 60)
    values: dict[int, list[float]] = defaultdict(list)
    for turn in turns:
        values[math.floor(turn.moment / 60)].append(turn.timings_ms[TOTAL])
    return [(60.0 * minute, spread(values.get(minute, ()))) for minute in range(last - minutes + 1, last + 1)]
