"""Parakeet once more, plainly, in float64 numpy: what its engines are checked against."""

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.recipe import Arrays
from aula.models.parakeet_config import NORM_EPSILON, ParakeetConfig

Float64 = NDArray[np.float64]


class ParakeetReference:
    """Takes and gives what the graph takes and gives; weights are loaded at the first call."""

    def __init__(self, config: ParakeetConfig, weights: Callable[[], Mapping[str, Float32]]) -> None:
        self._config = config
        self._load = weights
        self._weights: dict[str, Float64] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        x = self._subsampled(inputs["mel"].astype(np.float64)[..., None])
        if self._config.scale_input:
            x = x * sqrt(self._config.hidden_size)
        for layer in range(self._config.num_hidden_layers):
            x = self._block(x, f"encoder.layers.{layer}")
        logits = self._linear(x, "ctc_head")
        logits = logits - logits.max(axis=-1, keepdims=True)
        return {"logarithms": logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))}

    def _subsampled(self, x: Float64) -> Float64:
        """[rows, frames, bins, 1] to [rows, fewer frames, width]."""
        for place, (name, (_, _, size, _), strided) in enumerate(self._config.convolutions()):
            kernel, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
            if strided:
                edge = size // 2
                padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
                windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::2, ::2]
                # The first has one channel, which every kernel hears; the others hear each its own.
                heard = "rfbcij,cij->rfbc" if place else "rfboij,cij->rfbc"
                x = np.einsum(heard, windows, kernel[:, 0])
            else:
                x = x @ kernel[:, :, 0, 0].T
            x = x + bias
            if place == 0 or not strided:
                x = np.maximum(x, 0)
        rows, frames = x.shape[:2]
        return self._linear(x.transpose(0, 1, 3, 2).reshape(rows, frames, -1), "encoder.subsampling.linear")

    def _block(self, x: Float64, prefix: str) -> Float64:
        x = x + self._feed_forward(x, prefix, "feed_forward1") / 2
        x = x + self._attention(self._norm(x, f"{prefix}.norm_self_att"), f"{prefix}.self_attn")
        x = x + self._convolved(self._norm(x, f"{prefix}.norm_conv"), f"{prefix}.conv")
        x = x + self._feed_forward(x, prefix, "feed_forward2") / 2
        return self._norm(x, f"{prefix}.norm_out")

    def _feed_forward(self, x: Float64, prefix: str, name: str) -> Float64:
        inner = _silu(self._linear(self._norm(x, f"{prefix}.norm_{name}"), f"{prefix}.{name}.linear1"))
        return self._linear(inner, f"{prefix}.{name}.linear2")

    def _attention(self, x: Float64, prefix: str) -> Float64:
        rows, time, wide = x.shape
        heads, size = self._config.num_attention_heads, self._config.head_size
        query, key, value = (
            self._linear(x, f"{prefix}.{part}_proj").reshape(rows, time, heads, size) for part in "qkv"
        )
        distances = np.arange(1 - time, time)
        angles = distances[:, None] / 10000.0 ** (np.arange(0, wide, 2) / wide)
        placed = np.empty((len(distances), wide))
        placed[:, 0::2], placed[:, 1::2] = np.sin(angles), np.cos(angles)
        projected = (placed @ self._weights[f"{prefix}.relative_k_proj.weight"].T).reshape(-1, heads, size)
        by_content = np.einsum("rihd,rjhd->rhij", query + self._weights[f"{prefix}.bias_u"], key)
        by_distance = np.einsum("rihd,phd->rhip", query + self._weights[f"{prefix}.bias_v"], projected)
        # How far frame i lies behind frame j, as a place among the distances.
        places = np.arange(time)[:, None] - np.arange(time) + time - 1
        by_place = np.take_along_axis(by_distance, places[None, None], axis=-1)
        scores = (by_content + by_place) / sqrt(size)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = shares / shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("rhij,rjhd->rihd", shares, value).reshape(rows, time, wide)
        return self._linear(mixed, f"{prefix}.o_proj")

    def _convolved(self, x: Float64, prefix: str) -> Float64:
        value, gate = np.split(self._linear(x, f"{prefix}.pointwise_conv1"), 2, axis=-1)
        edge = self._config.conv_kernel_size // 2
        padded = np.pad(value * _sigmoid(gate), ((0, 0), (edge, edge), (0, 0)))
        windows = sliding_window_view(padded, self._config.conv_kernel_size, axis=1)
        x = np.einsum("rfci,ci->rfc", windows, self._weights[f"{prefix}.depthwise_conv.weight"][:, 0])
        x = x + self._weights[f"{prefix}.depthwise_conv.bias"] - self._weights[f"{prefix}.norm.running_mean"]
        x = x / np.sqrt(self._weights[f"{prefix}.norm.running_var"] + NORM_EPSILON)
        x = x * self._weights[f"{prefix}.norm.weight"] + self._weights[f"{prefix}.norm.bias"]
        return self._linear(_silu(x), f"{prefix}.pointwise_conv2")

    def _linear(self, x: Float64, name: str) -> Float64:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Float64, name: str) -> Float64:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON)
        result: Float64 = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return result


def _sigmoid(x: Float64) -> Float64:
    result: Float64 = (1 + np.tanh(x / 2)) / 2
    return result


def _silu(x: Float64) -> Float64:
    return x * _sigmoid(x)
