"""Wav2Vec2 once more, plainly, in float64 numpy: what its engines are checked against."""

import math
from collections.abc import Callable, Mapping
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.recipe import Arrays

if TYPE_CHECKING:
    from aula.models.wav2vec2 import Wav2Vec2Config

Float64 = NDArray[np.float64]


class Wav2Vec2Reference:
    """Takes and gives what the graph takes and gives; weights are loaded at the first call."""

    def __init__(self, config: "Wav2Vec2Config", weights: Callable[[], Mapping[str, Float32]]) -> None:
        self._config = config
        self._load = weights
        self._weights: dict[str, Float64] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        config = self._config
        x = self._listened(inputs["sound"].astype(np.float64)[:, :, None])
        x = self._norm(x, "wav2vec2.feature_projection.layer_norm", config.epsilon)
        x = self._linear(x, "wav2vec2.feature_projection.projection")
        x = x + self._placed(x)
        if not config.stable:
            x = self._norm(x, "wav2vec2.encoder.layer_norm", config.epsilon)
        for layer in range(config.num_hidden_layers):
            x = self._layer(x, f"wav2vec2.encoder.layers.{layer}")
        if config.stable:
            x = self._norm(x, "wav2vec2.encoder.layer_norm", config.epsilon)
        logits = self._linear(x, "lm_head")
        logits = logits - logits.max(axis=-1, keepdims=True)
        return {"logarithms": logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))}

    def _listened(self, x: Float64) -> Float64:
        """[rows, samples, 1] to [rows, frames, width]."""
        config = self._config
        for layer, (kernel, stride) in enumerate(zip(config.conv_kernel, config.conv_stride, strict=True)):
            prefix = f"wav2vec2.feature_extractor.conv_layers.{layer}"
            windows = sliding_window_view(x, kernel, axis=1)[:, ::stride]
            x = np.tensordot(windows, self._weights[f"{prefix}.conv.weight"], axes=([2, 3], [1, 2]))
            if config.conv_bias:
                x = x + self._weights[f"{prefix}.conv.bias"]
            if config.norm_each:
                x = self._norm(x, f"{prefix}.layer_norm", 1e-5)
            elif layer == 0:
                centred = x - x.mean(axis=1, keepdims=True)
                x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
                x = x * self._weights[f"{prefix}.layer_norm.weight"] + self._weights[f"{prefix}.layer_norm.bias"]
            x = gelu(x)
        return x

    def _placed(self, x: Float64) -> Float64:
        config = self._config
        size, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        kernel = self._weights["wav2vec2.encoder.pos_conv_embed.conv.weight"]
        padded = np.pad(x, ((0, 0), (size // 2, size // 2 - (1 - size % 2)), (0, 0)))
        windows = sliding_window_view(padded, size, axis=1)
        made = [
            np.tensordot(given, weight, axes=([2, 3], [1, 2]))
            for given, weight in zip(np.split(windows, groups, axis=2), np.split(kernel, groups), strict=True)
        ]
        return gelu(np.concatenate(made, axis=2) + self._weights["wav2vec2.encoder.pos_conv_embed.conv.bias"])

    def _layer(self, x: Float64, prefix: str) -> Float64:
        epsilon = self._config.epsilon
        if self._config.stable:
            x = x + self._attention(self._norm(x, f"{prefix}.layer_norm", epsilon), f"{prefix}.attention")
            return x + self._feed_forward(self._norm(x, f"{prefix}.final_layer_norm", epsilon), prefix)
        x = self._norm(x + self._attention(x, f"{prefix}.attention"), f"{prefix}.layer_norm", epsilon)
        return self._norm(x + self._feed_forward(x, prefix), f"{prefix}.final_layer_norm", epsilon)

    def _feed_forward(self, x: Float64, prefix: str) -> Float64:
        inner = gelu(self._linear(x, f"{prefix}.feed_forward.intermediate_dense"))
        return self._linear(inner, f"{prefix}.feed_forward.output_dense")

    def _attention(self, x: Float64, prefix: str) -> Float64:
        rows, time, wide = x.shape
        heads = self._config.num_attention_heads
        query, key, value = (
            self._linear(x, f"{prefix}.{part}_proj").reshape(rows, time, heads, -1).transpose(0, 2, 1, 3)
            for part in "qkv"
        )
        scores = query @ key.swapaxes(2, 3) / sqrt(wide // heads)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ value
        return self._linear(mixed.transpose(0, 2, 1, 3).reshape(rows, time, wide), f"{prefix}.out_proj")

    def _linear(self, x: Float64, name: str) -> Float64:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Float64, name: str, epsilon: float) -> Float64:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        result: Float64 = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return result


def gelu(x: Float64) -> Float64:
    result: Float64 = x * (1 + np.asarray(_error_function(x / sqrt(2)), np.float64)) / 2
    return result


_error_function = np.frompyfunc(math.erf, 1, 1)
