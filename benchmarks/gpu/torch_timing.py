"""How PyTorch's variants are timed. Imports nothing of aula: it runs under the interpreter that has torch.

`p50_ms` is one run at a time, waited for (latency); `per_second` counts the rows of runs queued back to back
(throughput). On the CPU what would be a CUDA graph runs as it is, so that the logic is tried where there is no GPU.
"""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.flight import Serve, most_in_flight

MOST_RUNS, FEWEST_RUNS, FEWEST_BACK_TO_BACK = 200, 3, 2
WARM_SECONDS = 0.5

Run = Callable[[], Any]
Body = Callable[[], dict[str, Any]]


class OutOfTimeError(BaseException):
    """No Exception, so that no library takes it for an error of its own and goes on."""


class DeviceLostError(BaseException):
    """Whatever this process asks of the device will fail from now on."""


class Bench:
    """The device, the limits, and what was measured so far of each row."""

    def __init__(self, options: argparse.Namespace, tell: Callable[["Bench"], None]) -> None:
        self._tell = tell
        self.work = Path(options.work)
        self.device = torch.device(options.device)
        self.tiny: bool = options.tiny
        self.compile: bool = options.compile
        self.seconds: float = options.seconds
        self.compile_seconds: float = options.compile_seconds
        self._end = time.perf_counter() + options.budget
        self._kept: dict[Any, Any] = {}
        self._later: list[tuple[str, str, Body]] = []
        self._row = ""
        self._variants: dict[str, dict[str, dict[str, Any]]] = {}
        self._outputs: dict[str, dict[str, np.ndarray]] = {}

    def begin(self, row: str) -> None:
        """What is measured from now on belongs to `row`; telling so lets another process go on with the rows behind it
        if this one breaks."""
        self._row = row
        self._variants[row], self._outputs[row] = {}, {}
        self._tell(self)

    def finish(self) -> None:
        """Compilers may take minutes, so they come after everything else, whichever row they are for."""
        for row, name, body in self._later:
            self._row = row
            self._try(name, body, self.compile_seconds)

    @property
    def row(self) -> str:
        return self._row

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        return self._variants[self._row]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return self._outputs[self._row]

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """Made once in this process: models that several variants and rows share."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

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

    def try_variant(self, name: str, body: Body, *, compiled: bool = False) -> None:
        """Whatever goes wrong is this variant's loss alone, unless the device is lost with it."""
        if compiled:
            self._later.append((self._row, name, body))
        else:
            self._try(name, body)

    def _try(self, name: str, body: Body, limit: float = float("inf")) -> None:
        start = time.perf_counter()
        lost = False
        try:
            if self._end - start < 1:
                raise TimeoutError("PyTorch's time is spent")
            with torch.inference_mode(), at_most(min(limit, self._end - start)):
                found = body()
        except (Exception, OutOfTimeError) as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            found = {"skipped": f"{type(error).__name__}: {first[:200]}"}
            print(f"{self._row}, {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            lost = self._is_lost()
        found["took_s"] = round(time.perf_counter() - start, 1)
        self.variants[name] = found
        self._tell(self)
        if lost:
            raise DeviceLostError(name)
        self.free()

    def _is_lost(self) -> bool:
        """Some errors stay: an assertion inside a kernel ends the context. Others are told once, to whom asks next."""
        for _ in range(2):
            try:
                torch.zeros(1, device=self.device).add_(1)
                self.wait()
            except Exception:
                continue
            return False
        return True

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def time(self, run: Run, rows: int | None = None) -> dict[str, Any]:
        """After warming up, one run at a time; with `rows`, then half as many back to back."""
        self._warm(run)
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < MOST_RUNS and (len(times) < FEWEST_RUNS or time.perf_counter() - begun < 0.6 * self.seconds):
            times.append(self._once(run))
        found = {"p50_ms": _at(times, 50), "p90_ms": _at(times, 90), "runs": len(times)}
        if rows is not None:
            count = max(FEWEST_BACK_TO_BACK, len(times) // 2)
            self.wait()
            start = time.perf_counter()
            for _ in range(count):
                run()
            self.wait()
            found["per_second"] = round(rows * count / (time.perf_counter() - start), 1)
        return found

    def in_flight(self, open_run: Callable[[int], Run], first: int) -> dict[str, Any]:
        """All that are in flight are one batch, which is what serves PyTorch best."""

        def open_server(count: int) -> tuple[int, Serve]:
            self.free()
            with _memory():
                run = open_run(count)

            def serve(_count: int) -> object:
                with _memory():
                    return run().cpu()

            return count, serve

        if self.tiny:
            return most_in_flight(open_server, 1, limit_ms=1e9, rounds=2, tries=2)
        return most_in_flight(open_server, first)

    def _warm(self, run: Run) -> None:
        """Twice at least, then for half a second: clocks and caches settle."""
        begun = time.perf_counter()
        for number in range(2 if self.tiny else 30):
            run()
            self.wait()
            if number and time.perf_counter() - begun > WARM_SECONDS:
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
        """`run` captured as a CUDA graph; its tensors keep their places, so a replay computes from what lies there. The
        graph keeps nothing alive but its own memory: whoever replays it holds `run`, and with it weights and inputs.
        Without, their memory went to whatever was allocated next, and a replay read that."""
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

        def replay(_alive: Run = run) -> Any:
            graph.replay()
            return produced

        return replay


def _at(times: list[float], percent: float) -> float:
    return round(float(np.percentile(times, percent)), 4)


@contextmanager
def _memory() -> Iterator[None]:
    """So many are too many, as `most_in_flight` understands it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError inside the block; only Python code can be interrupted so, and only in the main thread."""

    def ring(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
