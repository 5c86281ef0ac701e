"""Steps over ONNX graphs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


def bind_weights(model: "onnx.ModelProto", weights: Mapping[str, NDArray[Any]]) -> "onnx.ModelProto":
    """Turn the graph inputs named in `weights` into initialisers with those values; changes and returns `model`.

    Graphs are typed with weights as inputs, since type inference over hundreds of megabytes of constants takes
    many seconds and learns nothing from their values.
    """
    import onnx

    graph = model.graph
    free = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(free)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def prune(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Remove nodes and initialisers that no output depends on; changes and returns `model`."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(output in needed for output in node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
            needed.update(name for attribute in node.attribute for name in _captured(attribute))
    kept.reverse()
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    return model


def _captured(attribute: "onnx.AttributeProto") -> list[str]:
    """Names that the graphs inside an If or Loop take from outside."""
    graphs = [attribute.g, *attribute.graphs] if attribute.HasField("g") else list(attribute.graphs)
    return [name for graph in graphs for node in graph.node for name in node.input]


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What a graph consists of; `weight_bytes` as they are stored."""

    operators: Mapping[str, int]
    parameters: int
    weight_bytes: int

    def __str__(self) -> str:
        most = ", ".join(f"{count} {name}" for name, count in Counter(self.operators).most_common(6))
        return (
            f"{sum(self.operators.values())} operators ({most}, …), {self.parameters / 1e6:.1f} M parameters, "
            f"{self.weight_bytes / 1e6:.1f} MB"
        )


def report(model: "onnx.ModelProto") -> GraphReport:
    import numpy as np
    import onnx

    sizes = [(int(np.prod(tensor.dims)), tensor.data_type) for tensor in model.graph.initializer]
    width = {kind: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize for _, kind in sizes}
    return GraphReport(
        operators=dict(Counter(node.op_type for node in model.graph.node)),
        parameters=sum(count for count, _ in sizes),
        weight_bytes=sum(count * width[kind] for count, kind in sizes),
    )
