"""Small engines on a fake GPU, opened as sessions."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.backends.cuda import Cuda
from aula.backends.session import SessionOptions, StatePair
from aula.backends.tensorrt import TensorRtSession
from aula.backends.tensorrt_runtime import Runtime
from tests.backends.fake_cuda import FakeCuda
from tests.backends.fake_tensorrt import Output, fake_tensorrt, plan

DOUBLING = {"y": Output("2 * x", like="x")}
COUNTING = {"y": Output("2 * x + total", like="x"), "total_next": Output("total + x", like="total")}
IN_PLACE = {**COUNTING, "total_next": Output("total + x", like="total", scrambles=False)}
FREE = {"x": ("float32", (-1, -1))}
FIXED = {"x": ("float32", (2, 3))}
STATEFUL = {"x": ("float32", (2,)), "total": ("float32", (2,))}
PAIR = StatePair("total", "total_next")
PAIR_IN_PLACE = StatePair("total", "total_next", in_place=True)
TWO_PROFILES = ({"x": ((1, 1), (1, 4), (1, 8))}, {"x": ((1, 1), (8, 4), (16, 8))})


class Machine:
    """One fake GPU with one TensorRT on it, and the plans that lie there."""

    def __init__(self, folder: Path, release: str = "10.12", devices: int = 1) -> None:
        self.folder, self.release = folder, release
        self.gpu = FakeCuda(devices)
        self.trt = fake_tensorrt(release, self.gpu)

    def cuda(self, device: int = 0) -> Cuda:
        return Cuda(self.gpu, device)

    def runtime(self) -> Runtime:
        return Runtime(self.trt)

    def save(self, inputs: Any, outputs: Mapping[str, Output], profiles: Any = ({},), release: str = "") -> Path:
        path = self.folder / f"engine{len(list(self.folder.iterdir()))}.plan"
        path.write_bytes(plan(release or self.release, inputs, outputs, profiles))
        return path

    def open(
        self, path: Path, *, runtime: Runtime | None = None, cuda: Cuda | None = None, **options: Any
    ) -> TensorRtSession:
        options.setdefault("digest", hashlib.sha256(path.read_bytes()).hexdigest())
        return TensorRtSession(
            path, SessionOptions(**options), runtime=runtime or self.runtime(), cuda=cuda or self.cuda()
        )

    def doubling(self, **options: Any) -> TensorRtSession:
        """y = 2 x, of any size up to 8x8."""
        return self.open(self.save(FREE, DOUBLING, ({"x": ((1, 1), (2, 4), (8, 8))},)), **options)

    def counting(self, *, in_place: bool = False, **options: Any) -> TensorRtSession:
        """y = 2 x + total, total = total + x, for two rows."""
        made = IN_PLACE if in_place else COUNTING
        options.setdefault("states", (PAIR_IN_PLACE if in_place else PAIR,))
        return self.open(self.save(STATEFUL, made), **options)


def floats(*shape: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def x(*values: float) -> dict[str, NDArray[Any]]:
    return {"x": np.array(values, dtype=np.float32)}
