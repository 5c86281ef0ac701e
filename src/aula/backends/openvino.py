"""OpenVINO on the CPU. Reads ONNX files directly."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors, refusing
from aula.core.errors import BackendError
from aula.core.types import TensorSpec


class OpenVinoSession(Session):
    backend = "openvino"

    def __init__(self, model: Path, options: SessionOptions) -> None:
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if options.threads:
            config["INFERENCE_NUM_THREADS"] = options.threads
        if options.precision == "fp32":
            # On AMX machines OpenVINO rounds to BF16 unless told otherwise, so results differ between CPUs.
            config["INFERENCE_PRECISION_HINT"] = "f32"
        compiled: Any = refusing("OpenVINO", model, lambda: openvino.Core().compile_model(str(model), "CPU", config))
        self._compiled = compiled
        self._request: Any = compiled.create_infer_request()
        self._output_names = [_name(port) for port in compiled.outputs]
        super().__init__([_spec(port) for port in compiled.inputs], [_spec(port) for port in compiled.outputs], options)

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        try:
            # share_inputs: no copy in; outputs are copied out, since the request's buffers are used again.
            results = self._request.infer(dict(tensors), share_inputs=True, share_outputs=False)
        except Exception as error:
            raise BackendError(
                f"OpenVINO failed in a run: {error}",
                next_step="check the shapes against the engine's profile",
            ) from error
        return {name: np.array(results[index]) for index, name in enumerate(self._output_names)}

    def precisions(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if _told(info, "layerType") in _PRODUCTS:
                counts[_PRECISIONS.get(_told(info, "runtimePrecision"), "fp32")] += 1
        return dict(counts)

    def _close(self) -> None:
        self._request = self._compiled = None


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
