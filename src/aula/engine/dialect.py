"""A graph in the words that TensorRT's parser knows, for one profile's sizes.

TensorRT 8.6 reads operators up to opset 17; what later sets merely spell differently is written in the older way, which
every later parser reads too. A network that keeps the graph's own types (TensorRT 10.12 on) is given opset 19 or newer,
since only from there on may int8 pairs have scales in half precision. Nothing is computed differently, save that Gelu
becomes the four operators that define it, which TensorRT has always fused. Sizes that a profile fixes are written into
the graph: a plan for fixed sizes chooses among more tactics (attention and normalisation are fused there where free
sizes prevent it).
"""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.core.errors import EngineError
from aula.engine.passes import fold_in_place, value_types
from aula.engine.walk import all_graphs, constant_nodes_to_initialisers, copied, infer_shapes, opset, prune

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""The newest operator set that TensorRT 8.6's parser knows (onnx-tensorrt 8.6, operators.md)."""

TYPED_OPSETS = (19, 22)
"""From where QuantizeLinear takes float16 (ONNX operators, changelog 19), to what TensorRT 10.12's parser knows
(onnx-tensorrt 10.12, operators.md)."""

_AXES_WERE_ATTRIBUTE = frozenset(
    f"Reduce{name}" for name in ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)
"""Reductions that take their axes as an input from opset 18 on; ReduceSum has since 13."""


def specialise(model: "onnx.ModelProto", sizes: Mapping[str, int]) -> "onnx.ModelProto":
    """A copy in which the named free dimensions of all inputs have these sizes, folded and pruned. Dimensions that are
    not named stay free."""
    result = copied(model)
    for value in (*result.graph.input, *result.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    del result.graph.value_info[:]
    fold_in_place(result)
    prune(result)
    return infer_shapes(result)


def for_tensorrt(model: "onnx.ModelProto", *, typed: bool = False) -> "onnx.ModelProto":
    """A copy in opset 17 with the same inputs, outputs and meaning; `typed`: in opset 19 to 22.

    Raises EngineError for an operator of a newer set, or what one says there, that has no older spelling here.
    """
    if typed:
        return _for_typed_networks(model)
    result = copied(model)
    constant_nodes_to_initialisers(result)
    _Rewriting(result).run()
    for graph in all_graphs(result.graph):
        for node in graph.node:
            if node.domain in ("", "ai.onnx"):
                _settle(node, opset(model))
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, OPSET)
    # Readers of opset 17 expect the form that was current with it.
    result.ir_version = min(result.ir_version, 8)
    return prune(result)


