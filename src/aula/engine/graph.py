"""Steps over ONNX graphs."""

from collections.abc import Mapping
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
