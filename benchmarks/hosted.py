"""What a process of its own costs an engine, and how soon it is back after it was killed.

    python -m benchmarks.hosted [--runs 2000] [--kills 20] [--seed 0] [--rate 100]

1. Overhead: the same engine here and in a process of its own, run in turns in one loop, so that whatever else the
   machine does meets both. Once with y = x + x alone, whose own time is next to nothing, by the size of x.
2. At rest: processor time of both processes over two seconds in which nothing is asked.
3. Recovery: requests come at random (Poisson) for an engine of a few milliseconds, each with a deadline of 100 ms; the
   process is killed (SIGKILL) at random moments. A run that was lost or refused is asked once more of the next rung,
   the same engine in this process, inside its deadline. Every request must be answered or refused in time, and the
   hosted engine whole again, and answering, within 2 s of every kill.

Limits: one machine, one caller at a time on the overhead; an engine of megabytes, so that loading it again is import
and graph, not gigabytes of weights. The last line is JSON.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import Session, SessionOptions, available_backends, open_session
from aula.bench.machine import busy, machine, percentile
from aula.core.errors import BackendError, DeadlineError, ProcessAwayError, ProcessLostError

SIZES = (16, 1024, 16_384, 262_144, 4_194_304)
"""float32 values in x: 64 bytes to 16 MiB."""
REST_SECONDS = 2.0
DEADLINE_SECONDS = 0.1
WIDTH, LAYERS, ROWS = 512, 8, 24
"""An engine of about 2 ms on one core of a 2023 server."""
CLIENTS = 4
AIM_OVERHEAD_MS, AIM_RECOVERY_S = 0.3, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second while it is killed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overhead = [row for backend in available_backends() for row in measure_overhead(folder, backend, options.runs)]
        rest = measure_rest(folder)
        recovery = measure_recovery(folder, Random(options.seed), options.kills, options.rate)
    _print(overhead, rest, recovery)
    summary = {
        "benchmark": "hosted",
        "overhead": overhead,
        "rest_ms_per_s": rest,
        "recovery": recovery,
        "load": busy(),
        "machine": machine(),
    }
    print(json.dumps(summary))


# 1. Overhead.


def measure_overhead(folder: Path, backend: str, runs: int) -> list[dict[str, float | str]]:
    path = _adding(folder / f"adding-{backend}.onnx")
    rows: list[dict[str, float | str]] = []
    with _opened(backend, path) as here, _opened(backend, path, Hosting()) as there:
        for size in SIZES:
            tensors = {"x": np.ones(size, np.float32)}
            repetitions = max(50, min(runs, 200_000_000 // (4 * size)))
            times: dict[str, list[float]] = {"here": [], "there": []}
            for _ in range(20):
                here.run(tensors), there.run(tensors)
            for _ in range(repetitions):
                for where, session in (("here", here), ("there", there)):
                    start = time.perf_counter()
                    session.run(tensors)
                    times[where].append(1e3 * (time.perf_counter() - start))
            p50 = {where: percentile(values, 0.5) for where, values in times.items()}
            p99 = {where: percentile(values, 0.99) for where, values in times.items()}
            rows.append(
                {
                    "backend": backend,
                    "bytes": 4 * size,
                    "here_p50_ms": round(p50["here"], 4),
                    "hosted_p50_ms": round(p50["there"], 4),
                    "overhead_p50_ms": round(p50["there"] - p50["here"], 4),
                    "overhead_p99_ms": round(p99["there"] - p99["here"], 4),
                }
            )
    return rows


# 2. At rest.


def measure_rest(folder: Path) -> float:
    """Processor milliseconds a second of the process and of everything in this one, with nothing to do."""
    with _opened(available_backends()[0], _adding(folder / "rest.onnx"), Hosting()) as session:
        assert isinstance(session, HostedSession)
        session.run({"x": np.ones(16, np.float32)})
        pid = session.health().pid
        before = _spent(pid) + time.process_time()
        time.sleep(REST_SECONDS)
        return round(1e3 * (time.process_time() + _spent(pid) - before) / REST_SECONDS, 3)


def _spent(pid: int) -> float:
    """Seconds of processor time of another process (proc_pid_schedstat, nanoseconds)."""
    paths = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text(encoding="ascii").split()[0]) for path in paths) / 1e9


# 3. Recovery.


class Load:
    """Clients that ask at random moments, and what became of every request."""

    def __init__(self, hosted: HostedSession, below: Session, rate: float) -> None:
        self.hosted = hosted
        self.rate = rate
        self.outcomes: Counter[str] = Counter()
        self.late_ms: list[float] = []
        self.answered_at = 0.0
        self.over = threading.Event()
        self._below = below
        self._one_below = threading.Lock()
        self._counting = threading.Lock()

    def client(self, number: int) -> None:
        random = np.random.default_rng(number)
        tensors: dict[str, NDArray[np.float32]] = {"x": random.standard_normal((ROWS, WIDTH), dtype=np.float32)}
        due = time.perf_counter()
        while not self.over.is_set():
            due += random.exponential(CLIENTS / self.rate)
            time.sleep(max(0.0, due - time.perf_counter()))
            deadline = time.perf_counter() + DEADLINE_SECONDS
            end = self._ask(tensors, deadline)
            with self._counting:
                self.outcomes[end] += 1
                self.outcomes["submitted"] += 1
                self.late_ms.append(1e3 * (time.perf_counter() - deadline))

    def _ask(self, tensors: dict[str, NDArray[np.float32]], deadline: float) -> str:
        try:
            self.hosted.run(tensors, deadline=deadline)
            self.answered_at = time.perf_counter()
            return "answered"
        except (ProcessLostError, ProcessAwayError):
            with self._one_below:
                if time.perf_counter() >= deadline:
                    return "refused in time"
                self._below.run(tensors)
            return "answered by the next rung"
        except DeadlineError:
            return "refused in time"
        except BackendError:
            return "failed"


def measure_recovery(folder: Path, random: Random, kills: int, rate: float) -> dict[str, object]:
    backend = available_backends()[0]
    path = products(folder / "products.onnx")
    seconds: list[float] = []
    with _opened(backend, path, Hosting()) as hosted, _opened(backend, path) as below:
        assert isinstance(hosted, HostedSession)
        load = Load(hosted, below, rate)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            time.sleep(random.uniform(0.2, 3.0))
            start = time.perf_counter()
            os.kill(hosted.health().pid, signal.SIGKILL)
            while load.answered_at <= start or hosted.statistics().deaths <= len(seconds):
                time.sleep(0.001)
            seconds.append(load.answered_at - start)
        load.over.set()
        for thread in threads:
            thread.join()
        statistics = hosted.statistics()
    outcomes = dict(load.outcomes)
    submitted = outcomes.pop("submitted")
    return {
        "kills": kills,
        "requests_a_second": rate,
        "whole_again_p50_s": round(percentile(seconds, 0.5), 3),
        "whole_again_worst_s": round(max(seconds), 3),
        "whole_again_s": [round(value, 2) for value in seconds],
        "submitted": submitted,
        "outcomes": outcomes,
        "unaccounted": submitted - sum(outcomes.values()),
        "past_deadline_worst_ms": round(max(0.0, *load.late_ms), 2),
        "past_deadline_p999_ms": round(max(0.0, percentile(load.late_ms, 0.999)), 2),
        "lost": statistics.lost,
        "starts": statistics.starts,
    }


# Engines.


def _opened(backend: str, path: Path, hosting: Hosting | None = None) -> Session:
    return open_session(backend, path, SessionOptions(threads=1, hosted=hosting))


def _adding(path: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return _saved(path, nodes, ("n",), [])


def products(path: Path) -> Path:
    random = np.random.default_rng(0)
    names = ["x", *(f"h{layer}" for layer in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    weights = [
        onnx.numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5, f"w{i}")
        for i in range(LAYERS)
    ]
    return _saved(path, nodes, ("rows", WIDTH), weights)


def _saved(
    path: Path, nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], weights: list[onnx.TensorProto]
) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "bench", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def _print(overhead: list[dict[str, float | str]], rest: float, recovery: dict[str, object]) -> None:
    table = Table(title="The same engine here and in a process of its own", header_style="bold", box=None)
    for column in ("backend", "bytes", "here ms", "hosted ms", "overhead p50 ms", "overhead p99 ms"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for row in overhead:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"aim: at most {AIM_OVERHEAD_MS} ms p50 for small tensors; at rest {rest} ms of processor time a second"
    )
    table = Table(title="Killed under load", header_style="bold", box=None, show_header=False)
    for name, value in recovery.items():
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
    console.print(
        f"aim: whole again within {AIM_RECOVERY_S} s of every kill, every request answered or refused in time"
    )


if __name__ == "__main__":
    main()