def _for_typed_networks(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx.version_converter

    result = copied(model)
    constant_nodes_to_initialisers(result)
    least, newest = TYPED_OPSETS
    if opset(result) > newest:
        raise EngineError(
            f"the graph is written in opset {opset(result)}, and TensorRT 10.12 knows {newest}",
            next_step=f"export the model with opset {newest} or older",
        )
    if opset(result) < least:
        try:
            result = onnx.version_converter.convert_version(result, least)
        except RuntimeError as error:
            raise EngineError(
                f"the graph cannot be written in opset {least}, which int8 needs here: {error}",
                next_step=f"export the model with opset {least} to {newest}",
            ) from error
    return prune(infer_shapes(result))


class _Rewriting:
    """One pass over the outermost graph; bodies of If, Loop and Scan are left as they are."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self._graph = infer_shapes(model).graph
        self._kinds = value_types(self._graph)
        self._shapes = _shapes(self._graph)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        import onnx

        held = onnx.GraphProto()
        held.node.extend(self._graph.node)
        for node in held.node:
            if node.domain not in ("", "ai.onnx"):
                self._nodes.append(node)
            elif node.op_type == "Gelu":
                self._gelu(node)
            else:
                if node.op_type == "Split":
                    self._split(node)
                elif node.op_type in _AXES_WERE_ATTRIBUTE:
                    self._axes(node)
                elif node.op_type == "QuantizeLinear" and len(node.input) > 2:
                    _drop(node, {"output_dtype"})  # the zero point says it
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _gelu(self, node: "onnx.NodeProto") -> None:
        """Hendrycks & Gimpel 2016 (arXiv:1606.08415): x * (1 + erf(x / sqrt 2)) / 2, or its form by tanh."""
        x, y = node.input[0], node.output[0]
        kind = self._kinds.get(x, 1)
        approximate = _attribute(node, "approximate", b"none")

        def step(operator: str, inputs: list[str], part: str) -> str:
            import onnx

            # Values are called after the output: names of nodes may be empty, or there twice.
            output = y if part == "out" else f"{y}/{part}"
            self._nodes.append(onnx.helper.make_node(operator, inputs, [output], name=f"{node.name or y}/{part}"))
            return output

        def number(value: float) -> str:
            return self._scalar(value, kind)

        if approximate == b"tanh":
            cube = step("Mul", [step("Mul", [x, x], "square"), x], "cube")
            inner = step("Add", [x, step("Mul", [cube, number(0.044715)], "scaled")], "sum")
            bent = step("Tanh", [step("Mul", [inner, number(sqrt(2 / np.pi))], "argument")], "tanh")
        else:
            bent = step("Erf", [step("Div", [x, number(sqrt(2))], "argument")], "erf")
        weight = step("Add", [bent, number(1.0)], "raised")
        step("Mul", [step("Mul", [x, weight], "product"), number(0.5)], "out")

    def _split(self, node: "onnx.NodeProto") -> None:
        """Opset 18 may say how many parts; before, a Split without sizes made as many as it has outputs."""
        count = len(node.output)
        if len(node.input) < 2 or not node.input[1]:
            axis = _attribute(node, "axis", 0)
            shape = self._shapes.get(node.input[0], ())
            size = shape[axis] if -len(shape) <= axis < len(shape) else None
            if isinstance(size, int) and size % count:
                part = -(-size // count)
                sizes = [part] * (count - 1) + [size - part * (count - 1)]
                del node.input[1:]
                node.input.append(self._whole_numbers(sizes))
        _drop(node, {"num_outputs"})

    def _axes(self, node: "onnx.NodeProto") -> None:
        """Opset 18 takes them as an input, and without any may reduce nothing."""
        import onnx

        name = node.input[1] if len(node.input) > 1 else ""
        if name and name not in self._tensors:
            raise EngineError(
                f"{node.op_type} {node.name!r} computes its axes, which TensorRT does not take",
                next_step="export the model with constant axes",
            )
        axes = onnx.numpy_helper.to_array(self._tensors[name]).tolist() if name else []
        if axes:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        elif _attribute(node, "noop_with_empty_axes", 0):
            node.op_type = "Identity"
            _drop(node, {"keepdims"})
        del node.input[1:]
        _drop(node, {"noop_with_empty_axes"})

    def _scalar(self, value: float, kind: int) -> str:
        import onnx

        name = f"aula.constant.{kind}.{value:g}"
        if name not in self._tensors:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
            self._add(name, np.asarray(value).astype(dtype))
        return name

    def _whole_numbers(self, values: list[int]) -> str:
        name = "aula.sizes." + "-".join(map(str, values))
        if name not in self._tensors:
            self._add(name, np.array(values, dtype=np.int64))
        return name

    def _add(self, name: str, array: Any) -> None:
        import onnx

        tensor = onnx.numpy_helper.from_array(array, name)
        self._graph.initializer.append(tensor)
        self._tensors[name] = tensor


def _attribute(node: "onnx.NodeProto", name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _drop(node: "onnx.NodeProto", names: set[str]) -> None:
    for place in range(len(node.attribute) - 1, -1, -1):
        if node.attribute[place].name in names:
            del node.attribute[place]


def _shapes(graph: "onnx.GraphProto") -> dict[str, tuple[int | None, ...]]:
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _settle(node: "onnx.NodeProto", version: int) -> None:
    """Let a node say no more than opset 17 knows: an attribute that came later is dropped where it has its default,
    which is what all did before it came.

    Raises EngineError, naming the node, for an operator that opset 17 does not have, and for one that says more there.
    """
    import onnx

    if version <= OPSET:
        return
    try:
        old = onnx.defs.get_schema(node.op_type, OPSET, "")
    except onnx.defs.SchemaError as error:
        raise _too_new(node, "came") from error
    new = onnx.defs.get_schema(node.op_type, version, "")
    for attribute in list(node.attribute):
        if attribute.name in old.attributes:
            continue
        value, default = onnx.helper.get_attribute_value(attribute), new.attributes[attribute.name].default_value
        undilated = attribute.name == "dilations" and set(value) == {1}
        if not undilated and not (default.type and value == onnx.helper.get_attribute_value(default)):
            raise _too_new(node, f"learnt {attribute.name}")
        _drop(node, {attribute.name})
    if node.op_type == "GridSample":
        mode = _attribute(node, "mode", b"linear").decode()
        if mode not in ("bilinear", "bicubic", "nearest"):
            raise _too_new(node, f"says mode {mode}, which it learnt")
    if len(node.input) > old.max_input:
        raise _too_new(node, f"learnt {len(node.input)} inputs")


def _too_new(node: "onnx.NodeProto", what: str) -> EngineError:
    return EngineError(
        f"the operator {node.op_type} ({node.name!r}) {what} after opset {OPSET}, and TensorRT 8.6 does not know it",
        next_step=f"export the model with opset {OPSET}, or build for the CPU: --target cpu",
    )
