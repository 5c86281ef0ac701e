"""kill -9 of a hosted engine under load, through the runtime: what every request comes to, how soon it is whole again.

    python -m benchmarks.kills [--kills 20] [--seed 0] [--rate 100] [--deadline-ms 200] [--alone] [--busy 0]

Requests come at random (Poisson) for `runtime.infer`, each with a deadline and with an x of its own, by which its
answer is known. The hosted engine of a few milliseconds is the best rung, the same engine in this process the next;
`--alone` leaves the next one out, so that requests wait for the process to be back or are refused. The process is
killed (SIGKILL) at random moments, and the service is whole again when the hosted rung has answered a request that was
sent after the kill. `--busy` processes take the processor's time meanwhile.

Every request must be answered or refused inside its deadline, none twice; whole again within 2 s of every kill.

Limits: one machine; an engine of megabytes; clients, runtime and next rung share one process, so that what is told
late may be told late by the clients' own loop. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from rich.console import Console
from rich.table import Table

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session, SessionOptions, available_backends, open_session
from aula.bench.machine import busy, machine, percentile
from aula.core.errors import AulaError
from aula.core.types import Context, TensorSpec
from aula.models.raw import SessionEngine, engine_rung_info
from aula.runtime import EngineInfo, Rung, RungChanged, Runtime
from benchmarks.hosted import ROWS, WIDTH, products

AIM_S = 2.0
SHAPE = ("rows", WIDTH)
INFO = EngineInfo(
    "products", "1", "onnx", (TensorSpec("x", "float32", SHAPE),), (TensorSpec("y", "float32", SHAPE),), 1
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--deadline-ms", type=float, default=200.0)
    parser.add_argument("--alone", action="store_true", help="no rung below the hosted one")
    parser.add_argument("--no-spare", action="store_true", help="no process that has imported the backend and waits")
    parser.add_argument("--busy", type=int, default=0, help="processes that take the processor's time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _burning(options.busy):
        result = asyncio.run(measure(products(Path(name) / "products.onnx"), options))
    table = Table(title="Killed under load, through the runtime", header_style="bold", box=None, show_header=False)
    for key, value in result.items():
        table.add_row(key.replace("_", " "), str(value))
    console = Console(width=120)
    console.print(table)
    console.print(f"aim: whole again within {AIM_S} s of every kill, every request answered or refused in time")
    print(json.dumps({"benchmark": "kills", **result, "load": busy(), "machine": machine()}))


class House:
    """The runtime, its hosted session, and what became of every request."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.backend = available_backends()[0]
        self.hosted: HostedSession | None = None
        self.spare = not options.no_spare
        self.deadline_s = options.deadline_ms / 1e3
        self.ends: Counter[str] = Counter()
        self.past_ms: list[float] = []
        self.took_ms: list[float] = []
        names = ["hosted"] if options.alone else ["hosted", "here"]
        opened = {"hosted": self._host, "here": self._here}
        self.runtime = Runtime([_rung(name, partial(opened[name], path)) for name in names])
        self.is_back = asyncio.Event()
        self.runtime.watch(self._heard)
        random = np.random.default_rng(options.seed)
        self.base = random.standard_normal((ROWS, WIDTH), dtype=np.float32)
        with self._here(path) as session:
            self.answer = session.run({"x": self.base})["y"]

    def _heard(self, event: RungChanged) -> None:
        if event.state == "closed":
            self.is_back.set()

    def _here(self, path: Path) -> Session:
        return open_session(self.backend, path, SessionOptions(threads=1))

    def _host(self, path: Path) -> Session:
        session = open_session(self.backend, path, SessionOptions(threads=1, hosted=Hosting(spare=self.spare)))
        assert isinstance(session, HostedSession)
        self.hosted = session
        return session

    @property
    def served_there(self) -> int:
        return next(rung.served for rung in self.runtime.statistics().rungs if rung.name == "hosted")

    async def ask(self, number: int) -> None:
        """The engine is linear: request n times the base gives n times its answer, and nobody else's."""
        factor = 1.0 + number % 97
        start = self.runtime.clock.now()
        deadline = start + self.deadline_s
        try:
            made = await self.runtime.infer("products", {"x": factor * self.base}, Context(deadline=deadline))
            good = np.allclose(made["y"], factor * self.answer, rtol=1e-2, atol=1e-2 * factor)
            self.ends["answered" if good else "answered wrongly"] += 1
            self.took_ms.append(1e3 * (self.runtime.clock.now() - start))
        except AulaError as error:
            self.ends[f"refused ({error.reason})" if error.reason else f"failed ({type(error).__name__})"] += 1
        self.past_ms.append(1e3 * (self.runtime.clock.now() - deadline))


