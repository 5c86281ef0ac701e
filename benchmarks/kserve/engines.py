"""The engines that are served: matrix products, with one axis for the rows of a batch."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from aula.backends.session import SessionOptions, open_session
from aula.bench.machine import percentile

DEPTH, BATCH = 64, 16
RUNS = {"small": 400, "middle": 60, "large": 20}


@dataclass(frozen=True)
class Size:
    name: str
    width: int
    layers: int


SIZES = (Size("small", 512, 8), Size("middle", 1024, 12), Size("large", 2048, 10))


@dataclass(frozen=True)
class Alone:
    """The engine in a process of its own, on one thread: milliseconds of one row and of a full batch, and the most rows
    a second that it gives, whichever way is better."""

    row_ms: float
    batch_ms: float
    rows_a_second: float


def write(size: Size, folder: Path) -> Path:
    random = np.random.default_rng(0)
    widths = [DEPTH, *[size.width] * (size.layers - 1), DEPTH]
    names = ["x", *(f"h{layer}" for layer in range(1, size.layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(size.layers)]
    weights = [
        onnx.numpy_helper.from_array(
            random.standard_normal((widths[i], widths[i + 1]), dtype=np.float32) / widths[i] ** 0.5, f"w{i}"
        )
        for i in range(size.layers)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("rows", DEPTH)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "products", values[:1], values[1:], weights)
    path = folder / f"{size.name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def measure(engine: Path) -> Alone:
    with open_session("onnxruntime", engine, SessionOptions(threads=1)) as session:
        took = {}
        for rows in (1, BATCH):
            tensors = {"x": np.full((rows, DEPTH), 0.5, np.float32)}
            times = []
            for _ in range(RUNS[engine.stem]):
                start = time.perf_counter()
                session.run(tensors)
                times.append(1e3 * (time.perf_counter() - start))
            took[rows] = (percentile(times, 0.5), 1e3 * rows * len(times) / sum(times))
    return Alone(round(took[1][0], 3), round(took[BATCH][0], 3), round(max(rate for _, rate in took.values())))


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(vars(measure(Path(sys.argv[1])))))
