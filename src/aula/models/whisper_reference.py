"""Whisper once more, plainly, in float64 numpy: the engines' measure. It shares nothing with the graphs."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.recipe import Arrays
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import suppression

Float64 = NDArray[np.float64]

_error_function = np.frompyfunc(math.erf, 1, 1)


class WhisperReference:
    """`load` gives the weights when they are first needed."""

    def __init__(self, config: WhisperConfig, load: Callable[[], Mapping[str, Float32]]) -> None:
        self._config = config
        self._load = load
        self._loaded: dict[str, Float64] = {}

    def encode(self, inputs: Arrays) -> Arrays:
        """The encoder graph's outputs."""
        x = inputs["mel"].astype(np.float64)
        x = _gelu(self._convolve(x, "encoder.conv1", 1))
        x = _gelu(self._convolve(x, "encoder.conv2", 2)).swapaxes(1, 2)
        x = x + self._weight("encoder.embed_positions.weight")[: x.shape[1]]
        for layer in range(self._config.encoder_layers):
            name = f"encoder.layers.{layer}"
            y = self._norm(x, f"{name}.self_attn_layer_norm")
            heads = self._config.encoder_attention_heads
            query, key, value = (self._heads(y, f"{name}.self_attn.{part}_proj", heads) for part in "qkv")
            x = x + self._attend(query, key, value, None, f"{name}.self_attn")
            x = x + self._inner(x, name)
        x = self._norm(x, "encoder.layer_norm")
        outputs: Arrays = {"hidden": x}
        for layer in range(self._config.decoder_layers):
            for part in "kv":
                name = f"decoder.layers.{layer}.encoder_attn.{part}_proj"
                outputs[f"cross_{part}.{layer}"] = self._heads(x, name, self._config.decoder_attention_heads)
        return outputs

    def decode(self, inputs: Arrays) -> Arrays:
        """The decoder graph's outputs, one row at a time, with only what the row may see."""
        rows = [
            self._decode_row({name: array[row] for name, array in inputs.items()})
            for row in range(len(inputs["tokens"]))
        ]
        return {name: np.stack([row[name] for row in rows], axis=name == "new") for name in rows[0]}

    def greedy(
        self, mel: Float32, prompt: Sequence[int], rules: Callable[[int], NDArray[np.bool_]], tokens: int
    ) -> list[int]:
        """Tokens after `prompt` for a mel [bins, frames], the whole text computed anew for each.

        `rules(i)` marks, as bool [vocab_size], what the i-th must not be.
        """
        made = {name: array[0] for name, array in self.encode({"mel": mel[None]}).items()}
        text = list(prompt)
        empty = np.zeros((self._config.decoder_attention_heads, 0, self._config.head_size))
        past = {f"past_{part}.{layer}": empty for part in "kv" for layer in range(self._config.decoder_layers)}
        for step in range(tokens):
            logits = self._logits(np.array(text), 0, {**made, **past}, [])[-1]
            text.append(int(np.where(rules(step), -np.inf, logits).argmax()))
        return text[len(prompt) :]

    def _decode_row(self, row: Arrays) -> Arrays:
        position, heard = int(row["position"]), int(row["heard"])
        seen = {name: array[:, :position] for name, array in row.items() if name.startswith("past")}
        seen |= {name: array[:, :heard] for name, array in row.items() if name.startswith("cross")}
        new: list[Float64] = []
        logits = self._logits(row["tokens"], position, seen, new)[row["places"]]
        allowed = logits + suppression(self._config)[row["rule"]]
        shares = np.exp(allowed - allowed.max(axis=1, keepdims=True))
        return {
            "next": allowed.argmax(axis=1),
            "logprob": -np.log(shares.sum(axis=1)),
            "logits": logits,
            "new": np.stack(new),
        }

    def _logits(self, tokens: NDArray[np.int64], position: int, seen: Arrays, new: list[Float64]) -> Float64:
        """float64 [tokens, vocabulary]; adds to `new` the tokens' own keys and values of each layer."""
        heads = self._config.decoder_attention_heads
        count = len(tokens)
        embedding = self._weight("decoder.embed_tokens.weight")
        x = embedding[tokens] + self._weight("decoder.embed_positions.weight")[position : position + count]
        future = np.arange(position + count)[None] > np.arange(position, position + count)[:, None]
        for layer in range(self._config.decoder_layers):
            name = f"decoder.layers.{layer}"
            y = self._norm(x, f"{name}.self_attn_layer_norm")
            query, key, value = (self._heads(y, f"{name}.self_attn.{part}_proj", heads) for part in "qkv")
            new += [key, value]
            key = np.concatenate([seen[f"past_k.{layer}"], key], axis=1)
            value = np.concatenate([seen[f"past_v.{layer}"], value], axis=1)
            x = x + self._attend(query, key, value, future, f"{name}.self_attn")
            y = self._norm(x, f"{name}.encoder_attn_layer_norm")
            query = self._heads(y, f"{name}.encoder_attn.q_proj", heads)
            key, value = seen[f"cross_k.{layer}"], seen[f"cross_v.{layer}"]
            x = x + self._attend(query, key, value, None, f"{name}.encoder_attn")
            x = x + self._inner(x, name)
        logits: Float64 = self._norm(x, "decoder.layer_norm") @ embedding.T
        return logits

    def _weight(self, name: str) -> Float64:
        if not self._loaded:
            self._loaded = {name: array.astype(np.float64) for name, array in self._load().items()}
        return self._loaded[name]

    def _linear(self, x: Float64, name: str) -> Float64:
        product: Float64 = x @ self._weight(f"{name}.weight").T
        return product if name.endswith("k_proj") else product + self._weight(f"{name}.bias")

    def _norm(self, x: Float64, name: str) -> Float64:
        mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        normed: Float64 = (x - mean) / np.sqrt(variance + 1e-5)
        return normed * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")

    def _inner(self, x: Float64, name: str) -> Float64:
        y = _gelu(self._linear(self._norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        return self._linear(y, f"{name}.fc2")

    def _heads(self, x: Float64, name: str, heads: int) -> Float64:
        """[..., n, heads * size] to [..., heads, n, size]."""
        y = self._linear(x, name)
        return y.reshape(*y.shape[:-1], heads, -1).swapaxes(-2, -3)

    def _attend(
        self, query: Float64, key: Float64, value: Float64, hidden: NDArray[np.bool_] | None, name: str
    ) -> Float64:
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
        if hidden is not None:
            scores = np.where(hidden, -np.inf, scores)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True) @ value).swapaxes(-2, -3)
        return self._linear(mixed.reshape(*mixed.shape[:-2], -1), f"{name}.out_proj")

    def _convolve(self, x: Float64, name: str, stride: int) -> Float64:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=2)[:, :, ::stride]
        product: Float64 = np.einsum("bctk,ock->bot", windows, self._weight(f"{name}.weight"), optimize=True)
        return product + self._weight(f"{name}.bias")[:, None]


def _gelu(x: Float64) -> Float64:
    return 0.5 * x * (1 + np.asarray(_error_function(x / math.sqrt(2)), dtype=np.float64))