async def measure(path: Path, options: argparse.Namespace) -> dict[str, object]:
    random, house = Random(options.seed), House(path, options)
    seconds: list[float] = []
    async with house.runtime:
        await house.runtime.probe()  # loads both, as a door does before it opens
        load = asyncio.ensure_future(_load(house, random, options.rate))
        for _ in range(options.kills):
            await asyncio.sleep(random.uniform(0.2, 3.0))
            seconds.append(await _kill(house))
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "request"))
        counts = house.runtime.statistics()
        events = Counter(f"{event.rung} {event.state} ({event.cause})" for event in house.runtime.events)
        assert house.hosted is not None
        there = house.hosted.statistics()
    submitted = sum(house.ends.values())
    return {
        "kills": options.kills,
        "rungs": "hosted alone" if options.alone else "hosted, and the same engine in this process",
        "spare_process": not options.no_spare,
        "busy_processes": options.busy,
        "requests_a_second": options.rate,
        "deadline_ms": options.deadline_ms,
        "whole_again_p50_s": round(percentile(seconds, 0.5), 3),
        "whole_again_worst_s": round(max(seconds), 3),
        "whole_again_s": [round(value, 2) for value in seconds],
        "submitted": submitted,
        "ends": dict(house.ends),
        "counters_agree": counts.submitted == submitted == counts.answered + counts.refused + counts.failed,
        "retried": sum(scheduler.retried for scheduler in counts.schedulers),
        "served_by": {rung.name: rung.served for rung in counts.rungs},
        "lost_runs": there.lost,
        "answered_p50_ms": round(percentile(house.took_ms, 0.5), 2),
        "answered_p99_ms": round(percentile(house.took_ms, 0.99), 2),
        "past_deadline": sum(value > 0 for value in house.past_ms),
        "past_deadline_worst_ms": round(max(0.0, *house.past_ms), 2),
        "events": dict(events),
    }


async def _load(house: House, random: Random, rate: float) -> None:
    due, number = house.runtime.clock.now(), 0
    while True:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - house.runtime.clock.now()))
        number += 1
        asyncio.create_task(house.ask(number), name="request")  # noqa: RUF006 - gathered by name


async def _kill(house: House) -> float:
    assert house.hosted is not None
    start = time.perf_counter()
    house.is_back.clear()
    os.kill(house.hosted.health().pid, signal.SIGKILL)
    await house.is_back.wait()
    served = house.served_there
    while house.served_there == served:  # noqa: ASYNC110 - nobody tells of a run
        await asyncio.sleep(0.001)
    return time.perf_counter() - start


def _rung(name: str, open_one: partial[Session]) -> Rung:
    note = "products of matrices"
    return Rung(
        engine_rung_info(name, note), name, lambda: SessionEngine(open_one(), INFO, {"rows": ROWS}), engine=INFO
    )


@contextlib.contextmanager
def _burning(count: int) -> Iterator[None]:
    """Ended with the block, and by themselves after ten minutes."""
    code = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"
    burners = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


if __name__ == "__main__":
    main()
