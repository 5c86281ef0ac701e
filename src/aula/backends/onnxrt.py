"""ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, Tensors, refusing
from aula.core.errors import BackendError
from aula.core.types import TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession(Session):
    backend = "onnxruntime"

    def __init__(self, model: Path, options: SessionOptions) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Spinning threads would take the core from the next stage of the same turn.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = refusing(
            "ONNX Runtime",
            model,
            lambda: onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"]),
        )
        self._output_names = [output.name for output in self._session.get_outputs()]
        super().__init__(
            [_spec(tensor) for tensor in self._session.get_inputs()],
            [_spec(tensor) for tensor in self._session.get_outputs()],
            options,
        )

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        try:
            results = self._session.run(self._output_names, dict(tensors))
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed in a run: {error}",
                next_step="check the shapes against the engine's profile",
            ) from error
        return dict(zip(self._output_names, results, strict=True))

    def _close(self) -> None:
        self._session = None


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(
        size if isinstance(size, int) else str(size or f"free_{axis}") for axis, size in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, _DTYPES.get(tensor.type, tensor.type), shape)


def open_model(model: Path, options: SessionOptions) -> Session:
    return OnnxRuntimeSession(model, options)
