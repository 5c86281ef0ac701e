"""What the runtime adds to a model's own call: scheduler, hop between threads, metrics and all.

    python -m benchmarks.runtime [--in-flight 1000] [--requests 20000]

Limits first: one process; the model answers at once, so that everything that is measured is ours and the interpreter's
share between the loop's thread and the model's; time is the machine's own, and another busy process shows. `direct` is
the same call handed to the same kind of thread without a scheduler: the difference is what the scheduler, the books and
the metrics cost. With many in flight the wall time is divided by the requests. The last line is JSON.
"""

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from aula.core.errors import DeadlineError, OverloadError
from aula.core.telemetry import REFUSALS
from aula.core.types import Capability, Context, Float32, Intent, RungInfo, Understanding
from aula.runtime import Rung, Runtime
from aula.serving.threads import WorkerThread

TENANTS = 50
ANSWER = Understanding(Intent.CONTENT, 1.0, np.ones(8, np.float32))


class AtOnce:
    """Costs nothing, so that whatever is measured is not its own."""

    def understand(self, text: str, context: Context) -> Understanding:  # noqa: ARG002 - the contract
        return ANSWER

    def understand_many(self, texts: Sequence[str], contexts: Sequence[Context]) -> list[Understanding]:  # noqa: ARG002
        return [ANSWER] * len(texts)


class Slow:
    """Takes 20 ms, so that whoever has 5 must be refused."""

    def embed(self, texts: Sequence[str]) -> Float32:
        time.sleep(0.02)
        return np.ones((len(texts), 8), np.float32)


def _figures(microseconds: list[float]) -> dict[str, float]:
    ordered = sorted(microseconds)
    return {"p50_us": round(ordered[len(ordered) // 2], 1), "p99_us": round(ordered[int(0.99 * len(ordered))], 1)}


async def _each(requests: int, call: Callable[[int], Awaitable[Any]]) -> dict[str, float]:
    spent = []
    for number in range(requests):
        start = time.perf_counter_ns()
        await call(number)
        spent.append((time.perf_counter_ns() - start) / 1e3)
    return _figures(spent)


async def measure(in_flight: int, requests: int) -> dict[str, object]:
    rungs = [
        Rung(RungInfo("at-once", Capability.UNDERSTAND, frozenset({"*"})), "model", AtOnce),
        Rung(RungInfo("slow", Capability.EMBED, frozenset({"*"})), "slow", Slow),
    ]
    contexts = [Context(tenant=f"class-{number}") for number in range(TENANTS)]
    async with Runtime(rungs) as runtime:

        async def ask(number: int) -> None:
            await runtime.submit(Capability.UNDERSTAND, "why", contexts[number % TENANTS])

        async def refused(number: int) -> None:
            hopeless = Context(tenant=f"class-{number % TENANTS}", deadline=runtime.clock.now() + 0.005)
            with suppress(OverloadError, DeadlineError):  # on a busy machine 5 ms may pass before it is asked
                await runtime.submit(Capability.EMBED, ["why"], hopeless)

        thread, model = WorkerThread("direct"), AtOnce()
        await runtime.warm(contexts[0])
        direct = await _each(requests // 4, lambda _: thread.call(model.understand, "why", contexts[0]))
        alone = await _each(requests // 4, ask)
        gate = asyncio.Semaphore(in_flight)

        async def held(number: int) -> None:
            async with gate:
                await ask(number)

        start = time.perf_counter()
        await asyncio.gather(*(held(number) for number in range(requests)))
        crowd_us = 1e6 * (time.perf_counter() - start) / requests
        batch = runtime.statistics().schedulers[0]
        behind = [asyncio.ensure_future(runtime.submit(Capability.EMBED, ["why"], one)) for one in contexts]
        await asyncio.sleep(0)
        refusal = await _each(1000, refused)
        await asyncio.gather(*behind)
        refusals = int(runtime.telemetry.value(REFUSALS, "predicted_late"))
        thread.stop()
    return {
        "python": platform.python_version(),
        "requests": requests,
        "in_flight": in_flight,
        "direct": direct,
        "one_at_a_time": alone,
        "added_p50_us": round(alone["p50_us"] - direct["p50_us"], 1),
        "crowd_us": round(crowd_us, 1),
        "batch_mean": round(batch.answered / batch.batches, 1),
        "refusal": refusal,
        "refused": refusals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    told = asyncio.run(measure(options.in_flight, options.requests))
    print(f"one at a time {told['one_at_a_time']}, the thread alone {told['direct']}: {told['added_p50_us']} us added")
    print(f"{told['in_flight']} in flight: {told['crowd_us']} us a request, batches of {told['batch_mean']}")
    print(f"a refusal {told['refusal']}; aim: 1000 us p99")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
