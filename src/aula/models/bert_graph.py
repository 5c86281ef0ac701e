"""BERT as an ONNX graph with typed construction: encoder, then a head or a sentence encoder's modules.

Architecture: Devlin et al. 2018 (arXiv:1810.04805), a post-norm encoder.
"""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.graph import bind_weights
from aula.models.bert_config import HIDDEN, SEQUENCE, TOKENS, BertConfig
from aula.models.bert_modules import Dense, SentenceModules

if TYPE_CHECKING:
    import onnx

Weights = Mapping[str, Float32]


def write_model(config: BertConfig, weights: Weights) -> "onnx.ModelProto":
    """input_ids, attention_mask and token_type_ids, int64 [batch, sequence], to what the head says, float32:

    hidden states `hidden` [batch, sequence, hidden], and `pooled` [batch, hidden] if `weights` has the pooler's;
    `logits` [batch, labels] of a text or [batch, sequence, labels] of its tokens; for an answer's span
    `start_logits` and `end_logits` [batch, sequence].
    """
    writer = _Writer(config, weights)
    op = writer.op
    types = writer.tokens_argument()
    table = "embeddings.token_type_embeddings.weight"
    x = writer.encode(
        weights["embeddings.position_embeddings.weight"],
        lambda words: op.add(words, op.gather(writer.weight(table, weights[table]), types)),
    )
    outputs = _head(writer, x)
    return writer.model({"token_type_ids": types}, outputs)


