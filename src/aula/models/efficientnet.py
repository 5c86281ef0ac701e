"""EfficientNet as an engine: a graph written from safetensors, and a plain reference to prove it by.

Architecture: Tan & Le 2019 (arXiv:1905.11946); the layers themselves are listed by efficientnet_layout.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.errors import CheckpointError
from aula.core.types import Float32, Licence
from aula.engine.graph import bind_weights
from aula.engine.recipe import Arrays, Calibration, Profile, Recipe, Size, Task
from aula.models.checkpoints import Checkpoint
from aula.models.efficientnet_layout import Block, Convolution, EfficientNetConfig, Network

if TYPE_CHECKING:
    import onnx

Float64 = NDArray[np.float64]

INPUT, OUTPUT = "pixel_values", "logits"


def efficientnet_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    calibration: Callable[[], Calibration] | None = None,
    task: Callable[[], Task] | None = None,
    licences: tuple[Licence, ...] = (),
) -> Recipe:
    """pixel_values, float32 [batch, 3, height, width] as ImagePreparation makes them, to logits, float32
    [batch, classes]. The height and width are those of config.json; the batch is free.

    Raises CheckpointError for another architecture; `write_graph` and `reference` raise it for damaged weights.
    """
    network = EfficientNetConfig.from_checkpoint(checkpoint).network()
    shapes = network.weight_shapes()

    def weights() -> dict[str, Float32]:
        return checkpoint.weights(shapes)

    return Recipe(
        name=name,
        revision=1,
        sources=(*checkpoint.weights_files, checkpoint.folder / "config.json"),
        write_graph=lambda: write_graph(network, weights()),
        example=lambda sizes, generator: _example(network, sizes, generator),
        reference=Reference(network, weights),
        profiles=(Profile("image", {"batch": Size(1, 1, 2)}), Profile("images", {"batch": Size(1, 8, 8)})),
        gpu_profiles=(Profile("image", {"batch": Size(1, 1, 1)}), Profile("images", {"batch": Size(1, 32, 32)})),
        rows="batch",
        transformer=False,
        calibration=calibration,
        task=task,
        licences=licences,
    )


def write_graph(network: Network, weights: Mapping[str, Float32]) -> "onnx.ModelProto":
    """One ONNX graph (opset 20) with batch normalisation folded into the convolutions.

    `weights` bears the checkpoint's names. A node with weights is named after its layer ("blocks.3.depthwise"),
    the others after the layer before them ("blocks.3.depthwise/Sigmoid"), so that passes can address them.
    """
    import spox
    import spox.opset.ai.onnx.v20 as op

    bound: dict[str, NDArray[Any]] = {}
    arguments: dict[str, Any] = {}

    def weight(name: str, array: Float32) -> Any:
        bound[name] = np.ascontiguousarray(array)
        return arguments.setdefault(name, spox.argument(spox.Tensor(array.dtype, array.shape)))

    def convolution(x: Any, layer: Convolution) -> Any:
        kernel, bias = _folded(layer, weights, network.epsilon)
        return op.conv(
            x,
            weight(f"{layer.name}.weight", kernel),
            weight(f"{layer.name}.bias", bias),
            kernel_shape=[layer.kernel, layer.kernel],
            strides=[layer.stride, layer.stride],
            pads=layer.pads,
            group=layer.inputs if layer.depthwise else 1,
        )

    def silu(x: Any) -> Any:
        # Both backends know this pair as one operator: OpenVINO as Swish, ONNX Runtime as QuickGelu with factor 1.
        return op.mul(x, op.sigmoid(x))

    def bottleneck(x: Any, block: Block) -> Any:
        inner = x if block.expand is None else silu(convolution(x, block.expand))
        inner = silu(convolution(inner, block.depthwise))
        squeezed = silu(convolution(op.global_average_pool(inner), block.squeeze))
        inner = op.mul(inner, op.sigmoid(convolution(squeezed, block.excite)))
        projected = convolution(inner, block.project)
        return op.add(projected, x) if block.residual else projected

    pixels = spox.argument(spox.Tensor(np.float32, ("batch", 3, network.height, network.width)))
    x = silu(convolution(pixels, network.stem))
    for block in network.blocks:
        x = bottleneck(x, block)
    x = silu(convolution(x, network.head))
    pooled = op.flatten(op.global_average_pool(x))
    kernel = weight("classifier.weight", weights["classifier.weight"])
    logits = op.gemm(pooled, kernel, weight("classifier.bias", weights["classifier.bias"]), transB=1)
    model = bind_weights(spox.build({INPUT: pixels, **arguments}, {OUTPUT: logits}), bound)
    _name_nodes(model)
    return model


def _folded(layer: Convolution, weights: Mapping[str, Float32], epsilon: float) -> tuple[Float32, Float32]:
    """Kernel and bias of `layer` with its batch normalisation inside, computed in float64."""
    kernel = weights[f"{layer.source}.weight"]
    if layer.norm is None:
        return kernel, weights[f"{layer.source}.bias"]
    gain, shift, mean, variance = (
        weights[f"{layer.norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    if not (variance + epsilon > 0).all():
        raise CheckpointError(
            f"tensor {layer.norm}.running_var holds a variance that is negative or no number",
            next_step="the weights are damaged or half trained: copy or download them again",
        )
    scale = gain / np.sqrt(variance + epsilon)
    folded = kernel.astype(np.float64) * scale[:, None, None, None]
    return folded.astype(np.float32), (shift - mean * scale).astype(np.float32)


def _name_nodes(model: "onnx.ModelProto") -> None:
    layer = INPUT
    for node in model.graph.node:
        own = [name.removesuffix(".weight") for name in node.input if name.endswith(".weight")]
        layer = own[0] if own else layer
        node.name = layer if own else f"{layer}/{node.op_type}"


class Reference:
    """The same network once more, plainly, in float64 numpy, batch normalisation unfolded."""

    def __init__(self, network: Network, weights: Callable[[], Mapping[str, Float32]]) -> None:
        self._network = network
        self._load = weights
        self._weights: dict[str, Float64] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        x = inputs["pixel_values"].astype(np.float64)
        x = _swish(self._layer(x, self._network.stem))
        for block in self._network.blocks:
            before = x
            if block.expand is not None:
                x = _swish(self._layer(x, block.expand))
            x = _swish(self._layer(x, block.depthwise))
            gate = _swish(self._layer(x.mean(axis=(2, 3), keepdims=True), block.squeeze))
            x = x * _sigmoid(self._layer(gate, block.excite))
            x = self._layer(x, block.project)
            if block.residual:
                x = x + before
        features = _swish(self._layer(x, self._network.head)).mean(axis=(2, 3))
        return {"logits": features @ self._weights["classifier.weight"].T + self._weights["classifier.bias"]}

    def _layer(self, x: Float64, layer: Convolution) -> Float64:
        top, left, bottom, right = layer.pads
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        kernel, step = self._weights[f"{layer.source}.weight"], layer.stride
        last_row, last_column = x.shape[2] - layer.kernel, x.shape[3] - layer.kernel
        total: Float64 | float = 0.0
        for row in range(layer.kernel):
            for column in range(layer.kernel):
                seen = x[:, :, row : row + last_row + 1 : step, column : column + last_column + 1 : step]
                tap = kernel[:, :, row, column]
                if layer.depthwise:
                    total = total + seen * tap[:, 0, None, None]
                else:
                    total = total + np.einsum("oc,nchw->nohw", tap, seen, optimize=True)
        if layer.norm is None:
            return total + self._weights[f"{layer.source}.bias"][:, None, None]
        gain, shift, mean, variance = (
            self._weights[f"{layer.norm}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (total - mean) / np.sqrt(variance + self._network.epsilon) * gain + shift


def _sigmoid(x: Float64) -> Float64:
    share: Float64 = 0.5 + 0.5 * np.tanh(0.5 * x)  # as 1 / (1 + exp(-x)) says, without its overflow
    return share


def _swish(x: Float64) -> Float64:
    return x * _sigmoid(x)


def _example(network: Network, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Noise of the spread that normalised images have."""
    shape = (sizes["batch"], 3, network.height, network.width)
    return {INPUT: generator.standard_normal(shape, dtype=np.float32)}
