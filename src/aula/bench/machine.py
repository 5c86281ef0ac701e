"""What a figure was measured on, and how fast that machine can possibly be."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import SessionOptions, available_backends, open_session
from aula.core.clock import Clock, SystemClock
from aula.core.errors import BackendError
from aula.engine.identity import usable_cores
from aula.engine.targets import MIXED

if TYPE_CHECKING:
    import onnx

PACKAGES = ("numpy", "onnxruntime", "openvino", "pocketsphinx", "espeakng-loader")
LIBRARIES = ("aula", "openvino", "onnxruntime", "nncf", "torch", "transformers", "timm", "numpy")
"""What a bench's figures depend on."""

WIDTH, LAYERS = 1024, 8
"""The products of which the arithmetic rate is measured: [WIDTH, WIDTH] by itself, LAYERS times."""
PROBE_SECONDS = 0.5
FEWEST_PROBES = 5


def machine() -> dict[str, str]:
    """Processor, cores, system and versions, for a table's head and the JSON line."""
    return {**processor(), "python": platform.python_version(), **versions(PACKAGES)}


def processor() -> dict[str, str]:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
        name += " with AMX" if "amx_tile" in flags else ""
    except OSError:
        pass
    return {"processor": name, "cores": str(usable_cores()), "system": f"{platform.system()} {platform.machine()}"}


def busy() -> float | None:
    """The load average of the last minute: how many threads wanted a core; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {package: _version(package) for package in packages}


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, ceil(share * len(ordered)) - 1))]


@dataclass(frozen=True, slots=True)
class Load:
    """What one run cannot do without: bytes of weights to read, and arithmetic operations, a multiply-add being two."""

    bytes: int
    operations: int


class Roof:
    """The machine's limits, each measured once, when it is first asked for.

    After Williams, Waterman & Patterson 2009 (doi:10.1145/1498765.1498785): work that must read `bytes` and compute
    `operations` takes no less than

        floor = max(bytes / bandwidth, operations / rate)

    The best of several tries counts: a limit that was measured too low would be no limit.
    """

    def __init__(self, threads: int, clock: Clock | None = None) -> None:
        self._threads = threads
        self._clock = clock or SystemClock()
        self._bandwidths: dict[int, float] = {}
        self._rates: dict[str, float | None] = {}

    def floor_ms(self, load: Load, precision: str) -> float | None:
        """Milliseconds; None where no rate could be measured."""
        rate = self.rate(precision)
        if rate is None:
            return None
        return floor_ms(load, self.bandwidth(load.bytes), rate)

    def bandwidth(self, size: int) -> float:
        """Bytes a second that all threads together read from a working set of `size` bytes.

        The size decides, since what fits a cache is read from there in every run but the first. Sizes are rounded
        up to a power of two, within 1 MiB to 1 GiB.
        """
        rounded = 1 << (max(1 << 20, min(size, 1 << 30)) - 1).bit_length()
        if rounded not in self._bandwidths:
            self._bandwidths[rounded] = self._read(rounded)
        return self._bandwidths[rounded]

    def rate(self, precision: str) -> float | None:
        """Operations a second in large matrix products on the fastest backend here; precisions other than int8 are
        measured in fp32's place with the arithmetic they allow, and int8+bf16 is no faster than int8."""
        precision = "int8" if precision == MIXED else precision
        if precision not in self._rates:
            self._rates[precision] = self._multiply(precision)
        return self._rates[precision]

    def as_json(self) -> dict[str, float]:
        """What was measured, in GB/s by the size of the working set and in billions of operations a second."""
        read = {f"read_gb_s_{size >> 20}_mib": round(rate / 1e9, 1) for size, rate in sorted(self._bandwidths.items())}
        rates = {f"{name}_gop_s": round(rate / 1e9, 1) for name, rate in self._rates.items() if rate is not None}
        return read | rates

    def _read(self, size: int) -> float:
        # The largest of small integers: the cheapest reduction that numpy vectorises, and it lets go of the GIL.
        parts = np.array_split(np.ones(size, dtype=np.int8), self._threads)
        with ThreadPoolExecutor(self._threads) as pool:
            return size / self._best(lambda: list(pool.map(np.max, parts)))

    def _multiply(self, precision: str) -> float | None:
        import onnx

        inputs = {"x": np.random.default_rng(0).standard_normal((WIDTH, WIDTH), dtype=np.float32)}
        arithmetic = precision if precision in ("bf16", "fp16") else "fp32"
        rates = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "products.onnx"
            onnx.save(_products(int8=precision == "int8"), str(path))
            for backend in available_backends():
                try:
                    options = SessionOptions(threads=self._threads, precision=arithmetic)
                    with open_session(backend, path, options) as session:
                        seconds = self._best(lambda session=session: session.run(inputs))  # type: ignore[misc]
                except BackendError:
                    continue
                rates.append(2 * LAYERS * WIDTH**3 / seconds)
        return max(rates, default=None)

    def _best(self, work: Callable[[], object]) -> float:
        """The shortest time of several tries, after one that does not count."""
        work()
        times: list[float] = []
        while len(times) < FEWEST_PROBES or sum(times) < PROBE_SECONDS:
            start = self._clock.now()
            work()
            times.append(max(self._clock.now() - start, 1e-9))
            if len(times) >= 10_000:
                break
        return min(times)


def floor_ms(load: Load, bandwidth: float, rate: float) -> float:
    """`bandwidth` in bytes a second, `rate` in operations a second."""
    return 1000 * max(load.bytes / bandwidth, load.operations / rate)


def _products(*, int8: bool) -> "onnx.ModelProto":
    """x, float32 [WIDTH, WIDTH], times a matrix, LAYERS times, to the largest of each row: little to write out."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {"axes": np.array([1], dtype=np.int64)}
    matrix = np.random.default_rng(1).standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH))
    if int8:
        constants |= {
            "matrix": np.clip(np.rint(matrix * 1000), -127, 127).astype(np.int8),
            "matrix.scale": np.array(0.001, dtype=np.float32),
            "scale": np.array(0.03, dtype=np.float32),
            "zero": np.array(128, dtype=np.uint8),
        }
    else:
        constants["matrix"] = matrix
    x = "x"
    for layer in range(LAYERS):
        kernel = "matrix"
        if int8:
            nodes += [
                helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"q{layer}"]),
                helper.make_node("DequantizeLinear", [f"q{layer}", "scale", "zero"], [f"d{layer}"]),
                helper.make_node("DequantizeLinear", ["matrix", "matrix.scale"], [f"m{layer}"]),
            ]
            x, kernel = f"d{layer}", f"m{layer}"
        nodes.append(helper.make_node("MatMul", [x, kernel], [f"y{layer}"]))
        x = f"y{layer}"
    nodes.append(helper.make_node("ReduceMax", [x, "axes"], ["largest"], keepdims=1))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [WIDTH, WIDTH])],
        [helper.make_tensor_value_info("largest", TensorProto.FLOAT, [WIDTH, 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
