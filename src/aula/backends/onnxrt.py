"""ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from aula.backends.onnx_file import dimension_names
from aula.backends.pages import give_back
from aula.backends.session import Session, SessionOptions, Tensors, refusing
from aula.backends.sizes import named
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


def computes(precision: str) -> bool:
    return precision in ("fp32", "any")


class OnnxRuntimeSession(Session):
    backend = "onnxruntime"

    def __init__(self, model: Path, options: SessionOptions) -> None:
        if options.precision == "bf16":
            raise BackendError(
                "ONNX Runtime computes no bf16 on the CPU",
                available=("fp32", "any"),
                next_step="open the graph with the openvino backend, or in fp32",
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Spinning threads would take the core from the next stage of the same turn.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        names = dimension_names(model)
        for name, size in _fixed(names, options).items():
            settings.add_free_dimension_override_by_name(name, size)
        self._session: Any = refusing(
            "ONNX Runtime",
            model,
            lambda: onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"]),
        )
        self._output_names = [output.name for output in self._session.get_outputs()]
        self._model = model
        super().__init__(
            [named(_spec(tensor), names) for tensor in self._session.get_inputs()],
            [_spec(tensor) for tensor in self._session.get_outputs()],
            options,
        )

    def settle(self) -> None:
        """Weights that the runtime reads where they are mapped come back from the file with the next run."""
        give_back(self._model, Path(onnxruntime.__file__).parent)

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


def _fixed(names: dict[str, tuple[str, ...]], options: SessionOptions) -> dict[str, int]:
    """The sizes of free dimensions that the bounds fix. A name that two axes fix differently is left free."""
    sizes: dict[str, set[int]] = {}
    for tensor, limits in options.bounds.items():
        for name, (least, greatest) in zip(names.get(tensor, ()), limits, strict=False):
            sizes.setdefault(name, set()).update((least, greatest))
    return {name: found.pop() for name, found in sizes.items() if name and len(found) == 1}


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(
        size if isinstance(size, int) else str(size or f"free_{axis}") for axis, size in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, _DTYPES.get(tensor.type, tensor.type), shape)


def open_model(model: Path, options: SessionOptions) -> Session:
    return OnnxRuntimeSession(model, options)
