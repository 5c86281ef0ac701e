"""Parakeet's ONNX graph (opset 20), written from its weights, for one sound a row and none of it filled up.

Choices that are this graph's own: what only positions decide (each layer's projection of them) is computed when the
graph is written, for the longest sound; batch norms are folded into the convolutions before them, and the scale of
attention into queries.
"""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.core.types import Float32
from aula.models.graph_writer import GraphWriter
from aula.models.parakeet_config import NORM_EPSILON, ParakeetConfig

if TYPE_CHECKING:
    import onnx


def write_parakeet(
    config: ParakeetConfig, weights: Mapping[str, Float32], longest: int, *, int8_weights: bool = False
) -> "onnx.ModelProto":
    """mel, float32 [rows, frames, bins] of at most `longest` frames, to logarithms, float32 [rows, frames, tokens],
    natural."""
    writer = _Parakeet(config, weights, int8_weights, config.frames(longest))
    op = writer.op
    mel = writer.input(np.float32, "rows", "frames", config.num_mel_bins)
    x = writer.subsampled(mel)
    writer.count(x)
    for layer in range(config.num_hidden_layers):
        x = writer.block(x, f"encoder.layers.{layer}")
    return writer.model({"mel": mel}, {"logarithms": op.log_softmax(writer.linear(x, "ctc_head"), axis=-1)})


