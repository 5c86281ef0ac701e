"""Which layers of an int8 graph go back into fp16 when TensorRT has no int8 kernel for one of them.

TensorRT names one layer and ends the build; the next build gets as far as the next such layer. Layers of one kind share
kernels, and so do their refusals: put back one at a time, EfficientNet-B0 alone took dozens of builds. So

- what is no dense product (depthwise and grouped convolutions, sums, products element by element) goes back as a whole
  kind when the first of it is refused: it moves bytes more than it multiplies, and gains least in int8;
- of dense products those that are named go back alone, since a kernel may miss for one width only; when a kind has been
  refused `PATIENCE` times, what is left of it goes back too.

A convolution's kind is its kernel, its steps, and what reads it: TensorRT fuses an activation into the convolution, and
it is for the two together that a kernel may be missing.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aula.engine.quantize import quantized_layers

if TYPE_CHECKING:
    import onnx

PATIENCE = 3
"""Refusals of a kind of dense products before all of it is put back."""
_DENSE = "dense"


class Restoring:
    """Of one quantised graph: what a refusal puts back. It remembers how often a kind was refused."""

    def __init__(self, quantised: "onnx.ModelProto") -> None:
        self._kinds = layer_kinds(quantised)
        self._refused: Counter[str] = Counter()

    def after(self, said: str, already: Sequence[str]) -> tuple[str, ...]:
        """The layers to put back after TensorRT's complaint `said`, besides those that are back `already`; () where it
        names none that is still quantised."""
        left = [name for name in self._kinds if name not in already]
        named = _named(left, said)
        kinds = {self._kinds[name] for name in named}
        self._refused.update(kinds)
        whole = {kind for kind in kinds if not kind.startswith(_DENSE) or self._refused[kind] >= PATIENCE}
        return tuple(name for name in left if name in named or self._kinds[name] in whole)


def layer_kinds(quantised: "onnx.ModelProto") -> dict[str, str]:
    """The kind of every quantised layer, by its name, in the graph's order."""
    layers = {name for name in quantized_layers(quantised) if name}
    channels = _input_channels(quantised)
    readers: dict[str, set[str]] = {}
    for node in quantised.graph.node:
        for value in node.input:
            readers.setdefault(value, set()).add(node.op_type)
    return {
        node.name: _kind(node, channels, readers.get(node.output[0], set()))
        for node in quantised.graph.node
        if node.name in layers
    }


def _kind(node: "onnx.NodeProto", channels: dict[str, int], readers: set[str]) -> str:
    import onnx

    if node.op_type != "Conv":
        return f"{_DENSE} {node.op_type}" if node.op_type in ("MatMul", "Gemm") else node.op_type
    said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups = said.get("group", 1)
    if groups > 1:
        return "depthwise Conv" if channels.get(node.input[1]) == 1 else "grouped Conv"
    shape = [said.get(name) for name in ("kernel_shape", "strides", "dilations")]
    return f"{_DENSE} Conv {shape} read by {', '.join(sorted(readers))}"


def _input_channels(model: "onnx.ModelProto") -> dict[str, int]:
    """How many channels each of a convolution's filters reads, by the name of the value that brings its weights."""
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found = {name: dims[1] for name, dims in stored.items() if len(dims) > 1}
    for node in model.graph.node:  # in order: a weight may pass through a pair
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _named(layers: Sequence[str], said: str) -> list[str]:
    said_of = [name for name in layers if name in said]
    # "product_1" names no "product"; but TensorRT also gives names endings of its own.
    whole = [name for name in said_of if re.search(rf"(?<![\w/])(?<!\w\.){re.escape(name)}(?![\w/]|\.\w)", said)]
    return whole or said_of
