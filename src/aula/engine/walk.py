"""What every pass over an ONNX graph needs: nested graphs, names, constants' sizes, and inferred shapes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from aula.core.errors import EngineError

if TYPE_CHECKING:
    import onnx

KEPT_BYTES = 65_536
"""Constants up to this size go through shape inference with their values: shapes, axes, repeats."""


def subgraphs(node: "onnx.NodeProto") -> Iterator["onnx.GraphProto"]:
    """The bodies of an If, Loop or Scan; not those inside them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: "onnx.GraphProto") -> Iterator["onnx.GraphProto"]:
    """`graph`, and the graphs inside it at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def captured(node: "onnx.NodeProto") -> set[str]:
    """Names that the graphs inside an If, Loop or Scan may take from outside."""
    names: set[str] = set()
    for body in subgraphs(node):
        for graph in all_graphs(body):
            names.update(name for inner in graph.node for name in inner.input if name)
            names.update(value.name for value in graph.output)
    return names


def rename_uses(graph: "onnx.GraphProto", names: Mapping[str, str]) -> None:
    """Let every node that reads a name of `names` read the other instead; names are unique across nested graphs."""
    for inner in all_graphs(graph):
        for node in inner.node:
            for place, name in enumerate(node.input):
                if name in names:
                    node.input[place] = names[name]


def copied(model: "onnx.ModelProto") -> "onnx.ModelProto":
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def element_bits(kind: int) -> int:
    """Bits of one element as it is stored; 0 for a type without a fixed size."""
    import onnx

    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    name = onnx.TensorProto.DataType.Name(onnx.TensorProto.DataType.ValueType(kind))
    if name in narrow:
        return narrow[name]
    if name in ("UNDEFINED", "STRING"):
        return 0
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def element_count(tensor: "onnx.TensorProto") -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def tensor_bytes(tensor: "onnx.TensorProto") -> int:
    """Bytes of the elements, wherever they are stored."""
    return (element_count(tensor) * element_bits(tensor.data_type) + 7) // 8


def opset(model: "onnx.ModelProto", domain: str = "") -> int:
    """The version of an operator set that the model imports; 0 where it imports none."""
    aliases = ("", "ai.onnx") if domain == "" else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in aliases), 0)


def constant_nodes_to_initialisers(model: "onnx.ModelProto") -> None:
    """Constant nodes of the outermost graph become initialisers; changes `model`.

    A constant that is itself an output of the graph stays a node, since not every runtime takes an initialiser there.
    """
    import onnx

    graph = model.graph
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if node.op_type == "Constant" and node.output[0] not in outputs and value is None:
            tensor = _constant_of_scalars(node)
        else:
            tensor = value.t if value is not None and node.output[0] not in outputs else None
        if tensor is None:
            kept.append(node)
            continue
        added = graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
    nodes = onnx.GraphProto()
    nodes.node.extend(kept)
    del graph.node[:]
    graph.node.extend(nodes.node)


def _constant_of_scalars(node: "onnx.NodeProto") -> "onnx.TensorProto | None":
    """The tensor of a Constant that is written as value_int, value_float and so on."""
    import numpy as np
    import onnx

    dtypes = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for attribute in node.attribute:
        if attribute.name in dtypes:
            value = onnx.helper.get_attribute_value(attribute)
            return onnx.numpy_helper.from_array(np.asarray(value, dtype=dtypes[attribute.name]))
    return None


def without_weights(model: "onnx.ModelProto", kept: int = KEPT_BYTES) -> "onnx.ModelProto":
    """A copy whose constants above `kept` bytes have type and shape but no elements: small enough to be serialised."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    light.metadata_props.extend(model.metadata_props)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, whole = light.graph, model.graph
    graph.name = whole.name or "graph"
    graph.input.extend(whole.input)
    graph.output.extend(whole.output)
    graph.value_info.extend(whole.value_info)
    graph.quantization_annotation.extend(whole.quantization_annotation)
    graph.sparse_initializer.extend(whole.sparse_initializer)
    for tensor in whole.initializer:
        _add_lightly(graph, tensor, tensor.name, kept)
    for node in whole.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is not None and tensor_bytes(value) > kept:
            _add_lightly(graph, value, node.output[0], kept)
        else:
            graph.node.add().CopyFrom(node)
    return light


def _add_lightly(graph: "onnx.GraphProto", tensor: "onnx.TensorProto", name: str, kept: int) -> None:
    added = graph.initializer.add()
    if tensor_bytes(tensor) <= kept and not tensor.external_data:
        added.CopyFrom(tensor)
    else:
        added.data_type = tensor.data_type
        added.dims.extend(tensor.dims)
    added.name = name


def infer_shapes(model: "onnx.ModelProto", *, strict: bool = False) -> "onnx.ModelProto":
    """Write the type and shape of every value into `model` and return it; the weights are neither copied nor
    serialised, so that their size does not matter.

    Raises EngineError where types or shapes contradict each other; `strict` adds those that cannot be inferred.
    """
    inferred = inferred_lightly(model, strict=strict).graph
    graph = model.graph
    del graph.value_info[:]
    graph.value_info.extend(inferred.value_info)
    for value, found in zip(graph.output, inferred.output, strict=True):
        value.type.CopyFrom(found.type)
    return model


def inferred_lightly(model: "onnx.ModelProto", *, strict: bool = False) -> "onnx.ModelProto":
    """`without_weights(model)` with types and shapes inferred anew. Raises EngineError as `infer_shapes` does."""
    import onnx

    light = without_weights(model)
    del light.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        raise EngineError(
            f"shapes or types in the graph contradict each other: {reason}",
            next_step="export the model again, and check it with onnx.checker",
        ) from error


def prune(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Remove nodes, initialisers and value infos that no output depends on; changes and returns `model`."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    for place in range(len(graph.node) - 1, -1, -1):
        node = graph.node[place]
        if any(output in needed for output in node.output):
            needed.update(name for name in node.input if name)
            needed.update(captured(node))
        else:
            del graph.node[place]
    for values in (graph.initializer, graph.value_info):
        for place in range(len(values) - 1, -1, -1):
            if values[place].name not in needed:
                del values[place]
    return model