def write_sentence_encoder(config: BertConfig, weights: Weights, modules: SentenceModules) -> "onnx.ModelProto":
    """input_ids and attention_mask, int64 [batch, sequence], to `embedding`, float32 [batch, dimensions]."""
    writer = _Writer(config, weights)
    op = writer.op
    # A sentence encoder sees one segment, so its type embedding is part of the positions.
    x = writer.encode(
        weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    pooled = [_pooled(writer, x, pooling) for pooling in modules.poolings]
    vector = pooled[0] if len(pooled) == 1 else op.concat(pooled, axis=-1)
    for number, step in enumerate(modules.steps):
        if isinstance(step, Dense):
            vector = _dense(writer, vector, step, f"dense.{number}")
        else:
            squares = op.reduce_sum(op.mul(vector, vector), writer.shape(1), keepdims=True)
            vector = op.div(vector, op.sqrt(squares))
    return writer.model({}, {"embedding": vector})


def _head(writer: "_Writer", x: Any) -> dict[str, Any]:
    op, head = writer.op, writer.config.head
    if head == HIDDEN:
        return {"hidden": x} | ({"pooled": _pooler(writer, x)} if "pooler.dense.weight" in writer.weights else {})
    if head == SEQUENCE:
        return {"logits": writer.linear(_pooler(writer, x), "classifier")}
    if head == TOKENS:
        return {"logits": writer.linear(x, "classifier")}
    start, end = op.split(writer.linear(x, "qa_outputs"), num_outputs=2, axis=-1)
    return {"start_logits": op.squeeze(start, writer.shape(2)), "end_logits": op.squeeze(end, writer.shape(2))}


def _first(writer: "_Writer", x: Any) -> Any:
    return writer.op.gather(x, writer.constant(np.array(0, dtype=np.int64)), axis=1)


def _pooler(writer: "_Writer", x: Any) -> Any:
    return writer.op.tanh(writer.linear(_first(writer, x), "pooler.dense"))


def _pooled(writer: "_Writer", x: Any, pooling: str) -> Any:
    op, shape = writer.op, writer.shape
    if pooling == "cls":
        return _first(writer, x)
    present = op.unsqueeze(writer.present, shape(2))
    if pooling == "max":
        absent = op.sub(writer.constant(np.float32(1)), present)
        lowered = op.sub(op.mul(x, present), op.mul(absent, writer.constant(np.float32(1e9))))
        return op.reduce_max(lowered, shape(1), keepdims=False)
    summed = op.reduce_sum(op.mul(x, present), shape(1), keepdims=False)
    count = op.reduce_sum(writer.present, shape(1), keepdims=True)
    return op.div(summed, count if pooling == "mean" else op.sqrt(count))


def _dense(writer: "_Writer", x: Any, step: Dense, name: str) -> Any:
    weights = step.weights()
    x = writer.op.matmul(x, writer.weight(f"{name}.weight", weights["linear.weight"].T))
    if step.bias:
        x = writer.op.add(x, writer.weight(f"{name}.bias", weights["linear.bias"]))
    return writer.op.tanh(x) if step.activation == "tanh" else x


class _Writer:
    """The encoder, and what all that stands on it needs."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        import spox.opset.ai.onnx.v20 as op

        self.op: Any = op
        self.config = config
        self.weights = weights
        self._bound: dict[str, NDArray[Any]] = {}
        self._arguments: dict[str, Any] = {}
        self._tokens, self._mask = self.tokens_argument(), self.tokens_argument()
        self.present = op.cast(self._mask, to=np.float32)

    def encode(self, positions: Float32, typed: Any = lambda words: words) -> Any:
        """Hidden states; `positions` float32 [positions, hidden]."""
        op, config = self.op, self.config
        # Far below any score, yet finite, so that a row that is all padding stays a number.
        penalty = op.mul(op.sub(self.constant(np.float32(1)), self.present), self.constant(np.float32(-1e4)))
        penalty = op.unsqueeze(penalty, self.shape(1, 2))
        length = op.gather(op.shape(self._tokens), self.constant(np.array([1], dtype=np.int64)))
        placed = op.slice(self.weight("embeddings.positions", positions), self.shape(0), length, self.shape(0))
        vocabulary = "embeddings.word_embeddings.weight"
        words = op.gather(self.weight(vocabulary, self.weights[vocabulary]), self._tokens)
        x = self._norm(op.add(typed(words), placed), "embeddings.LayerNorm")
        for layer in range(config.num_hidden_layers):
            prefix = f"encoder.layer.{layer}"
            attended = self._attention(x, f"{prefix}.attention", penalty)
            x = self._norm(op.add(x, attended), f"{prefix}.attention.output.LayerNorm")
            inner = self._activate(self.linear(x, f"{prefix}.intermediate.dense"))
            x = self._norm(op.add(x, self.linear(inner, f"{prefix}.output.dense")), f"{prefix}.output.LayerNorm")
        return x

    def model(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "onnx.ModelProto":
        import spox

        named = {"input_ids": self._tokens, "attention_mask": self._mask, **inputs, **self._arguments}
        return bind_weights(spox.build(named, dict(outputs)), self._bound)

    def tokens_argument(self) -> Any:
        import spox

        return spox.argument(spox.Tensor(np.int64, ("batch", "sequence")))

    def constant(self, array: Any) -> Any:
        return self.op.constant(value=array)

    def shape(self, *sizes: int) -> Any:
        return self.constant(np.array(sizes, dtype=np.int64))

    def weight(self, name: str, array: NDArray[Any]) -> Any:
        import spox

        self._bound[name] = np.ascontiguousarray(array)
        return self._arguments.setdefault(name, spox.argument(spox.Tensor(array.dtype, array.shape)))

    def linear(self, x: Any, *names: str) -> Any:
        """One matrix product for all of `names`, side by side."""
        kernel = np.concatenate([self.weights[f"{name}.weight"] for name in names]).T
        bias = np.concatenate([self.weights[f"{name}.bias"] for name in names])
        product = self.op.matmul(x, self.weight(f"{names[0]}.weight", kernel))
        return self.op.add(product, self.weight(f"{names[0]}.bias", bias))

    def _norm(self, x: Any, name: str) -> Any:
        scale = self.weight(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.weight(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.op.layer_normalization(x, scale, bias, axis=-1, epsilon=self.config.layer_norm_eps)[0]

    def _activate(self, x: Any) -> Any:
        if self.config.activation == "relu":
            return self.op.relu(x)
        return self.op.gelu(x, approximate="tanh") if self.config.activation == "gelu_tanh" else self.op.gelu(x)

    def _attention(self, x: Any, prefix: str, mask: Any) -> Any:
        op, heads = self.op, self.config.num_attention_heads
        size = self.config.hidden_size // heads
        fused = self.linear(x, *(f"{prefix}.self.{part}" for part in ("query", "key", "value")))
        parts = op.split(op.reshape(fused, self.shape(0, 0, 3 * heads, size)), num_outputs=3, axis=2)
        query, key, value = (op.transpose(part, perm=[0, 2, 1, 3]) for part in parts)
        scores = op.matmul(query, op.transpose(key, perm=[0, 1, 3, 2]))
        scores = op.add(op.mul(scores, self.constant(np.float32(1 / sqrt(size)))), mask)
        mixed = op.matmul(op.softmax(scores, axis=-1), value)
        mixed = op.reshape(op.transpose(mixed, perm=[0, 2, 1, 3]), self.shape(0, 0, self.config.hidden_size))
        return self.linear(mixed, f"{prefix}.output.dense")
