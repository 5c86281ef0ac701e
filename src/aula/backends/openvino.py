"""OpenVINO on the CPU. Reads ONNX files directly."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from aula.backends.onnx_file import dimension_names
from aula.backends.pages import give_back
from aula.backends.session import Session, SessionOptions, Tensors, refusing
from aula.backends.sizes import bounded, named
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class OpenVinoSession(Session):
    backend = "openvino"

    def __init__(self, model: Path, options: SessionOptions) -> None:
        self._model = model
        core = openvino.Core()
        config = _config(core, options)
        graph: Any = refusing("OpenVINO", model, lambda: core.read_model(str(model)))
        names = dimension_names(model)
        self._products = frozenset(
            operator.get_friendly_name() for operator in graph.get_ops() if operator.get_type_name() == "MatMul"
        )
        inputs = [named(_spec(port), names) for port in graph.inputs]
        shapes = _shapes(inputs, options)
        if shapes:
            refusing("OpenVINO", model, lambda: graph.reshape(shapes))
        compiled: Any = refusing("OpenVINO", model, lambda: core.compile_model(graph, "CPU", config))
        self._compiled = compiled
        self._request: Any = compiled.create_infer_request()
        outputs = [_spec(port) for port in compiled.outputs]
        # Where the shape is known the runtime writes straight into an array that the caller keeps.
        self._written = {
            index: (port.shape, np.dtype(port.element_type.to_dtype()))
            for index, port in enumerate(compiled.outputs)
            if port.partial_shape.is_static and port.element_type.to_string() != "bf16"
        }
        self._output_names = [spec.name for spec in outputs]
        self._bound: dict[str, NDArray[Any]] = {}
        self._lends = False
        super().__init__(inputs, outputs, options)

    def borrow(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self._lends = True
        try:
            return self.run(tensors)
        finally:
            self._lends = False

    def settle(self) -> None:
        """The runtime has made its own copies of the weights by now, in the order in which it reads them."""
        give_back(self._model, Path(openvino.__file__).parent)

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        fresh = {index: np.empty(tuple(shape), dtype) for index, (shape, dtype) in self._written.items()}
        try:
            for name, array in tensors.items():
                self._bind(name, array)
            for index, array in fresh.items():
                self._request.set_output_tensor(index, openvino.Tensor(array, shared_memory=True))
            self._request.start_async()
            self._request.wait()
            return {
                name: fresh[index] if index in fresh else self._taken(index)
                for index, name in enumerate(self._output_names)
            }
        except Exception as error:
            raise BackendError(
                f"OpenVINO failed in a run: {error}",
                next_step="check the shapes against the engine's profile",
            ) from error

    def _taken(self, index: int) -> NDArray[Any]:
        """Out of the request's own memory, which the next run uses again."""
        data: NDArray[Any] = self._request.get_output_tensor(index).data
        return data if self._lends else np.array(data)

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        """Let the runtime read the array where it lies. One that it reads there already stays bound: a decoder's step
        has fifty inputs that are the same arrays each time, and binding them anew takes 2 to 4 ms.

        Read-only arrays and those that are not C-contiguous are copied, every time.
        """
        if self._bound.get(name) is array:
            return
        shared = array.flags.writeable and array.flags.c_contiguous and array.size > 0
        self._bound.pop(name, None)
        tensor = openvino.Tensor(array, shared_memory=True) if shared else openvino.Tensor(np.array(array, order="C"))
        self._request.set_tensor(name, tensor)
        if shared:
            self._bound[name] = array

    def precisions(self) -> dict[str, int]:
        """Of matrix products and convolutions, and of attention that was fused into one."""
        counts: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind = _told(info, "layerType")
            fused = kind == "Subgraph" and not self._products.isdisjoint(_told(info, "originalLayersNames").split(","))
            if fused or kind in _PRODUCTS:
                counts[_PRECISIONS.get(_told(info, "runtimePrecision"), "fp32")] += 1
        return dict(counts)

    def _close(self) -> None:
        self._request = self._compiled = None
        self._bound.clear()


_HINTS = {"fp32": ("f32", ""), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
"""OpenVINO's name of each arithmetic, and of the capability that a processor needs for it."""


def computes(precision: str) -> bool:
    needed = _HINTS[precision][1] if precision in _HINTS else ""
    return not needed or needed in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _config(core: Any, options: SessionOptions) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.precision in _HINTS:
        # On AMX machines OpenVINO rounds to BF16 unless told otherwise, so results differ between CPUs.
        hint, needed = _HINTS[options.precision]
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if needed and needed not in capabilities:
            raise BackendError(
                f"this processor has no {options.precision} arithmetic",
                available=sorted(capabilities),
                next_step="build for fp32 or int8 on this machine",
            )
        config["INFERENCE_PRECISION_HINT"] = hint
    if options.dynamic_quantisation is not None:
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(options.dynamic_quantisation)
    return config


def _shapes(inputs: list[TensorSpec], options: SessionOptions) -> dict[str, Any]:
    """What the graph is compiled for, by input: fixed sizes, and limits of the others."""
    states = options.state_shapes or {}
    shapes: dict[str, Any] = {spec.name: list(states[spec.name]) for spec in inputs if spec.name in states}
    for spec in bounded(inputs, options.bounds):
        if spec.name in options.bounds and spec.name not in shapes:
            limits = options.bounds[spec.name]
            shapes[spec.name] = [
                size if isinstance(size, int) else openvino.Dimension(*limit)
                for size, limit in zip(spec.shape, limits, strict=True)
            ]
    return {name: openvino.PartialShape(shape) for name, shape in shapes.items()}


def _name(port: Any) -> str:
    """The name in the ONNX file. An output also bears the names of operators that were fused away before it;
    its node is called after the file's name with a suffix."""
    friendly = port.get_node().get_friendly_name()
    names = [name for name in sorted(port.get_names()) if friendly.startswith(f"{name}/")]
    return str(names[0] if names else port.get_any_name())


def _spec(port: Any) -> TensorSpec:
    dtype = np.dtype(port.element_type.to_dtype()).name
    shape = tuple(
        size.get_length() if size.is_static else f"free_{axis}" for axis, size in enumerate(port.partial_shape)
    )
    return TensorSpec(_name(port), dtype, shape)


_PRODUCTS = {"FullyConnected", "MatMul", "Convolution", "GroupConvolution", "ScaledDotProductAttention"}
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def _told(info: Any, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def open_model(model: Path, options: SessionOptions) -> Session:
    return OpenVinoSession(model, options)
