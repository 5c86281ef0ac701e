"""ONNX Runtime as its own users run it: default settings, spinning threads included, on the engine's fp32 graph."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aula.bench.protocol import Arrays


class OnnxRuntime:
    """`dynamic_int8` first applies ONNX Runtime's own dynamic quantisation (int8 weights; activations are rounded in
    each run), the int8 that needs no calibration data."""

    def __init__(self, graph: str, threads: int, *, dynamic_int8: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            if dynamic_int8:
                graph = _quantised(graph, Path(folder) / "int8.onnx")
            self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._inputs: Arrays = {}
        self._outputs: list[Any] = []

    def prepare(self, inputs: Arrays) -> Mapping[str, Any]:
        wanted = {tensor.name for tensor in self._session.get_inputs()}
        self._inputs = {name: array for name, array in inputs.items() if name in wanted}
        self.run()
        return {}

    def rewind(self) -> None:
        pass

    def run(self) -> None:
        self._outputs = self._session.run(self._names, self._inputs)

    def outputs(self) -> Arrays:
        return dict(zip(self._names, self._outputs, strict=True))


def _quantised(graph: str, path: Path) -> str:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, path, weight_type=QuantType.QInt8)
    return str(path)
