"""How PyTorch's variants are timed. Imports nothing of ours: it runs under the interpreter that has torch.

`p50_ms` is one run at a time, waited for (latency); `per_second` counts the rows of runs queued back to back
(throughput). On the CPU what would be a CUDA graph runs as it is, so that the logic is tried where there is no GPU.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

MOST_RUNS, FEWEST_RUNS = 200, 5
LIMIT_MS = 100.0
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024)
ROUNDS = 40

Run = Callable[[], Any]


class Bench:
    """The device, the limits, and what was measured so far."""

    def __init__(self, options: argparse.Namespace, tell: Callable[["Bench"], None]) -> None:
        self._tell = tell
        self.work = Path(options.work)
        self.device = torch.device(options.device)
        self.tiny: bool = options.tiny
        self.compile: bool = options.compile
        self.seconds: float = options.seconds
        self.variants: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, np.ndarray] = {}

    @property
    def cuda(self) -> bool:
        return bool(self.device.type == "cuda")

    def limits(self) -> dict[str, float]:
        """Bytes a second, read plus written, of a large copy, and operations a second of a large product in half
        precision: the best of ten, since a limit that was measured too low would be none. Empty on a CPU."""
        if not self.cuda:
            return {}
        size, side = 1 << 30, 8192
        source = torch.empty(size, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        a, b = (torch.randn(side, side, dtype=torch.float16, device=self.device) for _ in range(2))
        copy = min(self._once(lambda: target.copy_(source)) for _ in range(10))
        product = min(self._once(lambda: a @ b) for _ in range(10))
        return {"bytes_per_second": 2e3 * size / copy, "operations_per_second": 2e3 * side**3 / product}

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def load(self, name: str) -> dict[str, torch.Tensor]:
        with np.load(self.work / f"{name}.npz") as file:
            return {key: torch.from_numpy(file[key]).to(self.device) for key in file.files}

    def try_variant(self, name: str, body: Callable[[], dict[str, Any]]) -> None:
        """Whatever goes wrong is this variant's loss alone."""
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                found = body()
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            found = {"skipped": f"{type(error).__name__}: {first[:200]}"}
        found["took_s"] = round(time.perf_counter() - start, 1)
        self.variants[name] = found
        self._tell(self)
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def time(self, run: Run, rows: int | None = None) -> dict[str, Any]:
        """After warming up, one run at a time; with `rows`, then as many again back to back."""
        self._warm(run)
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < MOST_RUNS and (len(times) < FEWEST_RUNS or time.perf_counter() - begun < self.seconds):
            times.append(self._once(run))
        found = {"p50_ms": _at(times, 50), "p90_ms": _at(times, 90), "runs": len(times)}
        if rows is not None:
            self.wait()
            start = time.perf_counter()
            for _ in times:
                run()
            self.wait()
            found["per_second"] = round(rows * len(times) / (time.perf_counter() - start), 1)
        return found

    def in_flight(self, open_run: Callable[[int], Run]) -> dict[str, Any]:
        """The greatest number of rows in IN_FLIGHT whose p99 keeps the limit. More rows never take less time, so the
        list is halved; most numbers are refused by their first runs."""
        sizes = IN_FLIGHT[:3] if self.tiny else IN_FLIGHT
        limit = 1e9 if self.tiny else LIMIT_MS
        seen: dict[int, float] = {}

        def holds(rows: int) -> bool:
            try:
                seen[rows] = self._p99(open_run(rows), limit)
            except torch.cuda.OutOfMemoryError:
                seen[rows] = float("inf")
            gc.collect()
            if self.cuda:
                torch.cuda.empty_cache()
            return seen[rows] <= limit

        low, high = -1, len(sizes)
        probe = 0
        while high - low > 1:
            if holds(sizes[probe]):
                low = probe
            else:
                high = probe
            # Doubling first: a small number is tried fast, a great one costs memory and graphs.
            probe = min(2 * probe + 1, len(sizes) - 1) if high == len(sizes) else (low + high) // 2
        best = sizes[low] if low >= 0 else 0
        tried = {str(rows): round(value, 2) for rows, value in sorted(seen.items())}
        return {"in_flight": best, "p99_ms": round(seen[best or sizes[0]], 2), "tried_p99_ms": tried}

    def _p99(self, run: Run, limit: float) -> float:
        self._warm(run)
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < (3 if self.tiny else ROUNDS):
            start = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
            if len(times) >= FEWEST_RUNS and (min(times) > limit or time.perf_counter() - begun > self.seconds):
                break
        return _at(times, 99)

    def _warm(self, run: Run) -> None:
        """Twice at least, then for half a second: clocks and caches settle."""
        begun = time.perf_counter()
        for number in range(2 if self.tiny else 30):
            run()
            self.wait()
            if number and time.perf_counter() - begun > 0.5:
                return

    def _once(self, run: Run) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    def graphed(self, run: Run) -> Run:
        """`run` captured as a CUDA graph; its tensors keep their places, so a replay computes from what lies there."""
        if not self.cuda:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            produced = run()

        def replay() -> Any:
            graph.replay()
            return produced

        return replay


def _at(times: list[float], percent: float) -> float:
    return round(float(np.percentile(times, percent)), 4)


@contextmanager
def tf32(*, products: bool, convolutions: bool) -> Iterator[None]:
    """PyTorch's own default is off for products and on for convolutions."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32, convolution.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
