"""FP16 and BF16 written into a graph, with islands of FP32.

Every tensor has one type, stated by the graph itself: what TensorRT calls strong typing, and what no backend may
ignore. The choices, node by node in order:

- Matrix products and convolutions compute in the low type. So does what only moves or adds what is already low.
- Islands stay in FP32: they sum many values or leave the range (see ISLANDS).
- What is computed from integers alone (positions, masks) stays in FP32 until it meets a low tensor: FP16 counts
  exactly to 2048 only.
- A constant beyond the low type's range, such as the -inf or -3.4e38 of a mask, keeps the additions and selections
  that use it in FP32, up to the softmax behind them. A weight of a matrix product beyond the range is clamped to it.
- Constants are stored in the type in which they are used; only computed values are ever cast at run time.

What cannot be seen in a graph is an activation that grows beyond 65504; a builder finds it when it compares outputs.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import EngineError
from aula.engine.opsets import raise_opset
from aula.engine.passes import simplify, value_types
from aula.engine.walk import captured, element_count, infer_shapes, opset, rename_uses, subgraphs

if TYPE_CHECKING:
    import onnx


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ISLANDS = _names(
    """
    Softmax LogSoftmax LayerNormalization InstanceNormalization BatchNormalization GroupNormalization
    RMSNormalization MeanVarianceNormalization LpNormalization LRN ReduceMean ReduceSum ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceProd ReduceSumSquare Exp Log Pow Sqrt Reciprocal Div Softplus Sin Cos Tan
    Range CumSum Resize Upsample GridSample
    """
)
"""Operators that stay in FP32. Division by constants of at least 1 cannot leave the range and is none of them."""

_PRODUCTS = _names(
    """
    MatMul Gemm Conv ConvTranspose Einsum Attention LSTM GRU RNN
    """
)
_MOVES = _names(
    """
    Reshape Transpose Slice Gather GatherElements GatherND Concat Split Squeeze Unsqueeze Expand Where Identity
    Pad Flatten Tile DepthToSpace SpaceToDepth ScatterND ScatterElements ReduceMax ReduceMin Trilu Compress
    ReverseSequence
    """
)
_KEEPS_RANGE = _MOVES | _names("Add Sub Mul Neg Max Min Sum Cast Abs")
"""A value beyond the range is still beyond it after these."""

_MOST_BF16 = 3.3895313892515355e38
"""(2 - 2^-7) * 2^127: below the most of FP32, 3.4028e38, which would be rounded to infinity."""

_TYPE_NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}

_FEW_ELEMENTS = 1024
"""A matrix product of integers with less than this (rotary frequencies) is position arithmetic, not a layer."""

_LEAST_SCALE = 2.0**-14
"""The least normal FP16: scales below lose digits, so their Q/DQ pairs stay in FP32."""


def lower_precision(
    model: "onnx.ModelProto", precision: str, islands: Collection[str] = ISLANDS, *, borders: Collection[str] = ()
) -> "onnx.ModelProto":
    """A simplified copy that computes in "fp16" or "bf16" outside `islands`, with inputs and outputs as they were, save
    those of `borders`, which take the low type themselves: states, and what one engine hands to the next.

    Nodes whose operator set does not know the low type, nodes of other domains, and bodies of If, Loop and Scan stay
    in FP32. Where only a newer operator set knows the low type (BF16 convolutions, FP16 scales of Q/DQ) the graph is
    raised to `opsets.RAISED`, if what it uses was merely extended until then.

    Raises EngineError for another precision, and for a graph whose types contradict each other.
    """
    if precision not in ("fp16", "bf16"):
        raise EngineError(
            f"there is no lower precision {precision!r}",
            available=("fp16", "bf16"),
            next_step="choose one of these; int8 needs calibration data",
        )
    result = simplify(model)
    raise_opset(result, _TYPE_NAMES[precision])
    _Lowering(result, precision, frozenset(islands), frozenset(borders)).run()
    return infer_shapes(result, strict=True)


class _Lowering:
    """One pass over one graph, in order, which must be topological."""

    def __init__(
        self, model: "onnx.ModelProto", precision: str, islands: frozenset[str], borders: frozenset[str]
    ) -> None:
        import ml_dtypes
        import onnx

        kinds = onnx.TensorProto.DataType
        self._graph = model.graph
        self._opset = opset(model)
        self._islands = islands
        self._borders = borders
        self._suffix = precision
        self._low: int = kinds.FLOAT16 if precision == "fp16" else kinds.BFLOAT16
        self._float: int = kinds.FLOAT
        self._type_name = _TYPE_NAMES[precision]
        self._dtype: Any = np.dtype(np.float16 if precision == "fp16" else ml_dtypes.bfloat16)
        self._most = float(65504 if precision == "fp16" else _MOST_BF16)
        self._kinds = value_types(self._graph)
        inputs = {value.name for value in self._graph.input}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer if tensor.name not in inputs}
        self._is_low: set[str] = set()
        self._whole: set[str] = set()
        """Values in FP32 that were computed from integers alone."""
        self._wide: set[str] = set()
        """Values in FP32 that may lie beyond the low type's range."""
        self._converted: dict[tuple[str, bool], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._beyond: dict[str, bool] = {}
        self._names = {name for node in self._graph.node for name in (*node.input, *node.output)}
        self._names |= inputs | set(self._constants)

    def run(self) -> None:
        outputs = {value.name for value in self._graph.output}
        import onnx

        nodes = onnx.GraphProto()
        nodes.node.extend(self._graph.node)
        self._lower_inputs()
        for node in nodes.node:
            self._lower(node)
        for name in outputs & self._is_low - self._borders:
            self._restore_output(name)
        self._lower_outputs(outputs & self._borders)
        used = {name for node in self._nodes for name in (*node.input, *captured(node))} | outputs
        for place in range(len(self._graph.initializer) - 1, -1, -1):
            if self._graph.initializer[place].name not in used:
                del self._graph.initializer[place]
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]

    # What becomes of a node.

    def _lower(self, node: "onnx.NodeProto") -> None:
        accepting = self._accepting(node)
        computed = [name for name in self._floats(node) if name not in self._constants]
        if any(True for _ in subgraphs(node)):
            self._feed_bodies(node)
            self._keep(node)
        elif node.op_type == "Cast":
            self._nodes.append(node)  # a cast takes any type
            self._mark(node, computed)
        elif accepting and self._wants_low(node, computed):
            for place in accepting:
                node.input[place] = self._as(node.input[place], low=True)
            for place in set(range(len(node.input))) - accepting:
                node.input[place] = self._as(node.input[place], low=False)
            self._nodes.append(node)
            self._is_low.update(self._lowered_outputs(node, accepting))
        else:
            self._keep(node)
            self._mark(node, computed)

    def _keep(self, node: "onnx.NodeProto") -> None:
        for place, name in enumerate(node.input):
            node.input[place] = self._as(name, low=False)
        self._nodes.append(node)

    def _wants_low(self, node: "onnx.NodeProto", computed: list[str]) -> bool:
        constants = [name for name in self._floats(node) if name in self._constants]
        if node.op_type in self._islands and not (node.op_type == "Div" and self._harmless_divisor(node)):
            return False
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return self._bears_scale(node.input[1]) and (
                node.op_type == "DequantizeLinear" or node.input[0] in self._is_low
            )
        if node.op_type in _PRODUCTS:
            few = sum(element_count(self._constants[name]) for name in constants) < _FEW_ELEMENTS
            positions = bool(computed) and all(name in self._whole for name in computed)
            return not (positions and few and node.op_type in ("MatMul", "Einsum", "Gemm"))
        if any(name in self._wide or self._is_beyond(name) for name in (*computed, *constants)):
            return False
        if not computed:
            return bool(constants) and node.op_type in _MOVES
        return any(name in self._is_low for name in computed)

    def _mark(self, node: "onnx.NodeProto", computed: list[str]) -> None:
        """Follow what comes from integers, and what is beyond the range, through a node that stays in FP32."""
        outputs = {name for name in node.output if self._kinds.get(name) == self._float}
        if all(name in self._whole for name in computed) and node.op_type not in _PRODUCTS:
            self._whole |= outputs
        wide = any(name in self._wide or self._is_beyond(name) for name in self._floats(node))
        if wide and node.op_type in _KEEPS_RANGE:
            self._wide |= outputs

    def _harmless_divisor(self, node: "onnx.NodeProto") -> bool:
        divisor = self._constants.get(node.input[1])
        return divisor is not None and bool((np.abs(self._array(divisor)) >= 1).all())

    def _bears_scale(self, name: str) -> bool:
        scale = self._constants.get(name)
        if scale is None or self._suffix == "bf16":
            return scale is not None
        values = self._array(scale)
        return bool(((values >= _LEAST_SCALE) & (values <= self._most)).all())

    # What a node may take and gives, by its schema.

    def _accepting(self, node: "onnx.NodeProto") -> set[int]:
        """Places of FP32 inputs that may be of the low type instead; none where the first of them may not."""
        import onnx

        if node.domain not in ("", "ai.onnx") or any(
            self._kinds.get(name) in _OTHER_FLOATS for name in (*node.input, *node.output)
        ):
            return set()
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        except onnx.defs.SchemaError:
            return set()
        allowed = {c.type_param_str: self._type_name in c.allowed_type_strs for c in schema.type_constraints}
        floats = [place for place, name in enumerate(node.input) if name and self._kinds.get(name) == self._float]
        accepting = {place for place in floats if allowed.get(_type_variable(schema.inputs, place), False)}
        first = min(floats, default=None)
        return accepting if first in accepting else set()

    def _lowered_outputs(self, node: "onnx.NodeProto", accepting: set[int]) -> set[str]:
        import onnx

        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        lowered = {_type_variable(schema.inputs, place) for place in accepting}
        return {
            name
            for place, name in enumerate(node.output)
            if name and self._kinds.get(name) == self._float and _type_variable(schema.outputs, place) in lowered
        }

    def _floats(self, node: "onnx.NodeProto") -> list[str]:
        return [name for name in node.input if self._kinds.get(name) == self._float]

    # Values in the type that is asked for.

    def _as(self, name: str, *, low: bool) -> str:
        """The name under which a value is there in that type; a constant is stored so, anything else cast once."""
        if self._kinds.get(name) != self._float or (name not in self._constants and (name in self._is_low) == low):
            return name
        if (name, low) not in self._converted:
            if name in self._constants:
                self._converted[name, low] = self._stored_low(name) if low else name
            else:
                self._converted[name, low] = self._cast(name, low=low)
        return self._converted[name, low]

    def _cast(self, name: str, *, low: bool) -> str:
        import onnx

        source = name
        if low and name in self._wide:
            source = self._fresh(f"{name}/clamped")
            bounds = [self._scalar(f"{self._suffix}.{side}", value) for side, value in self._bounds()]
            self._nodes.append(onnx.helper.make_node("Clip", [name, *bounds], [source], name=source))
        target = self._fresh(f"{name}/{self._suffix if low else 'fp32'}")
        to = self._low if low else self._float
        self._nodes.append(onnx.helper.make_node("Cast", [source], [target], name=target, to=to))
        return target

    def _bounds(self) -> list[tuple[str, float]]:
        return [("least", -self._most), ("greatest", self._most)]

    def _scalar(self, name: str, value: float) -> str:
        import onnx

        if (name, False) not in self._converted:
            chosen = self._fresh(name)
            self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype=np.float32), chosen))
            self._converted[name, False] = chosen
        return self._converted[name, False]

    def _stored_low(self, name: str) -> str:
        import onnx

        tensor = self._constants[name]
        array = self._array(tensor)
        clamped = np.clip(array, -self._most, self._most) if self._is_beyond(name) else array
        target = self._fresh(f"{name}/{self._suffix}")
        stored = self._graph.initializer.add()
        stored.CopyFrom(onnx.TensorProto(name=target, data_type=self._low, dims=tensor.dims))
        stored.raw_data = clamped.astype(self._dtype).tobytes()
        return target

    def _array(self, tensor: "onnx.TensorProto") -> NDArray[Any]:
        import onnx

        return onnx.numpy_helper.to_array(tensor)

    def _is_beyond(self, name: str) -> bool:
        if name not in self._constants:
            return False
        if name not in self._beyond:
            array = self._array(self._constants[name])
            # Without a copy of the array; nan compares false, and stays what it is.
            self._beyond[name] = bool(array.size and (array.max() > self._most or array.min() < -self._most))
        return self._beyond[name]

    def _fresh(self, name: str) -> str:
        number, chosen = 1, name
        while chosen in self._names:
            number, chosen = number + 1, f"{name}.{number}"
        self._names.add(chosen)
        return chosen

    # The graph's border, and bodies.

    def _lower_inputs(self) -> None:
        for value in self._graph.input:
            if value.name in self._borders and self._kinds.get(value.name) == self._float:
                value.type.tensor_type.elem_type = self._low
                self._is_low.add(value.name)

    def _lower_outputs(self, names: Collection[str]) -> None:
        """Outputs that leave in the low type: what is computed in FP32 is cast at the end."""
        for value in self._graph.output:
            if value.name not in names or self._kinds.get(value.name) != self._float:
                continue
            value.type.tensor_type.elem_type = self._low
            if value.name not in self._is_low:
                self._end_output(value.name, self._suffix, self._low)

    def _restore_output(self, name: str) -> None:
        """The output keeps its name and type: what computed it gets another name, and a cast ends in the output's."""
        import onnx

        inner = self._fresh(f"{name}/{self._suffix}")
        cast = self._converted.get((name, False))
        for node in self._nodes:
            for values in (node.input, node.output):
                for place, value in enumerate(values):
                    if value == name:
                        values[place] = inner
                    elif value == cast:
                        values[place] = name
            for body in subgraphs(node):
                rename_uses(body, {cast: name} if cast else {})
        if cast is None:
            last = onnx.helper.make_node("Cast", [inner], [name], name=f"{name}/fp32", to=self._float)
            self._nodes.append(last)

    def _end_output(self, name: str, suffix: str, kind: int) -> None:
        """What computed the output gets another name, and a cast ends in the output's."""
        import onnx

        inner = self._fresh(f"{name}/fp32")
        for node in self._nodes:
            for values in (node.input, node.output):
                for place, value in enumerate(values):
                    if value == name:
                        values[place] = inner
            for body in subgraphs(node):
                rename_uses(body, {name: inner})
        self._nodes.append(onnx.helper.make_node("Cast", [inner], [name], name=f"{name}/{suffix}", to=kind))

    def _feed_bodies(self, node: "onnx.NodeProto") -> None:
        """Bodies stay as they are, so what they capture must reach them under its own name in FP32: a low value is
        known inside by the name of its cast."""
        renamed = {name: self._as(name, low=False) for name in captured(node) if name in self._is_low}
        for body in subgraphs(node):
            rename_uses(body, renamed)


_OTHER_FLOATS = (10, 11, 14, 15, 16)
"""FLOAT16, DOUBLE, the complex types and BFLOAT16: who uses these chose a precision, which stays."""


def _type_variable(parameters: Any, place: int) -> str:
    """The type variable of the parameter at `place`; the last one may repeat."""
    if not parameters:
        return ""
    return str(parameters[min(place, len(parameters) - 1)].type_str)


def shares(model: "onnx.ModelProto") -> Mapping[str, int]:
    """How many matrix products and convolutions compute in each type, as the graph says: {"fp16": 72, "fp32": 1}."""
    import onnx

    kinds = value_types(infer_shapes(model).graph)
    names = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp64", int(onnx.TensorProto.INT32): "int8"}
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            name = names.get(kinds.get(node.output[0], 0), "unknown")
            counts[name] = counts.get(name, 0) + 1
    return counts
