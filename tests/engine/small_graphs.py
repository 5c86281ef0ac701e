"""Graphs of a few nodes, written briefly, and run plainly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, INT64, BOOL, DOUBLE = 1, 7, 9, 11


def value(name: str, kind: int, *shape: Any) -> Any:
    """Without sizes the shape is unknown; see `scalar`."""
    import onnx

    return onnx.helper.make_tensor_value_info(name, kind, list(shape) if shape else None)


def scalar(name: str, kind: int) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, kind, [])


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Names are separated by spaces; "-" is an input that is left out."""
    import onnx

    names = ["" if name == "-" else name for name in inputs.split()]
    return onnx.helper.make_node(operator, names, outputs.split(), **attributes)


def model_of(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Mapping[str, Any] | None = None,
    opset: int = 20,
    domains: Mapping[str, int] | None = None,
) -> Any:
    import onnx

    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = onnx.helper.make_graph(list(nodes), "small", list(inputs), list(outputs), tensors)
    sets = {"": opset, "com.microsoft": 1, **(domains or {})}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in sets.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def run(model: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """On ONNX Runtime, unoptimised."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def operators(model: Any) -> list[str]:
    return [made.op_type for made in model.graph.node]
