"""How many identical recognitions can be in flight while 99 of 100 are answered in time. Standard library only."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil


def percentile(values: list[float], share: float) -> float:
    """Nearest rank, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, ceil(share * len(ordered)) - 1))]


def closed_loop(
    serve: Callable[[int], object],
    in_flight: int,
    batch: int,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Latencies in milliseconds of `rounds` times `in_flight` requests. Every client asks again as soon as it is
    answered; `serve(n)` answers the n oldest and returns when their texts are on the host. The first round, in which
    nobody else is waiting yet, does not count."""
    start = now()
    waiting = deque([start] * in_flight)
    latencies: list[float] = []
    while len(latencies) < (rounds + 1) * in_flight:
        taken = [waiting.popleft() for _ in range(min(batch, in_flight))]
        serve(len(taken))
        done = now()
        latencies += [1000 * (done - asked) for asked in taken]
        waiting.extend([done] * len(taken))
    return latencies[in_flight:]


def greatest(
    passes: Callable[[int], bool], first: int, *, tries: int = 10, most: int = 1 << 14, closeness: float = 0.03
) -> int:
    """The greatest number that passes, found by doubling from `first` and then halving the gap; 0 if not even `first`
    does, nor half of it and so on down to 1. Stops after `tries`, or when the gap is below `closeness` of the number.
    """
    good, bad, trial = 0, most + 1, first
    for _ in range(tries):
        if passes(trial):
            good = trial
        else:
            bad = trial
        if bad - good <= max(1, closeness * good):
            break
        if bad > most:
            trial = min(2 * good, most)
        elif good == 0:
            trial = max(1, trial // 2)
        else:
            trial = (good + bad) // 2
    return good
