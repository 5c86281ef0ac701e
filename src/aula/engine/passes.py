"""Passes that keep a graph's inputs, outputs and meaning, and make it smaller.

They are small on purpose. onnxscript's optimiser and onnx-ir do the same and much more; the graphs that recipes write
need none of it, every backend simplifies again by itself, and what these passes owe is only that shapes are known and
nothing stands between a weight and its use before precision is lowered. Decomposed LayerNormalization and erf-GELU
are left to the backends, which all know these patterns.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.engine.walk import (
    all_graphs,
    constant_nodes_to_initialisers,
    copied,
    element_bits,
    infer_shapes,
    inferred_lightly,
    opset,
    prune,
    rename_uses,
    tensor_bytes,
)

if TYPE_CHECKING:
    import onnx

MOST_FOLDED_BYTES = 1 << 20
"""What a node may read to be folded: causal masks and position tables, never a weight."""

LEAST_GROWTH_BYTES = 65_536
"""A folded result may be larger than what it is made of up to this size."""

MOST_ROUNDS = 16
"""Shapes that depend on values that depend on shapes; a graph that goes on and on is not worth waiting for."""

_FOLDABLE = """
    Abs Add And Cast Ceil Clip Concat ConstantOfShape CumSum Div Equal Erf Exp Expand Flatten Floor Gather
    GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log Max Min Mod Mul Neg Not OneHot
    Or Pow Range Reciprocal ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round ScatterND Shape Sign Size
    Slice Split Sqrt Squeeze Sub Tile Transpose Trilu Unsqueeze Where Xor
"""
FOLDABLE = frozenset(_FOLDABLE.split())
"""Operators without randomness, state or long loops: a list of the known, since foreign graphs are folded too."""


def fold_constants(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in which nodes whose inputs are all small constants, and Shape of what has a known shape, are constants.

    A result is computed only after shape inference has told its size, so that no hostile shape fills the memory.
    Nodes inside If, Loop and Scan stay. Raises EngineError for a graph whose shapes contradict each other.
    """
    result = copied(model)
    fold_in_place(result)
    return prune(result)


def fold_in_place(model: "onnx.ModelProto") -> None:
    """`fold_constants` on `model` itself, repeated while new shapes become known; dead constants stay."""
    constant_nodes_to_initialisers(model)
    for _ in range(MOST_ROUNDS):
        inferred = inferred_lightly(model)
        if not _fold_once(model, _known_shapes(inferred.graph)):
            return


def _fold_once(model: "onnx.ModelProto", shapes: Mapping[str, tuple[int, tuple[int, ...]]]) -> bool:
    import onnx

    graph = model.graph
    version = opset(model)
    overridable = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    tensors = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.name not in overridable and _has_elements(tensor) and tensor_bytes(tensor) <= MOST_FOLDED_BYTES
    }
    folded = set()
    for place, node in enumerate(graph.node):
        if node.op_type not in FOLDABLE or node.domain not in ("", "ai.onnx") or outputs.intersection(node.output):
            continue
        sized = node.op_type in ("Shape", "Size")
        inputs = _of_known_shape(node, shapes) if sized else _arrays(node, tensors, shapes)
        values = None if inputs is None else _computed(node, inputs, version)
        if values is None:
            continue
        for name, array in zip(node.output, values, strict=True):
            if name:
                tensor = onnx.numpy_helper.from_array(array, name)
                graph.initializer.append(tensor)
                tensors[name] = graph.initializer[-1]
        folded.add(place)
    for place in sorted(folded, reverse=True):
        del graph.node[place]
    return bool(folded)


def _of_known_shape(
    node: "onnx.NodeProto", shapes: Mapping[str, tuple[int, tuple[int, ...]]]
) -> dict[str, NDArray[Any]] | None:
    """An array of the known shape that takes no memory: Shape and Size look at nothing else."""
    known = shapes.get(node.input[0])
    return None if known is None else {node.input[0]: np.broadcast_to(np.zeros((), dtype=np.bool_), known[1])}


def _arrays(
    node: "onnx.NodeProto",
    tensors: Mapping[str, "onnx.TensorProto"],
    shapes: Mapping[str, tuple[int, tuple[int, ...]]],
) -> dict[str, NDArray[Any]] | None:
    """The node's inputs, if all are constants and neither they nor the results are large."""
    import onnx

    names = [name for name in node.input if name]
    # A constant folded a moment ago is not among the shapes yet; what follows from it waits for the next round.
    if not names or any(name not in tensors for name in names):
        return None
    read = sum(tensor_bytes(tensors[name]) for name in names)
    made = 0
    for name in node.output:
        if name and name not in shapes:
            return None
        width, shape = shapes.get(name, (0, ()))
        made += width * int(np.prod(shape, dtype=object))
    if read > MOST_FOLDED_BYTES or made > max(read, LEAST_GROWTH_BYTES):
        return None
    try:
        return {name: onnx.numpy_helper.to_array(tensors[name]) for name in names}
    except (ValueError, TypeError):
        return None


