"""Whisper's two ONNX graphs (opset 20), written from its weights.

Architecture: Radford et al. 2022 (arXiv:2212.04356), pre-norm encoder and decoder with exact GELU. Choices that decide
the speed, with the figures of whisper-small (int8 weights, one row, OpenVINO 2026.4 on 2 AVX-512 cores):

- Cross keys and values of all decoder layers leave the encoder graph, in the layout that attention reads.
- Query, key and value are one product in the decoder, which pays for every operator, and three in the encoder, where
  splitting the result would copy it: 4 ms of a 5 s encoding.
- One decoder graph, compiled once for all sizes, serves prompt, step and the checking of a draft. Compiled for one
  token of one row alone a step takes 1.2 ms less of 10, and the weights are held a second time.
- The decoder reads the slots of earlier tokens and returns only the new tokens' keys and values; its caller writes
  them into the slots, so that no runtime copies those. With 64 slots that is as fast as any way of writing inside the
  graph; with 448 a step takes 13 ms, against 15 with Concat and 22 with ScatterElements or ScatterND, whether or not
  the slots are runtime states (ReadValue and Assign).
- The softmax over slots and new tokens joins two small rows of scores, never two caches.
- Scores of cross attention are keys times query, and that turned: a runtime then reads the keys as they lie, where
  query times turned keys makes it turn 18 MB a step: 4 % of a step with 250 positions, 8 % with 1500.
- The new tokens' keys and values leave as one tensor: a caller pays for every tensor it takes.
- Logits leave the graph as well, for timestamps and sampling: 0.1 ms of a step. A prompt's tokens are not all answered:
  only those at `places` are multiplied with the vocabulary.
- The likeliest token is found by a maximum and a comparison, which are vectorised: 0.05 ms where ArgMax, run as a
  sort, takes 0.6.
"""

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32
from aula.engine.graph import bind_weights
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_tokens import NEVER, suppression

if TYPE_CHECKING:
    import onnx

EPSILON = 1e-5


