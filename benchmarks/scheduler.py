"""What the scheduler itself costs a request, with many in flight; nothing runs, time is the machine's own.

    python benchmarks/scheduler.py [--in-flight 1000] [--requests 20000]

Limits first: one thread, one process, a warm interpreter, no callable, so decisions alone are counted: `submit`, and
a batch's `finished` with the next batch's choice, shared by the tickets of the batch. The refusals are of a queue
that holds far more than its deadline allows. The last line is JSON.
"""

import argparse
import json
import platform
import time
from collections import deque
from collections.abc import Callable
from random import Random

from aula.core.clock import FakeClock
from aula.scheduling.batching import Batch
from aula.scheduling.costs import CostTable
from aula.scheduling.ladder import Ladder
from aula.scheduling.routes import Route
from aula.scheduling.scheduler import Scheduler
from aula.scheduling.tickets import State

COSTS = {"gpu": {1: {1: 8.0, 16: 24.0}, 2: {1: 14.0, 16: 46.0}}}
TENANTS = 50
TIERS = ("question", "caption", "vision", "batch")


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def _figures(microseconds: list[float]) -> dict[str, float]:
    ordered = sorted(microseconds)
    return {"p50_us": round(ordered[len(ordered) // 2], 1), "p99_us": round(ordered[int(0.99 * len(ordered))], 1)}


def measure(in_flight: int, requests: int) -> dict[str, object]:
    clock, random, running = FakeClock(), Random(0), deque[Batch]()
    costs = CostTable(COSTS)
    route = Route("speech", Ladder(costs.engines, clock), costs)
    scheduler = Scheduler(running.append, (route,), clock)
    spent: list[float] = []
    refusals: list[float] = []

    def submit(deadline: float | None) -> State:
        tenant = f"class-{random.randrange(TENANTS)}"
        tier = random.choice(TIERS)
        return scheduler.submit(route, tenant, tier, random.randint(1, 2), deadline).state

    while scheduler.queue.length < in_flight:
        submit(clock.now() + 1e6 + random.random())
    while len(spent) < requests:
        batch = running.popleft()
        clock.advance(batch.predicted_ms / 1e3)
        size = len(batch.tickets)
        finishing = _timed(lambda batch=batch, size=size: scheduler.finished(batch, [None] * size))  # type: ignore[misc]
        later = clock.now() + 1e6
        spent += [_timed(lambda until=later: submit(until + random.random())) + finishing / size for _ in range(size)]  # type: ignore[misc]
        refusals.append(_timed(lambda: submit(clock.now() + 0.02)))
    refused = sum(scheduler.statistics().refused.values())
    return {
        "python": platform.python_version(),
        "in_flight": in_flight,
        "requests": len(spent),
        "request": _figures(spent),
        "refusal": _figures(refusals),
        "refused": refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    measured = measure(options.in_flight, options.requests)
    print(
        f"a request {measured['request']}, a refusal {measured['refusal']}; aims: 50 us p50 and 200 us p99; 1000 us p99"
    )
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
