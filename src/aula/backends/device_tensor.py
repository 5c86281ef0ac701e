"""Tensors in a GPU's memory, and what their bytes come to."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from aula.core.errors import BackendError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """Memory of a GPU, good as long as its owner is open."""

    address: int
    shape: Shape
    dtype: str

    @property
    def bytes(self) -> int:
        return byte_count(self.shape, self.dtype)

    def part(self, first: int, count: int) -> "DeviceTensor":
        """`count` of the outermost axis from `first` on: some rows of a batch."""
        row = byte_count(self.shape[1:], self.dtype)
        return DeviceTensor(self.address + first * row, (count, *self.shape[1:]), self.dtype)


def byte_count(shape: Shape, dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Raises BackendError for a type of which no array can be."""
    if name == "bfloat16":
        import ml_dtypes  # numpy knows this name only once that is imported

        known: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return known
    try:
        return np.dtype(name)
    except TypeError as error:
        raise BackendError(
            f"the engine takes or gives {name}, which numpy has no type for",
            next_step="build it with inputs and outputs of float32, float16, bfloat16 or whole numbers",
        ) from error
