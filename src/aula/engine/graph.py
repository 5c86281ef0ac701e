"""ONNX graphs as the builder sees them: weights bound, state pairs checked, and what a graph holds and costs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from aula.backends.session import StatePair
from aula.core.errors import EngineError
from aula.engine.operations import Cost, cost
from aula.engine.passes import fold_in_place
from aula.engine.walk import element_count, infer_shapes, inferred_lightly, prune, tensor_bytes, without_weights

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphReport", "bind_weights", "check_states", "infer_shapes", "prune", "report"]


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


def check_states(model: "onnx.ModelProto", pairs: Sequence[StatePair]) -> None:
    """Raises EngineError unless every pair names an input and an output of the graph with equal type and shape, and
    none is named twice."""
    graph = model.graph
    sides = {
        "input": {value.name: value for value in graph.input},
        "output": {value.name: value for value in graph.output},
    }
    for side, values in sides.items():
        named = [getattr(pair, side) for pair in pairs]
        for name, times in Counter(named).items():
            if name not in values:
                raise EngineError(
                    f"a state pair names the {side} {name!r}, which the graph does not have",
                    available=sorted(values),
                    next_step="correct the recipe's state pairs",
                )
            if times > 1:
                raise EngineError(
                    f"{times} state pairs name the {side} {name!r}",
                    next_step="give each state an input and an output of its own",
                )
    for pair in pairs:
        taken, made = _described(sides["input"][pair.input]), _described(sides["output"][pair.output])
        if taken != made:
            raise EngineError(
                f"the state {pair.input} is {taken} but {pair.output}, which becomes it, is {made}",
                next_step="let the graph return a state in the type and shape in which it takes it",
            )


def _described(value: "onnx.ValueInfoProto") -> str:
    """Like "float[1, heads, 64]"; a size without a name is "?"."""
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    sizes = [str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?" for size in kind.shape.dim]
    name = onnx.TensorProto.DataType.Name(onnx.TensorProto.DataType.ValueType(kind.elem_type)).lower()
    return f"{name}[{', '.join(sizes)}]" if kind.HasField("shape") else f"{name} of any shape"


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What a graph consists of, and where sizes were given what one run of it costs.

    `weight_bytes` as they are stored. The rest is None without `sizes`. `flops` counts a multiplication and the
    addition after it as two, in matrix products and convolutions only. `read_bytes`: weights that one run reads, of
    tables only the rows that are looked up. `activation_bytes`: what all operators read and write beside the weights
    if none were fused with its neighbour. `uncounted` are nodes whose cost is unknown: bodies of loops, unknown
    shapes, operators of other domains.
    """

    operators: Mapping[str, int]
    parameters: int
    weight_bytes: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    flops: int | None = None
    read_bytes: int | None = None
    activation_bytes: int | None = None
    uncounted: tuple[str, ...] = ()

    def __str__(self) -> str:
        most = ", ".join(f"{count} {name}" for name, count in Counter(self.operators).most_common(6))
        further = ", …" if len(self.operators) > 6 else ""
        text = (
            f"{sum(self.operators.values())} operators ({most}{further}), {self.parameters / 1e6:.1f} M parameters, "
            f"{self.weight_bytes / 1e6:.1f} MB"
        )
        if self.flops is None or self.read_bytes is None or self.activation_bytes is None:
            return text
        at = ", ".join(f"{name} {size}" for name, size in self.sizes.items()) or "its fixed sizes"
        text += (
            f"; at {at}: {self.flops / 1e9:.2f} GFLOP, {self.read_bytes / 1e6:.1f} MB of weights read, "
            f"{self.activation_bytes / 1e6:.1f} MB of activations"
        )
        return text + (f", {len(self.uncounted)} nodes not counted" if self.uncounted else "")


def report(model: "onnx.ModelProto", sizes: Mapping[str, int] | None = None) -> GraphReport:
    """What `model` consists of; with a size for every free dimension of its inputs ({} where none is free), also what
    a run costs.

    Raises EngineError for a free dimension without a size, or sizes at which the graph contradicts itself.
    """
    graph = model.graph
    constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    tensors = [*graph.initializer, *constants]
    held = GraphReport(
        operators=dict(Counter(node.op_type for node in graph.node)),
        parameters=sum(element_count(tensor) for tensor in graph.initializer),
        weight_bytes=sum(tensor_bytes(tensor) for tensor in tensors),
    )
    if sizes is None:
        return held
    found = _cost_at(model, sizes)
    return GraphReport(
        held.operators,
        held.parameters,
        held.weight_bytes,
        dict(sizes),
        found.flops,
        found.read_bytes,
        found.activation_bytes,
        found.uncounted,
    )


def _cost_at(model: "onnx.ModelProto", sizes: Mapping[str, int]) -> Cost:
    light = without_weights(model)
    del light.graph.value_info[:]
    overridable = {tensor.name for tensor in light.graph.initializer}
    for value in light.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_value") or value.name in overridable:
                continue
            if size.dim_param not in sizes:
                raise EngineError(
                    f"input {value.name} has the free dimension {size.dim_param or axis} without a size",
                    available=sorted(sizes),
                    next_step="give a size for every free dimension",
                )
            size.dim_value = sizes[size.dim_param]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    # With all sizes known, whatever the graph computes about shapes is constant; what remains is the work.
    fold_in_place(light)
    return cost(prune(inferred_lightly(light)).graph)