def _computed(node: "onnx.NodeProto", inputs: Mapping[str, NDArray[Any]], version: int) -> list[NDArray[Any]] | None:
    """The node's outputs by onnx's own reference; None where that cannot run it: the node then stays."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    values = [onnx.helper.make_empty_tensor_value_info(name) for name in inputs]
    made = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "folded", values, made)
    lone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        with np.errstate(all="ignore"):
            results = iter(ReferenceEvaluator(lone).run(None, dict(inputs)))
    except Exception:  # the reference raises whatever numpy does; a node that it cannot run is no fault of the graph
        return None
    arrays = [np.asarray(next(results)) if name else np.zeros(0) for name in node.output]
    return None if any(array.dtype == object for array in arrays) else arrays


def _known_shapes(graph: "onnx.GraphProto") -> dict[str, tuple[int, tuple[int, ...]]]:
    """Bytes of one element and shape of every tensor whose sizes are all known."""
    known = {
        tensor.name: ((element_bits(tensor.data_type) + 7) // 8, tuple(tensor.dims)) for tensor in graph.initializer
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
            if all(size >= 0 for size in sizes):
                known[value.name] = ((element_bits(kind.elem_type) + 7) // 8, tuple(sizes))
    return known


def _has_elements(tensor: "onnx.TensorProto") -> bool:
    import onnx

    inside = any((tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data))
    stored = inside or tensor_bytes(tensor) == 0
    return stored and tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type != onnx.TensorProto.STRING


def simplify(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy with constants folded, equal constants stored once, and without nodes that do nothing or that no output
    needs. Inputs, outputs and results are those of `model`; types and shapes of all values are written in.

    Raises EngineError for a graph whose shapes contradict each other.
    """
    result = copied(model)
    fold_in_place(result)
    infer_shapes(result)
    _drop_unread_outputs(result)
    _remove_idle_nodes(result)
    prune(result)
    _merge_constants(result)
    return infer_shapes(result)


def _remove_idle_nodes(model: "onnx.ModelProto") -> None:
    import onnx

    graph = model.graph
    kinds = value_types(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    taken = outputs | set(tensors) | {value.name for value in graph.input}
    renamed: dict[str, str] = {}
    kept, last = [], []
    for node in graph.node:
        if not _idle(node, kinds, tensors):
            kept.append(node)
        elif node.output[0] in outputs:
            source = renamed.get(node.input[0], node.input[0])
            if source in taken:
                kept.append(node)
            else:
                # The output's name must stay, so whoever computes the value takes it over.
                last.append((source, node.output[0]))
                taken.add(source)
        else:
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
    nodes = onnx.GraphProto()
    nodes.node.extend(kept)
    del graph.node[:]
    graph.node.extend(nodes.node)
    taken_over = dict(last)
    rename_uses(graph, {**renamed, **taken_over, **{old: taken_over.get(new, new) for old, new in renamed.items()}})
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = taken_over.get(name, name)


def _idle(node: "onnx.NodeProto", kinds: Mapping[str, int], tensors: Mapping[str, "onnx.TensorProto"]) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or any(node.output[1:]):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
        return kinds.get(node.input[0]) == to
    if node.op_type == "Dropout":
        training = node.input[2] if len(node.input) > 2 else ""
        return not training or _is_false(tensors.get(training))
    return False


def _is_false(tensor: "onnx.TensorProto | None") -> bool:
    import onnx

    return tensor is not None and _has_elements(tensor) and not onnx.numpy_helper.to_array(tensor).any()


def _drop_unread_outputs(model: "onnx.ModelProto") -> None:
    """Writers name optional outputs that nobody reads, such as the mean of a LayerNormalization; some backends would
    compute them."""
    graph = model.graph
    read = {name for inner in all_graphs(graph) for node in inner.node for name in node.input}
    read |= {value.name for inner in all_graphs(graph) for value in inner.output}
    for node in graph.node:
        while node.op_type in _OPTIONAL_OUTPUTS and len(node.output) > 1 and node.output[-1] not in read:
            del node.output[-1]


_OPTIONAL_OUTPUTS = frozenset({"LayerNormalization", "Dropout", "MaxPool"})


def value_types(graph: "onnx.GraphProto") -> dict[str, int]:
    """The element type of every tensor whose type is written in the graph."""
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    return {**{tensor.name: tensor.data_type for tensor in graph.initializer}, **kinds}


def _merge_constants(model: "onnx.ModelProto") -> None:
    """Equal initialisers become one: the first."""
    graph = model.graph
    kept_names = {value.name for value in (*graph.input, *graph.output)}
    # A body may hand a captured name straight out, where it cannot be renamed.
    kept_names |= {value.name for inner in all_graphs(graph) for value in inner.output}
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in kept_names or not _has_elements(tensor):
            continue
        digest = hashlib.sha256(repr((tensor.data_type, list(tensor.dims))).encode())
        digest.update(tensor.raw_data or _unnamed(tensor))
        same = first.setdefault(digest.digest(), tensor.name)
        if same != tensor.name:
            renamed[tensor.name] = same
    rename_uses(graph, renamed)
    for place in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[place].name in renamed:
            del graph.initializer[place]


def _unnamed(tensor: "onnx.TensorProto") -> bytes:
    import onnx

    return onnx.numpy_helper.to_array(tensor).tobytes()
