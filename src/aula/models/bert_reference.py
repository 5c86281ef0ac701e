"""BERT once more, plainly, in float64 numpy: what the engines are checked against."""

from collections.abc import Callable, Mapping
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.recipe import Arrays
from aula.models.bert_config import HIDDEN, SEQUENCE, TOKENS, BertConfig
from aula.models.bert_modules import Dense, SentenceModules

Float64 = NDArray[np.float64]


class BertReference:
    """Takes and gives what the graph takes and gives; weights are loaded at the first call."""

    def __init__(
        self,
        config: BertConfig,
        weights: Callable[[], Mapping[str, Float32]],
        modules: SentenceModules | None = None,
    ) -> None:
        """With `modules` a sentence encoder, without them the head of `config`."""
        self._config = config
        self._load = weights
        self._modules = modules
        self._weights: dict[str, Float64] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        if not self._weights:
            self._weights = {name: array.astype(np.float64) for name, array in self._load().items()}
        mask = inputs["attention_mask"]
        types = inputs.get("token_type_ids", np.zeros_like(mask))
        x = self._encode(inputs["input_ids"], mask, types)
        return self._head(x) if self._modules is None else {"embedding": self._sentence(x, mask, self._modules)}

    def _encode(self, tokens: NDArray[Any], mask: NDArray[Any], types: NDArray[Any]) -> Float64:
        x = self._weights["embeddings.word_embeddings.weight"][tokens]
        x = x + self._weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x = self._norm(x + self._weights["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
        for layer in range(self._config.num_hidden_layers):
            prefix = f"encoder.layer.{layer}"
            x = self._norm(x + self._attention(x, mask, f"{prefix}.attention"), f"{prefix}.attention.output.LayerNorm")
            inner = _ACTIVATIONS[self._config.activation](self._linear(x, f"{prefix}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
        return x

    def _head(self, x: Float64) -> Arrays:
        head = self._config.head
        if head == HIDDEN:
            return {"hidden": x} | ({"pooled": self._pooler(x)} if "pooler.dense.weight" in self._weights else {})
        if head == SEQUENCE:
            return {"logits": self._linear(self._pooler(x), "classifier")}
        if head == TOKENS:
            return {"logits": self._linear(x, "classifier")}
        span = self._linear(x, "qa_outputs")
        return {"start_logits": span[..., 0], "end_logits": span[..., 1]}

    def _pooler(self, x: Float64) -> Float64:
        pooled: Float64 = np.tanh(self._linear(x[:, 0], "pooler.dense"))
        return pooled

    def _sentence(self, x: Float64, mask: NDArray[Any], modules: SentenceModules) -> Float64:
        present = mask[:, :, None] == 1
        total, count = np.where(present, x, 0).sum(axis=1), present.sum(axis=1)
        pooled = {
            "cls": x[:, 0],
            "max": np.where(present, x, -np.inf).max(axis=1),
            "mean": total / count,
            "mean_sqrt_len_tokens": total / np.sqrt(count),
        }
        vector: Float64 = np.concatenate([pooled[name] for name in modules.poolings], axis=1)
        for step in modules.steps:
            if isinstance(step, Dense):
                weights = step.weights()
                vector = vector @ weights["linear.weight"].T.astype(np.float64) + weights.get("linear.bias", 0)
                vector = np.tanh(vector) if step.activation == "tanh" else vector
            else:
                vector = vector / np.linalg.norm(vector, axis=1, keepdims=True)
        return vector

    def _linear(self, x: Float64, name: str) -> Float64:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Float64, name: str) -> Float64:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + self._config.layer_norm_eps)
        normed: Float64 = scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed

    def _attention(self, x: Float64, mask: NDArray[Any], prefix: str) -> Float64:
        batch, length, hidden = x.shape
        heads = self._config.num_attention_heads

        def split(name: str) -> Float64:
            return self._linear(x, f"{prefix}.self.{name}").reshape(batch, length, heads, -1).swapaxes(1, 2)

        scores = split("query") @ split("key").swapaxes(2, 3) / sqrt(hidden // heads)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ split("value")
        return self._linear(mixed.swapaxes(1, 2).reshape(batch, length, hidden), f"{prefix}.output.dense")


def _gelu(x: Float64) -> Float64:
    return 0.5 * x * (1 + _erf(x / sqrt(2)))


def _gelu_tanh(x: Float64) -> Float64:
    """Hendrycks & Gimpel 2016 (arXiv:1606.08415), section 2."""
    curve: Float64 = 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return curve


def _relu(x: Float64) -> Float64:
    return np.maximum(x, 0.0)


_ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {"gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu}


def _erf(x: Float64) -> Float64:
    """The error function by Abramowitz & Stegun 7.1.26; |error| <= 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    magnitude: Float64 = 1 - poly * np.exp(-(x**2))
    return np.sign(x) * magnitude
