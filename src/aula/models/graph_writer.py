"""Operators that the recognisers' graphs are written with (opset 20), and the weights that they bind."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.graph import bind_weights

if TYPE_CHECKING:
    import onnx

EPSILON = 1e-5


class GraphWriter:
    """`int8_weights`: matrices are rounded to int8 per column of the product and carried with DequantizeLinear."""

    def __init__(self, weights: Mapping[str, Float32], int8_weights: bool = False, epsilon: float = EPSILON) -> None:
        import spox
        import spox.opset.ai.onnx.v20 as op

        self.spox: Any = spox
        self.op: Any = op
        self.weights = weights
        self.int8_weights = int8_weights
        self.epsilon = epsilon
        self._bound: dict[str, NDArray[Any]] = {}
        self._arguments: dict[str, Any] = {}

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> "onnx.ModelProto":
        return bind_weights(self.spox.build({**inputs, **self._arguments}, outputs), self._bound)

    def input(self, dtype: Any, *shape: int | str) -> Any:
        return self.spox.argument(self.spox.Tensor(dtype, shape))

    def constant(self, array: Any) -> Any:
        return self.op.constant(value=np.asarray(array))

    def shape(self, *sizes: int) -> Any:
        return self.constant(np.array(sizes, dtype=np.int64))

    def bind(self, name: str, array: NDArray[Any]) -> Any:
        if name not in self._arguments:
            self._bound[name] = np.ascontiguousarray(array)
            self._arguments[name] = self.input(array.dtype, *array.shape)
        return self._arguments[name]

    def weight(self, name: str) -> Any:
        return self.bind(name, self.weights[name])

    def linear(self, x: Any, name: str, *, scale: float = 1.0) -> Any:
        """`scale` multiplies what the layer gives."""
        kernel = self._kernel(f"{name}.weight", scale)
        bias = self.weights[f"{name}.bias"] * np.float32(scale)
        return self.op.add(self.op.matmul(x, kernel), self.bind(f"{name}.bias", bias))

    def _kernel(self, name: str, scale: float) -> Any:
        array = self.weights[name].T * np.float32(scale)
        if not self.int8_weights:
            return self.bind(name, array)
        rounded, scales = round_int8(array, axis=0)
        return self.op.dequantize_linear(self.bind(name, rounded), self.bind(f"{name}.scale", scales[0]), axis=1)

    def norm(self, x: Any, name: str, *, epsilon: float | None = None) -> Any:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op.layer_normalization(x, scale, bias, axis=-1, epsilon=epsilon or self.epsilon)[0]

    def silu(self, x: Any) -> Any:
        """x / (1 + exp(-x)); runtimes know the pair and compute it at once."""
        return self.op.mul(x, self.op.sigmoid(x))

    def length(self, x: Any, axis: int) -> Any:
        """The size of one axis, int64 [1]."""
        return self.op.gather(self.op.shape(x), self.shape(axis))

    def last(self, x: Any, count: int, axis: int) -> Any:
        end = self.shape(np.iinfo(np.int64).max)
        return self.op.slice(x, self.shape(-count), end, self.shape(axis))


def round_int8(array: Float32, axis: int) -> tuple[NDArray[np.int8], Float32]:
    """int8 and the float32 scale along `axis` (kept as an axis of size 1): the largest value becomes 127."""
    scale = np.maximum(np.abs(array).max(axis=axis, keepdims=True), 1e-12) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)
