"""A burst behind a running job: how long six requests wait, with us and with a real Triton, in one run.

    python -m benchmarks.serving.burst --triton ENVIRONMENT [--trials 30]

A job takes 60 ms whatever its batch, and batches of eight are allowed. One request starts a job; 10 ms later six more
come at once. Nothing need wait longer than the job that runs and one job for all six: 120 ms. What exceeds that is a
stall. In turns: our runtime with a hosted engine; Triton with plain dynamic batching; Triton with priority levels
(the burst has the higher priority); Triton with a limit to its queue and a timeout of 10 s.

Limits: ours is asked inside one process, Triton over HTTP on one machine (about a millisecond); its Python backend
sleeps, ours sleeps in its own process. The last line is JSON.
"""

import argparse
import asyncio
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from aula.backends.hosted import HostedSession
from aula.bench.machine import busy, machine, percentile
from benchmarks.serving.ours import Service
from benchmarks.serving.slow_engine import SlowEngine
from benchmarks.serving.triton import Client, running, write_repository

JOB_SECONDS, BEHIND_SECONDS = 0.06, 0.01
BURST, BATCH = 6, 8
STALL_MS = 100.0
MODELS = {
    "plain": "",
    "priorities": "priority_levels: 2 default_priority_level: 2",
    "limited": "default_queue_policy { max_queue_size: 64 default_timeout_microseconds: 10000000 }",
}
IDEAL_MS = 2e3 * JOB_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", type=Path, required=True, help="an environment with nvidia-pytriton")
    parser.add_argument("--trials", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        repository = write_repository(scratch / "repository", MODELS, JOB_SECONDS, BATCH)
        with running(options.triton.absolute(), repository, scratch) as port:
            times = asyncio.run(_trials(port, options.trials))
    figures = {name: _figures(values) for name, values in times.items()}
    _print(figures, options.trials)
    print(json.dumps({"benchmark": "burst", "trials": options.trials, "ms": figures, "load": busy(), **machine()}))


async def _trials(port: int, trials: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"ours": [], **{f"triton, {name}": [] for name in MODELS}}
    async with Service(HostedSession(partial(SlowEngine, JOB_SECONDS)), BATCH) as service:
        clients = {name: [Client(port, name) for _ in range(BURST + 1)] for name in MODELS}
        try:
            for _ in range(trials):
                times["ours"].append(await _ours(service))
                for name, connections in clients.items():
                    high = 1 if name == "priorities" else None
                    times[f"triton, {name}"].append(await asyncio.to_thread(_theirs, connections, high))
        finally:
            for connection in (client for group in clients.values() for client in group):
                connection.close()
    return times


async def _ours(service: Service) -> float:
    rows = [np.array([value], np.float32) for value in range(BURST + 1)]
    start = time.perf_counter()
    first = asyncio.ensure_future(service.ask(rows[0], "batch"))
    await asyncio.sleep(BEHIND_SECONDS)
    answers = await asyncio.gather(first, *(service.ask(row) for row in rows[1:]))
    took = 1e3 * (time.perf_counter() - start)
    assert [float(answer[0]) for answer in answers] == [2.0 * value for value in range(BURST + 1)]
    return took


def _theirs(connections: list[Client], high: int | None) -> float:
    def ask(number: int) -> float:
        return connections[number].ask(float(number), high if number else None)

    with ThreadPoolExecutor(BURST + 1) as pool:
        start = time.perf_counter()
        pool.submit(ask, 0)
        time.sleep(BEHIND_SECONDS)
        answers = list(pool.map(ask, range(1, BURST + 1)))
        took = 1e3 * (time.perf_counter() - start)
    assert answers == [2.0 * value for value in range(1, BURST + 1)]
    return took


def _figures(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(percentile(values, 0.5), 1),
        "p90": round(percentile(values, 0.9), 1),
        "worst": round(max(values), 1),
        "stalls": sum(value - IDEAL_MS > STALL_MS for value in values),
        "worst_stall": round(max(values) - IDEAL_MS, 1),
    }


def _print(figures: dict[str, dict[str, float]], trials: int) -> None:
    table = Table(title=f"{BURST} requests behind a job of 60 ms, {trials} trials", header_style="bold", box=None)
    for column in ("", "p50 ms", "p90 ms", "worst ms", f"stalls over {STALL_MS:.0f} ms", "worst stall ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in figures.items():
        table.add_row(name, *(f"{value:g}" for value in row.values()))
    Console(width=120).print(table)
    Console(width=120).print(f"ideal: {IDEAL_MS:g} ms; aim: no stall over {STALL_MS:g} ms of ours")


if __name__ == "__main__":
    main()
