"""An engine that takes as long as it is told, whatever the batch: a stand-in for a job on a card."""

import time
from typing import Any

from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors
from aula.core.types import TensorSpec


class SlowEngine(Session):
    backend = "slow"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        spec = TensorSpec("x", "float32", ("rows", 1))
        super().__init__([spec], [TensorSpec("y", "float32", ("rows", 1))], SessionOptions())

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        time.sleep(self._seconds)
        return {"y": tensors["x"] + tensors["x"]}
