"""The recogniser once more, plainly, in float64 numpy: what its engines are checked against."""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.recipe import Arrays
from aula.models.ctc_config import CtcConfig
from aula.models.graph_writer import EPSILON

Float64 = NDArray[np.float64]


class CtcReference:
    """Takes and gives what the graph takes and gives; weights are loaded at the first call."""

    def __init__(self, config: CtcConfig, weights: Callable[[], Mapping[str, Float32]]) -> None:
        self._config = config
        self._load = weights
        self._weights: dict[str, Float64] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        config, weights = self._config, self._weights
        mel = (inputs["mel"] - weights["mean"]) * weights["scale"]
        mel = np.concatenate((inputs["mel_before"], mel), axis=1)
        rows = silu(_strided(mel[:, None], weights["subsample.first.weight"], weights["subsample.first.bias"], False))
        rows = np.concatenate((inputs["row_before"], rows), axis=2)
        x = _strided(rows, weights["subsample.depth.weight"], weights["subsample.depth.bias"], True)
        x = np.einsum("bctf,dc->bdtf", x, weights["subsample.point.weight"][:, :, 0, 0])
        x = silu(x + weights["subsample.point.bias"][:, None, None])
        x = self._linear(x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1), "subsample.out")

        kept, near, said = [], [], 0
        for block in range(config.blocks):
            before = inputs["kept"][:, 2 * block : 2 * block + 2]
            x, keys, frames = self._block(x, f"blocks.{block}", before, inputs["near"][:, block], inputs["heard"])
            kept.append(keys)
            near.append(frames)
            if block + 1 in config.said_after:
                x = x + self._linear(np.exp(self._says(x, said)), "feedback")
                said += 1
        return {
            "logarithms": self._says(x, said),
            "mel_before_next": mel[:, -1:],
            "row_before_next": rows[:, :, -1:],
            "kept_next": np.concatenate(kept, axis=1),
            "near_next": np.stack(near, axis=1),
            "heard_next": np.minimum(inputs["heard"] + x.shape[1], config.left),
        }

    def _block(
        self, x: Float64, prefix: str, before: NDArray[Any], near: NDArray[Any], heard: NDArray[Any]
    ) -> tuple[Float64, Float64, Float64]:
        x = x + 0.5 * self._feed_forward(x, f"{prefix}.feed_in")
        mixed, keys = self._attention(x, f"{prefix}.attend", before, heard)
        x = x + mixed
        convolved, frames = self._convolved(x, f"{prefix}.convolve", near)
        x = x + convolved
        x = x + 0.5 * self._feed_forward(x, f"{prefix}.feed_out")
        return self._norm(x, f"{prefix}.norm"), keys, frames

    def _feed_forward(self, x: Float64, prefix: str) -> Float64:
        return self._linear(silu(self._linear(self._norm(x, f"{prefix}.norm"), f"{prefix}.widen")), f"{prefix}.narrow")

    def _attention(self, x: Float64, prefix: str, before: NDArray[Any], heard: NDArray[Any]) -> tuple[Float64, Float64]:
        heads, size, left = self._config.heads, self._config.head_size, self._config.left
        batch, time, wide = x.shape
        fused = self._linear(self._norm(x, f"{prefix}.norm"), f"{prefix}.qkv")
        query, key, value = fused.reshape(batch, time, 3, heads, size).transpose(2, 0, 3, 1, 4)
        key = np.concatenate((before[:, 0], key), axis=2)
        value = np.concatenate((before[:, 1], value), axis=2)
        scores = turned(query, left) @ turned(key, 0).swapaxes(2, 3) / sqrt(size)
        # Of what is kept only the last `heard` frames were ever there.
        there = np.arange(left + time) >= left - heard[:, None]
        scores = np.where(there[:, None, None], scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ value
        kept = np.stack((key[:, :, -left:], value[:, :, -left:]), axis=1)
        return self._linear(mixed.transpose(0, 2, 1, 3).reshape(batch, time, wide), f"{prefix}.out"), kept

    def _convolved(self, x: Float64, prefix: str, near: NDArray[Any]) -> tuple[Float64, Float64]:
        value, gate = np.split(self._linear(self._norm(x, f"{prefix}.norm"), f"{prefix}.gate"), 2, axis=2)
        x = np.concatenate((near, (value * sigmoid(gate)).transpose(0, 2, 1)), axis=2)
        kernel = self._weights[f"{prefix}.depth.weight"][:, 0]
        windows = sliding_window_view(x, kernel.shape[1], axis=2)
        y = np.einsum("bwtk,wk->btw", windows, kernel) + self._weights[f"{prefix}.depth.bias"]
        return self._linear(silu(self._norm(y, f"{prefix}.middle")), f"{prefix}.out"), x[:, :, 1 - kernel.shape[1] :]

    def _says(self, x: Float64, which: int) -> Float64:
        logits = self._linear(self._norm(x, f"says.{which}"), "output")
        logits = logits - logits.max(axis=-1, keepdims=True)
        result: Float64 = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return result

    def _linear(self, x: Float64, name: str) -> Float64:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Float64, name: str) -> Float64:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        result: Float64 = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return result


def sigmoid(x: Float64) -> Float64:
    result: Float64 = 1 / (1 + np.exp(-x))
    return result


def silu(x: Float64) -> Float64:
    return x * sigmoid(x)


def turned(x: Float64, first: int) -> Float64:
    """[..., time, size]: each pair (of the first half, of the second) turned by its position's angle."""
    size = x.shape[-1]
    angles = (first + np.arange(x.shape[-2]))[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    one, other = np.split(x, 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate((one * cosine - other * sine, one * sine + other * cosine), axis=-1)


def _strided(x: Float64, kernel: Float64, bias: Float64, each: bool) -> Float64:
    """3 x 3 by steps of 2, a row of silence below the lowest frequency; `each` channel by itself, or one to many."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    pattern = "bctfij,cij->bctf" if each else "bztfij,cij->bctf"
    result: Float64 = np.einsum(pattern, windows, kernel[:, 0]) + bias[:, None, None]
    return result