class _Writer:
    """Operators that both graphs use, and the weights they bind."""

    def __init__(self, weights: Mapping[str, Float32], int8_weights: bool = False) -> None:
        import spox
        import spox.opset.ai.onnx.v20 as op

        self.spox, self.op = spox, op
        self.weights = weights
        self.int8_weights = int8_weights
        self._bound: dict[str, NDArray[Any]] = {}
        self._arguments: dict[str, Any] = {}

    def model(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> "onnx.ModelProto":
        return bind_weights(self.spox.build({**inputs, **self._arguments}, outputs), self._bound)

    def input(self, dtype: Any, *shape: int | str) -> Any:
        return self.spox.argument(self.spox.Tensor(dtype, shape))

    def constant(self, array: Any) -> Any:
        return self.op.constant(value=np.asarray(array))

    def shape(self, *sizes: int) -> Any:
        return self.constant(np.array(sizes, dtype=np.int64))

    def bind(self, name: str, array: NDArray[Any]) -> Any:
        if name not in self._arguments:
            self._bound[name] = np.ascontiguousarray(array)
            self._arguments[name] = self.input(array.dtype, *array.shape)
        return self._arguments[name]

    def weight(self, name: str) -> Any:
        return self.bind(name, self.weights[name])

    def kernel(self, name: str, array: Float32) -> Any:
        """A matrix [in, out]; with int8 weights, rounded per column, symmetric: scale = largest / 127."""
        if not self.int8_weights:
            return self.bind(name, array)
        rounded, scale = round_int8(array, axis=0)
        return self.op.dequantize_linear(self.bind(name, rounded), self.bind(f"{name}.scale", scale[0]), axis=1)

    def linear(self, x: Any, *names: str, scale: float = 1.0) -> Any:
        """One matrix product for all of `names`, side by side; `scale` multiplies the first of them."""
        factors = [scale, *[1.0] * (len(names) - 1)]
        kernels = [
            self.weights[f"{name}.weight"] * np.float32(factor) for name, factor in zip(names, factors, strict=True)
        ]
        biases = [
            self.weights[f"{name}.bias"] * np.float32(factor)
            if f"{name}.bias" in self.weights
            else np.zeros(len(kernel), dtype=np.float32)
            for name, factor, kernel in zip(names, factors, kernels, strict=True)
        ]
        product = self.op.matmul(x, self.kernel(f"{names[0]}.weight", np.concatenate(kernels).T))
        return self.op.add(product, self.bind(f"{names[0]}.bias", np.concatenate(biases)))

    def norm(self, x: Any, name: str) -> Any:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op.layer_normalization(x, scale, bias, axis=-1, epsilon=EPSILON)[0]

    def feed_forward(self, x: Any, prefix: str) -> Any:
        inner = self.op.gelu(self.linear(self.norm(x, f"{prefix}.final_layer_norm"), f"{prefix}.fc1"))
        return self.op.add(x, self.linear(inner, f"{prefix}.fc2"))

    def heads(self, x: Any, count: int, size: int) -> Any:
        """[rows, n, count * size] to [rows, count, n, size]."""
        return self.op.transpose(self.op.reshape(x, self.shape(0, 0, count, size)), perm=[0, 2, 1, 3])

    def split_heads(self, x: Any, parts: int, count: int, size: int) -> Any:
        """[rows, n, parts * count * size] to `parts` times [rows, count, n, size]."""
        split = self.op.split(self.op.reshape(x, self.shape(0, 0, parts * count, size)), num_outputs=parts, axis=2)
        return [self.op.transpose(part, perm=[0, 2, 1, 3]) for part in split]

    def merge(self, x: Any, hidden: int) -> Any:
        return self.op.reshape(self.op.transpose(x, perm=[0, 2, 1, 3]), self.shape(0, 0, hidden))

    def scores(self, query: Any, key: Any, mask: Any = None) -> Any:
        product = self.op.matmul(query, self.op.transpose(key, perm=[0, 1, 3, 2]))
        return product if mask is None else self.op.add(product, mask)

    def scores_of_keys(self, query: Any, key: Any, mask: Any) -> Any:
        """The same without turning `key`, for few queries and many keys."""
        turned = self.op.matmul(key, self.op.transpose(query, perm=[0, 1, 3, 2]))
        return self.op.add(self.op.transpose(turned, perm=[0, 1, 3, 2]), mask)

    def length(self, x: Any, axis: int) -> Any:
        """The size of one axis, int64 [1]."""
        return self.op.gather(self.op.shape(x), self.shape(axis))

    def count(self, length: Any) -> Any:
        """0, 1, … length - 1, int64, from a length [1]."""
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        return self.op.range(zero, self.op.squeeze(length, self.shape(0)), one)

    def forbid(self, allowed: Any) -> Any:
        """bool to a float mask: 0 where true."""
        return self.op.where(allowed, self.constant(np.float32(0)), self.constant(np.float32(NEVER)))


def write_encoder(config: WhisperConfig, weights: Mapping[str, Float32], *, stacked: bool = False) -> "onnx.ModelProto":
    """mel, float32 [rows, bins, frames] (frames even, up to 2 * max_source_positions), to hidden, float32 [rows,
    positions, d_model], and cross_k.I, cross_v.I of every decoder layer, float32 [rows, heads, positions, size];
    stacked those of all layers in one, cross_k and cross_v, float32 [layers, rows, heads, positions, size].
    """
    w = _Writer(weights)
    op, hidden = w.op, config.d_model
    heads = config.encoder_attention_heads
    size = hidden // heads
    mel = w.input(np.float32, "rows", config.num_mel_bins, "frames")

    def convolution(x: Any, name: str, stride: int) -> Any:
        kernel, bias = w.weight(f"{name}.weight"), w.weight(f"{name}.bias")
        return op.gelu(op.conv(x, kernel, bias, kernel_shape=[3], pads=[1, 1], strides=[stride]))

    x = convolution(convolution(mel, "encoder.conv1", 1), "encoder.conv2", 2)
    x = op.transpose(x, perm=[0, 2, 1])
    places = w.weight("encoder.embed_positions.weight")
    x = op.add(x, op.slice(places, w.shape(0), w.length(x, 1), w.shape(0)))
    for layer in range(config.encoder_layers):
        prefix = f"encoder.layers.{layer}"
        y = w.norm(x, f"{prefix}.self_attn_layer_norm")
        query = w.heads(w.linear(y, f"{prefix}.self_attn.q_proj", scale=1 / sqrt(size)), heads, size)
        key, value = (w.heads(w.linear(y, f"{prefix}.self_attn.{part}_proj"), heads, size) for part in "kv")
        mixed = op.matmul(op.softmax(w.scores(query, key), axis=-1), value)
        x = op.add(x, w.linear(w.merge(mixed, hidden), f"{prefix}.self_attn.out_proj"))
        x = w.feed_forward(x, prefix)
    x = w.norm(x, "encoder.layer_norm")
    outputs = {"hidden": x}
    for layer in range(config.decoder_layers):
        names = [f"decoder.layers.{layer}.encoder_attn.{part}_proj" for part in "kv"]
        key, value = (w.heads(w.linear(x, name), config.decoder_attention_heads, config.head_size) for name in names)
        outputs |= {f"cross_k.{layer}": key, f"cross_v.{layer}": value}
    if stacked:
        for name in ("cross_k", "cross_v"):
            parts = [outputs.pop(f"{name}.{layer}") for layer in range(config.decoder_layers)]
            outputs[name] = op.concat([op.unsqueeze(part, w.shape(0)) for part in parts], axis=0)
    return w.model({"mel": mel}, outputs)


def write_decoder(
    config: WhisperConfig, weights: Mapping[str, Float32], *, int8_weights: bool = False
) -> "onnx.ModelProto":
    """Any number of tokens of each row at once: a prompt, one step, or a draft to be checked.

    Inputs: tokens, int64 [rows, tokens]; position, int64 [rows]: slots filled before them; heard, int64 [rows]:
    positions of the encoder that belong to the row; places, int64 [rows, answers]: which of the tokens are answered;
    rule, int64 [rows, answers]: index into RULES for the choice after each of these; past_k.I, past_v.I, float32
    [rows, heads, slots, size]: anything may stand from `position` on; cross_k.I, cross_v.I, float32 [rows, heads,
    positions, size].

    Outputs: next, int32 [rows, answers]: the likeliest token after each place; logprob, float32 [rows, answers]: its
    natural logarithmic probability among those the rule allows; logits, float32 [rows, answers, vocabulary], to which
    no rule was applied; new, float32 [2 * layers, rows, heads, tokens, size]: the keys and values (2 * I and 2 * I + 1
    of layer I) that belong into the slots from `position` on.

    `int8_weights`: matrices are rounded to int8 per output column and carried with DequantizeLinear.
    """
    w = _Writer(weights, int8_weights)
    op, hidden = w.op, config.d_model
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    tokens = w.input(np.int64, "rows", "tokens")
    position, heard = w.input(np.int64, "rows"), w.input(np.int64, "rows")
    places, rule = w.input(np.int64, "rows", "answers"), w.input(np.int64, "rows", "answers")
    kinds = {"past": "slots", "cross": "positions"}
    cached = {
        f"{kind}_{part}.{layer}": w.input(np.float32, "rows", heads, free, size)
        for kind, free in kinds.items()
        for layer in range(layers)
        for part in "kv"
    }
    inputs = {"tokens": tokens, "position": position, "heard": heard, "places": places, "rule": rule}
    inputs |= cached

    # 1. Where the tokens stand, and what they may see.
    step = w.count(w.length(tokens, 1))
    slots = w.length(cached["past_k.0"], 2)
    filled = op.less(w.count(slots), op.unsqueeze(position, w.shape(1)))
    audible = op.less(w.count(w.length(cached["cross_k.0"], 2)), op.unsqueeze(heard, w.shape(1)))
    past_mask, cross_mask = (op.unsqueeze(w.forbid(seen), w.shape(1, 2)) for seen in (filled, audible))
    earlier = op.less_or_equal(op.unsqueeze(step, w.shape(0)), op.unsqueeze(step, w.shape(1)))
    new_mask = op.unsqueeze(w.forbid(earlier), w.shape(0, 1))
    place = op.add(op.unsqueeze(position, w.shape(1)), op.unsqueeze(step, w.shape(0)))

    # 2. Embeddings; the same matrix turns the last state into logits.
    embedding, vocabulary = _embed(w, tokens)
    x = op.add(embedding, op.gather(w.weight("decoder.embed_positions.weight"), place))

    # 3. Layers.
    new: list[Any] = []
    for layer in range(layers):
        prefix = f"decoder.layers.{layer}"
        names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        fused = w.linear(w.norm(x, f"{prefix}.self_attn_layer_norm"), *names, scale=1 / sqrt(size))
        query, key, value = w.split_heads(fused, 3, heads, size)
        new += [op.unsqueeze(key, w.shape(0)), op.unsqueeze(value, w.shape(0))]
        before = w.scores(query, cached[f"past_k.{layer}"], past_mask)
        shares = op.softmax(op.concat([before, w.scores(query, key, new_mask)], axis=3), axis=-1)
        of_past = op.slice(shares, w.shape(0), slots, w.shape(3))
        of_new = op.slice(shares, slots, w.shape(np.iinfo(np.int64).max), w.shape(3))
        mixed = op.add(op.matmul(of_past, cached[f"past_v.{layer}"]), op.matmul(of_new, value))
        x = op.add(x, w.linear(w.merge(mixed, hidden), f"{prefix}.self_attn.out_proj"))

        asked = w.norm(x, f"{prefix}.encoder_attn_layer_norm")
        query = w.heads(w.linear(asked, f"{prefix}.encoder_attn.q_proj", scale=1 / sqrt(size)), heads, size)
        shares = op.softmax(w.scores_of_keys(query, cached[f"cross_k.{layer}"], cross_mask), axis=-1)
        mixed = op.matmul(shares, cached[f"cross_v.{layer}"])
        x = op.add(x, w.linear(w.merge(mixed, hidden), f"{prefix}.encoder_attn.out_proj"))
        x = w.feed_forward(x, prefix)

    # 4. The likeliest token and its share.
    x = w.norm(op.gather_nd(x, op.unsqueeze(places, w.shape(2)), batch_dims=1), "decoder.layer_norm")
    logits = op.matmul(x, op.transpose(vocabulary, perm=[1, 0]))
    allowed = op.add(logits, op.gather(w.bind("suppression", suppression(config)), rule))
    highest = op.reduce_max(allowed, w.shape(-1), keepdims=True)
    total = op.reduce_sum(op.exp(op.sub(allowed, highest)), w.shape(-1), keepdims=False)
    index = w.constant(np.arange(config.vocab_size, dtype=np.int32))
    beyond = w.constant(np.int32(config.vocab_size))
    following = op.reduce_min(op.where(op.less(allowed, highest), beyond, index), w.shape(-1), keepdims=False)
    likelihood = op.neg(op.log(total))
    made = {"next": following, "logprob": likelihood, "logits": logits, "new": op.concat(new, axis=0)}
    return w.model(inputs, made)


def _embed(w: _Writer, tokens: Any) -> tuple[Any, Any]:
    """The tokens' embeddings, float32 [rows, tokens, hidden], and the whole matrix [vocabulary, hidden]."""
    op, name = w.op, "decoder.embed_tokens.weight"
    if not w.int8_weights:
        matrix = w.weight(name)
        return op.gather(matrix, tokens), matrix
    rounded, scale = round_int8(w.weights[name], axis=1)
    matrix, scales = w.bind(name, rounded), w.bind(f"{name}.scale", scale[:, 0])
    rows = op.cast(op.gather(matrix, tokens), to=np.float32)
    rows = op.mul(rows, op.unsqueeze(op.gather(scales, tokens), w.shape(2)))
    return rows, op.dequantize_linear(matrix, scales, axis=0)


def round_int8(array: Float32, axis: int) -> tuple[NDArray[np.int8], Float32]:
    """int8 and the float32 scale along `axis` (kept as an axis of size 1)."""
    scale = np.maximum(np.abs(array).max(axis=axis, keepdims=True), 1e-12) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)


def rounded(weights: Mapping[str, Float32]) -> dict[str, Float32]:
    """The values that a graph with int8 weights computes with."""
    result = dict(weights)
    for name, array in weights.items():
        if array.ndim == 2 and "positions" not in name:
            whole, scale = round_int8(array, axis=1)
            result[name] = whole * scale
    return result
