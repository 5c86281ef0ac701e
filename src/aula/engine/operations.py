"""What operators cost: arithmetic and bytes, from shapes alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from aula.engine.walk import element_bits, subgraphs, tensor_bytes

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Size", "Constant"])
"""Operators that move nothing."""

_WORK_UNKNOWN = frozenset({"Attention", "LSTM", "GRU", "RNN", "DeformConv"})
"""Operators that hold products whose work is not counted here."""

_SECOND_OPERAND = {"QLinearMatMul": 3, "QLinearConv": 3}
"""Where the second operand stands when it is not input 1."""


@dataclass(frozen=True, slots=True)
class Cost:
    """See GraphReport for what each field counts."""

    flops: int
    read_bytes: int
    activation_bytes: int
    uncounted: tuple[str, ...]


def cost(graph: "onnx.GraphProto") -> Cost:
    """The cost of one run of a graph in which types and shapes of all values are written."""
    shapes, widths = _shapes_and_widths(graph)
    weights = {tensor.name: tensor_bytes(tensor) for tensor in graph.initializer}
    looked_up = _only_looked_up(graph, weights)
    # Dequantising a weight is part of reading it.
    inside = set(weights) | {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    flops = activations = rows = 0
    uncounted = []
    for node in graph.node:
        # Further outputs are mostly optional ones that nobody reads, and have no shape then.
        used = [name for name in (*node.input, *node.output[:1]) if name]
        known = all(name in shapes for name in used)
        foreign = node.domain not in ("", "ai.onnx")
        if not known or foreign or node.op_type in _WORK_UNKNOWN or any(True for _ in subgraphs(node)):
            uncounted.append(node.name or f"{node.op_type} {node.output[0]}")
        if not foreign:
            flops += _flops(node, shapes)
        moved = {name: prod(shapes[name]) * widths[name] // 8 for name in used if name in shapes}
        if node.op_type in ("Gather", "GatherND", "GatherElements") and node.input[0] in weights:
            made = moved.get(node.output[0], 0)
            rows += made if node.input[0] in looked_up else 0
            activations += made + moved.get(node.input[1], 0)
        elif node.op_type not in VIEWS:
            activations += sum(count for name, count in moved.items() if name not in inside)
    read = rows + sum(count for name, count in weights.items() if name not in looked_up)
    return Cost(flops, read, activations, tuple(uncounted))


def _only_looked_up(graph: "onnx.GraphProto", weights: Mapping[str, int]) -> set[str]:
    uses = Counter(name for node in graph.node for name in node.input)
    lookups = Counter(node.input[0] for node in graph.node if node.op_type in ("Gather", "GatherND", "GatherElements"))
    return {name for name in weights if lookups[name] and lookups[name] == uses[name]}


def _shapes_and_widths(graph: "onnx.GraphProto") -> tuple[dict[str, Shape], dict[str, int]]:
    """Sizes, and bits of an element, of every tensor whose shape is fully known."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    widths = {tensor.name: element_bits(tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            shapes[value.name] = tuple(size.dim_value for size in kind.shape.dim)
            widths[value.name] = element_bits(kind.elem_type)
    return shapes, widths


def _flops(node: "onnx.NodeProto", shapes: Mapping[str, Shape]) -> int:
    """Twice the multiply-adds; 0 where the operator has none, or its shapes are unknown."""
    place = _SECOND_OPERAND.get(node.op_type, 1)
    first = shapes.get(node.input[0]) if node.input else None
    second = shapes.get(node.input[place]) if len(node.input) > place else None
    made = shapes.get(node.output[0])
    if first is None or second is None or made is None:
        return 0
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return 2 * prod(made) * first[-1]
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return 2 * prod(made) * first[0 if transposed else 1]
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return 2 * prod(made) * prod(second[1:])  # the kernel is [out, in / group, ...]
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])  # and here [in, out / group, ...]
    if node.op_type == "Einsum":
        equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "")
        return _einsum_flops(equation, [shapes.get(name, ()) for name in node.input])
    return 0


def _einsum_flops(equation: str, operands: Sequence[Shape]) -> int:
    """Two for every combination of indices; an ellipsis is not counted."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=False):
        if "." in term or len(term) != len(shape):
            return 0
        sizes.update(zip(term, shape, strict=True))
    return 2 * prod(sizes.values())