class _Parakeet(GraphWriter):
    def __init__(
        self, config: ParakeetConfig, weights: Mapping[str, Float32], int8_weights: bool, longest: int
    ) -> None:
        super().__init__(weights, int8_weights, NORM_EPSILON)
        self.config, self.longest = config, longest
        self._placed = positions(longest, config.hidden_size)

    def subsampled(self, mel: Any) -> Any:
        op, config = self.op, self.config
        x = op.unsqueeze(mel, self.shape(1))
        for place, (name, (_, _, size, _), strided) in enumerate(config.convolutions()):
            x = op.conv(
                x,
                self.weight(f"{name}.weight"),
                self.weight(f"{name}.bias"),
                kernel_shape=[size, size],
                strides=[2, 2] if strided else [1, 1],
                pads=[size // 2] * 4,
                group=config.subsampling_conv_channels if strided and place else 1,
            )
            if not strided or not place:
                x = op.relu(x)
        flat = config.subsampling_conv_channels * config.num_mel_bins // config.subsampling_factor
        x = op.reshape(op.transpose(x, perm=[0, 2, 1, 3]), self.shape(0, -1, flat))
        return self.linear(x, "encoder.subsampling.linear", scale=sqrt(config.hidden_size) if config.scale_input else 1)

    def count(self, x: Any) -> None:
        """Of the frames, which every layer's positions need."""
        op = self.op
        self._frames = self.length(x, 1)
        self._first = op.sub(self.shape(self.longest), self._frames)
        self._behind = op.sub(op.add(self._frames, self.shape(self.longest)), self.shape(1))
        # [rows, heads, frames, 2 frames] read as rows of `frames`, and back as rows one shorter.
        self._turned = op.concat([self.shape(0, 0, -1), self._frames], axis=0)
        shorter = op.sub(op.add(self._frames, self._frames), self.shape(1))
        self._back = op.concat([self.shape(0, 0, -1), shorter], axis=0)

    def block(self, x: Any, prefix: str) -> Any:
        op, half = self.op, self.constant(np.float32(0.5))
        x = op.add(x, op.mul(half, self._feed_forward(x, prefix, "feed_forward1")))
        x = op.add(x, self._attention(self.norm(x, f"{prefix}.norm_self_att"), f"{prefix}.self_attn"))
        x = op.add(x, self._convolved(self.norm(x, f"{prefix}.norm_conv"), f"{prefix}.conv"))
        x = op.add(x, op.mul(half, self._feed_forward(x, prefix, "feed_forward2")))
        return self.norm(x, f"{prefix}.norm_out")

    def _feed_forward(self, x: Any, prefix: str, name: str) -> Any:
        inner = self.silu(self.linear(self.norm(x, f"{prefix}.norm_{name}"), f"{prefix}.{name}.linear1"))
        return self.linear(inner, f"{prefix}.{name}.linear2")

    def _attention(self, x: Any, prefix: str) -> Any:
        """With positions relative to each other (Dai et al. 2019, arXiv:1901.02860, section 3.3)."""
        op, config = self.op, self.config
        heads, size = config.num_attention_heads, config.head_size
        scale = 1 / sqrt(size)

        def split(name: str, scale: float = 1.0) -> Any:
            return op.reshape(self.linear(x, f"{prefix}.{name}_proj", scale=scale), self.shape(0, 0, heads, size))

        def query(name: str) -> Any:
            bias = self.bind(f"{prefix}.{name}", self.weights[f"{prefix}.{name}"] * np.float32(scale))
            return op.transpose(op.add(asked, bias), perm=[0, 2, 1, 3])

        asked = split("q", scale)
        by_content = op.matmul(query("bias_u"), op.transpose(split("k"), perm=[0, 2, 3, 1]))
        projected = self._placed @ self.weights[f"{prefix}.relative_k_proj.weight"].T
        table = self.bind(f"{prefix}.places", projected.reshape(-1, heads, size).transpose(1, 2, 0))
        places = op.slice(table, self._first, self._behind, self.shape(2))
        by_place = self._shifted(op.matmul(query("bias_v"), places))
        shares = op.softmax(op.add(by_content, by_place), axis=-1)
        mixed = op.transpose(op.matmul(shares, op.transpose(split("v"), perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
        return self.linear(op.reshape(mixed, self.shape(0, 0, config.hidden_size)), f"{prefix}.o_proj")

    def _shifted(self, scores: Any) -> Any:
        """[…, i, p], p counting distances from the largest down, to […, i, j] with the score of i - j: a zero before
        every row, and all rows read anew as rows of another length."""
        op = self.op
        padded = op.pad(scores, self.shape(0, 0, 0, 1, 0, 0, 0, 0))
        rows = op.slice(op.reshape(padded, self._turned), self.shape(1), self.shape(2**62), self.shape(2))
        return op.slice(op.reshape(rows, self._back), self.shape(0), self._frames, self.shape(3))

    def _convolved(self, x: Any, prefix: str) -> Any:
        op, wide, size = self.op, self.config.hidden_size, self.config.conv_kernel_size
        widened = self.linear(x, f"{prefix}.pointwise_conv1")
        value, gate = op.split(widened, num_outputs=2, axis=-1)
        kernel, bias = folded(self.weights, prefix)
        x = op.conv(
            op.transpose(op.mul(value, op.sigmoid(gate)), perm=[0, 2, 1]),
            self.bind(f"{prefix}.kernel", kernel),
            self.bind(f"{prefix}.bias", bias),
            kernel_shape=[size],
            pads=[size // 2, size // 2],
            group=wide,
        )
        return self.linear(op.transpose(self.silu(x), perm=[0, 2, 1]), f"{prefix}.pointwise_conv2")


def positions(longest: int, wide: int) -> Float32:
    """float32 [2 longest - 1, wide]: sines and cosines by turns, of distances from longest - 1 down."""
    speeds = 10000.0 ** (-np.arange(0, wide, 2) / wide)
    angles = np.arange(longest - 1, -longest, -1)[:, None] * speeds
    return np.stack((np.sin(angles), np.cos(angles)), axis=-1).reshape(len(angles), wide).astype(np.float32)


def folded(weights: Mapping[str, Float32], prefix: str) -> tuple[Float32, Float32]:
    """Kernel and bias of the convolution with the batch norm behind it."""
    scale = weights[f"{prefix}.norm.weight"] / np.sqrt(weights[f"{prefix}.norm.running_var"] + NORM_EPSILON)
    bias = weights[f"{prefix}.depthwise_conv.bias"] - weights[f"{prefix}.norm.running_mean"]
    kernel = (weights[f"{prefix}.depthwise_conv.weight"] * scale[:, None, None]).astype(np.float32)
    return kernel, (bias * scale + weights[f"{prefix}.norm.bias"]).astype(np.float32)
