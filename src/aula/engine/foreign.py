"""Graphs that somebody else wrote: what no backend would run is named before one fails on it."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from aula.core.errors import BackendError, EngineError
from aula.core.types import TensorSpec
from aula.engine.walk import all_graphs, opset

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
RUNTIME_ONLY = ("com.microsoft", "ai.onnx.ml")
"""Domains that ONNX Runtime alone executes."""

MOST_NAMED = 8
"""Nodes that one message lists."""


def check_operators(model: "onnx.ModelProto") -> list[str]:
    """The nodes that only ONNX Runtime can run, described; [] where every backend may try.

    Raises BackendError that names every node whose operator no backend here knows.
    """
    own = {(function.domain, function.name) for function in model.functions}
    unknown, runtime_only = [], []
    for node in _nodes(model):
        if (node.domain, node.op_type) in own:
            continue
        if node.domain == "com.microsoft" or (node.domain == "ai.onnx.ml" and _is_defined(node, model)):
            runtime_only.append(_described(node, model))
        elif node.domain not in STANDARD or not _is_defined(node, model):
            unknown.append(_described(node, model))
    if unknown:
        further = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise BackendError(
            f"no backend knows the operator of {'; '.join(unknown[:MOST_NAMED])}{further}",
            available=[domain or "ai.onnx" for domain in ("", *RUNTIME_ONLY)],
            next_step="export the model with operators of these domains, in the operator set that it imports",
        )
    return runtime_only


def _nodes(model: "onnx.ModelProto") -> "Iterator[onnx.NodeProto]":
    for graph in all_graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _is_defined(node: "onnx.NodeProto", model: "onnx.ModelProto") -> bool:
    import onnx

    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        return not onnx.defs.get_schema(node.op_type, opset(model, domain), domain).deprecated
    except onnx.defs.SchemaError:
        return False


def _described(node: "onnx.NodeProto", model: "onnx.ModelProto") -> str:
    name = node.name or f"the node that computes {', '.join(node.output)}"
    return f"{name} ({node.op_type}, domain {node.domain or 'ai.onnx'}, operator set {opset(model, node.domain)})"


def drop_default_inputs(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Inputs that have a value in the file become constants; changes and returns `model`.

    Files before IR version 4 list all weights as inputs. Where an input was meant to be overridden at run time, it
    no longer can be.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for place in range(len(graph.input) - 1, -1, -1):
        if graph.input[place].name in constants:
            del graph.input[place]
    model.ir_version = max(model.ir_version, 4)
    return model


_PLAIN = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def name_free_dimensions(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Give every free dimension of the inputs a name that a profile can bear: unnamed ones are called after the input
    and the axis ("x_0"), names such as "s0 + 1" lose what is not a letter, digit or underscore; changes and returns
    `model`.

    Raises EngineError for an input that is no tensor, or whose number of axes is unknown.
    """
    graph = model.graph
    taken = {size.dim_param for value in graph.input for size in value.type.tensor_type.shape.dim}
    renamed: dict[str, str] = {}
    for value in graph.input:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise EngineError(
                f"the input {value.name} is no tensor with a known number of axes",
                next_step="export the model with tensors as inputs, whose shapes are declared",
            )
        for axis, size in enumerate(kind.shape.dim):
            if size.HasField("dim_value") and size.dim_value > 0:
                continue
            if size.dim_param and _PLAIN.fullmatch(size.dim_param):
                continue
            old = size.dim_param or f"{value.name}_{axis}"
            if old not in renamed:
                renamed[old] = _free_name(old, taken)
                taken.add(renamed[old])
            size.dim_param = renamed[old]
    for value in (*graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in renamed:
                size.dim_param = renamed[size.dim_param]
    return model


def _free_name(text: str, taken: set[str]) -> str:
    plain = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "size"
    plain = plain if plain[0].isalpha() else f"size_{plain}"
    number, name = 1, plain
    while name in taken:
        number, name = number + 1, f"{plain}_{number}"
    return name


def input_specs(model: "onnx.ModelProto") -> tuple[TensorSpec, ...]:
    """Raises EngineError for an input of a type that numpy has no equal of, such as strings."""
    return tuple(_spec(value) for value in model.graph.input)


def output_specs(model: "onnx.ModelProto") -> tuple[TensorSpec, ...]:
    """As `input_specs`; a size that is not declared is called "?"."""
    return tuple(_spec(value) for value in model.graph.output)


_DTYPES = (
    "float32",
    "float16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
)


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, ValueError, TypeError):
        dtype = f"type {kind.elem_type}"
    if not value.type.HasField("tensor_type") or dtype not in _DTYPES:
        raise EngineError(
            f"{value.name} is of {dtype if value.type.HasField('tensor_type') else 'a type that is no tensor'}",
            available=_DTYPES,
            next_step="export the model with inputs and outputs of these types",
        )
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in kind.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def free_dimensions(specs: tuple[TensorSpec, ...]) -> list[str]:
    """The names of all free dimensions, in the order in which they occur."""
    return list(dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str)))


_PASSES_ON = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Clip"})


def table_sizes(model: "onnx.ModelProto") -> Mapping[str, int]:
    """For inputs that are looked up in a table of constants (tokens in an embedding): how many rows the smallest of
    these tables has."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    origin = {value.name: value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PASSES_ON and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type != "Gather" or node.input[0] not in tensors or node.input[1] not in origin:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        name = origin[node.input[1]]
        rows = tensors[node.input[0]].dims[axis]
        sizes[name] = min(rows, sizes.get(name, rows))
    return sizes
