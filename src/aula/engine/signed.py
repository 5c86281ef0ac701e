"""INT8 as TensorRT takes it: signed bytes around zero."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.engine.passes import value_types
from aula.engine.walk import copied, prune

if TYPE_CHECKING:
    import onnx


def signed_activations(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy whose Q/DQ pairs are all int8 with zero point 0, as every TensorRT wants them.

    A pair whose range lies unevenly about zero, or above it, gets the least symmetric range that holds it, so that
    nothing is clipped that was not clipped before; the steps become up to twice as wide, which the gate judges.
    Raises nothing: pairs whose scale or zero point is computed stay as they are, and TensorRT refuses them by name.
    """
    import onnx

    copy = copied(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[tuple[str, str], tuple[str, str]] = {}
    stale: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        scale, point = node.input[1], node.input[2]
        if scale not in constants or point not in constants or node.input[0] in constants:
            continue
        if (scale, point) not in made:
            values = onnx.numpy_helper.to_array(constants[point])
            if values.dtype == np.int8 and not values.any():
                continue
            wide = _symmetric(onnx.numpy_helper.to_array(constants[scale]), values)
            names = (f"{scale}/signed/{point}", f"{point}/signed")
            arrays = (wide, np.zeros(values.shape, dtype=np.int8))
            for name, array in zip(names, arrays, strict=True):
                if name not in constants:
                    graph.initializer.append(onnx.numpy_helper.from_array(array, name))
                    constants[name] = graph.initializer[-1]
            made[scale, point] = names
        node.input[1], node.input[2] = made[scale, point]
        stale.add(node.output[0])
    _forget(graph, stale)
    return prune(copy)


def weights_behind_pairs(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in which a weight that is stored as int8 is stored as float and quantised in the graph, to the same
    numbers: TensorRT 8.6 cannot read int8 constants into the graphs that it fuses ("convertMyelinWeightsToFp32 …
    kINT8"), and folds the pair while it builds."""
    import onnx

    copy = copied(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kinds = value_types(graph)
    nodes: list[onnx.NodeProto] = []
    stored: set[str] = set()
    for node in graph.node:
        weight = node.input[0] if node.op_type == "DequantizeLinear" else ""
        if weight in constants and kinds.get(weight) == onnx.TensorProto.INT8 and node.input[1] in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            scale = onnx.numpy_helper.to_array(constants[node.input[1]])
            name = f"{weight}/float"
            if name not in stored:
                stored.add(name)
                whole = onnx.numpy_helper.to_array(constants[weight])
                graph.initializer.append(onnx.numpy_helper.from_array(_dequantised(whole, scale, axis), name))
                pair = onnx.helper.make_node(
                    "QuantizeLinear", [name, *node.input[1:]], [f"{weight}/rounded"], name=f"{weight}/rounded"
                )
                if scale.size > 1:
                    pair.attribute.append(onnx.helper.make_attribute("axis", axis))
                nodes.append(pair)
            node.input[0] = f"{weight}/rounded"
        nodes.append(node)
    kept = onnx.GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)
    return prune(copy)


def _symmetric(scale: NDArray[Any], point: NDArray[Any]) -> NDArray[Any]:
    """Steps of the least range around zero that holds the old one: what is left and right of zero is counted."""
    ends = np.iinfo(point.dtype)
    reach = np.maximum(point.astype(np.int32) - ends.min, ends.max - point.astype(np.int32))
    return np.asarray(scale * (reach / np.float32(127)), dtype=scale.dtype)


def _dequantised(whole: NDArray[Any], scale: NDArray[Any], axis: int) -> NDArray[Any]:
    """Multiplied in float64 first, so that rounding by the same scale gives the same bytes back."""
    if scale.size > 1:
        scale = scale.reshape([-1 if place == axis % whole.ndim else 1 for place in range(whole.ndim)])
    return np.asarray(whole.astype(np.float64) * scale, dtype=np.float32)


def _forget(graph: "onnx.GraphProto", names: set[str]) -> None:
    """What was noted of the types of these values holds no longer."""
    noted = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(noted)
