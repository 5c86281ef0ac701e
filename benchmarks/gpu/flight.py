"""How many identical recognitions can be in flight while 99 of 100 are answered in time. Both sides count with this.

Standard library only: PyTorch's interpreter reads it too.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import Any

from benchmarks.gpu.rows import LATENCY_MS

ROUNDS = 20
TRIES = 8
WARM_UPS = 2

Serve = Callable[[int], object]
"""Answers so many of the oldest, and returns when their texts are on the host."""


def percentile(values: list[float], share: float) -> float:
    """Nearest rank, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, ceil(share * len(ordered)) - 1))]


def closed_loop(
    serve: Serve,
    in_flight: int,
    batch: int,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    limit_ms: float = inf,
) -> list[float]:
    """Latencies in milliseconds of `rounds` times `in_flight` requests. Every client asks again as soon as it is
    answered. The first round, in which nobody else is waiting yet, does not count. Ends early once more than one of
    a hundred of all came later than `limit_ms`: what is left cannot mend that."""
    start = now()
    waiting = deque([start] * in_flight)
    latencies: list[float] = []
    wanted, late = rounds * in_flight, 0
    while len(latencies) < wanted + in_flight and late <= wanted - ceil(0.99 * wanted):
        taken = [waiting.popleft() for _ in range(min(batch, in_flight))]
        serve(len(taken))
        done = now()
        for asked in taken:
            latencies.append(1000 * (done - asked))
            late += len(latencies) > in_flight and latencies[-1] > limit_ms
        waiting.extend([done] * len(taken))
    return latencies[in_flight:]


def shared_loop(
    serves: Sequence[Serve],
    in_flight: int,
    batch: int,
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    limit_ms: float = inf,
) -> list[float]:
    """`closed_loop` where several servers, each in a thread of its own, take from one queue: while one listens another
    writes. Each takes as many as a batch holds, since ours cost the same half full: the last server stands idle rather
    than all of them serving less. What was asked in the first round does not count, whenever it is answered. An error
    of one ends all, and is raised."""
    lock = threading.Condition()
    waiting = deque([(now(), 0)] * in_flight)
    latencies: list[float] = []
    wanted, late = rounds * in_flight, 0
    broken: list[BaseException] = []

    def ended() -> bool:
        return bool(broken) or len(latencies) >= wanted or late > wanted - ceil(0.99 * wanted)

    def work(serve: Serve) -> None:
        nonlocal late
        while True:
            with lock:
                lock.wait_for(lambda: ended() or waiting)
                if ended():
                    return
                taken = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            try:
                serve(len(taken))
            except BaseException as error:
                with lock:
                    broken.append(error)
                    lock.notify_all()
                return
            done = now()
            with lock:
                counted = [1000 * (done - asked) for asked, turn in taken if turn]
                latencies.extend(counted)
                late += sum(ms > limit_ms for ms in counted)
                waiting.extend((done, turn + 1) for _, turn in taken)
                lock.notify_all()

    threads = [threading.Thread(target=work, args=(serve,)) for serve in serves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return latencies


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


def most_in_flight(
    open_server: Callable[[int], tuple[int, Serve | Sequence[Serve]]],
    first: int,
    *,
    limit_ms: float = LATENCY_MS,
    rounds: int = ROUNDS,
    tries: int = TRIES,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """`open_server` gives, for so many in flight, how many are answered at once and what answers them, which may be
    several beside each other; MemoryError, in opening or serving, means that so many cannot be served. Not even one is
    told as 0, and with its own latency."""
    seen: dict[int, float] = {}

    def passes(count: int) -> bool:
        try:
            batch, opened = open_server(count)
            serves = [opened] if callable(opened) else opened
            for serve in serves:
                for _ in range(WARM_UPS):
                    serve(min(batch, count))
            if len(serves) == 1:
                latencies = closed_loop(serves[0], count, batch, rounds, now, limit_ms)
            else:
                latencies = shared_loop(serves, count, batch, rounds, now, limit_ms)
            seen[count] = percentile(latencies, 0.99)
        except MemoryError:
            seen[count] = inf
        return seen[count] <= limit_ms

    found = greatest(passes, first, tries=tries)
    p99 = {count: None if ms == inf else round(ms, 2) for count, ms in sorted(seen.items())}
    return {
        "in_flight": found,
        "p99_ms": p99[found or min(p99)],
        "tried_p99_ms": {str(count): ms for count, ms in p99.items()},
    }
