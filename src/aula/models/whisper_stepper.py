"""Whisper's decoder for a GPU: the next token of every row at a time, everything that it needs already there.

A step on a GPU takes as long as its kernels are many, and a word to the host between two steps costs as much as ten of
them. So whatever a step changes is a state that stays on the device: the text so far, where each row stands, and the
keys and values of earlier tokens, which are written in place. The host starts steps one after the other without
waiting, and reads the text when it likes.

A row's prompt lies in its text from the start; rows stand where they stand, so that one may begin while others go on
(continuous batching), and what a row writes does not depend on the others.

How the same step is best spelled depends on how many rows it serves (`StepForm`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.backends.session import StatePair
from aula.core.types import Float32
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_graphs import _Writer
from aula.models.whisper_tokens import suppression

if TYPE_CHECKING:
    import onnx

NEXT = ".next"
"""What the output that becomes a state's next value is called after the state."""


@dataclass(frozen=True, slots=True)
class StepForm:
    """One of several spellings of the same step.

    `stacked`: the caches of all layers lie in one tensor each, and an engine has ten tensors instead of fifty. TensorRT
    8.6 gives a fused region more than about ten inputs in FP32 alone, and converts the others before each run: 590 MB
    for 64 rows of Whisper-small. But it took 120 s to build three layers of it so, and did not build twelve in 150 s.
    Not stacked, keys are kept turned, [size, slots]: turning them in the graph would be fused into the write of the new
    key, and keep TensorRT from fusing the attention behind it. `low_caches`: keys and values are kept in half
    precision. `split`, `split_small`: products with the long side (the feed-forward's second) and with the others are
    summed in so many pieces: one row alone gives a GPU too few sums to work on.
    """

    stacked: bool = False
    low_caches: bool = False
    split: int = 1
    split_small: int = 1


def write_stepper(
    config: WhisperConfig, weights: Mapping[str, Float32], form: StepForm, *, prompt_tokens: int = 1
) -> "onnx.ModelProto":
    """States, each with an output of the same form and ".next" behind its name:

    text, int32 [rows, slots]: the prompt, then what was written; position, int32 [rows]: the slot of the token that is
    read next; likely, float32 [rows, slots]: natural logarithmic probability of what was written; self_k.I, float32
    [rows, heads, size, slots], and self_v.I, float32 [rows, heads, slots, size].

    Inputs: prompt, int32 [rows]: how many tokens of the text were given; heard, int32 [rows]: positions of the encoder
    that belong to the row; cross_k.I, cross_v.I, float32 [rows, heads, positions, size].

    Stacked: self_kv, float32 [layers, rows, 2 * heads, slots, size], keys before values, in place of the states of
    each layer; cross_k and cross_v, float32 [layers, rows, heads, positions, size].

    A run reads the token at `position`, writes the likeliest next one behind it unless the prompt stands there, and
    goes one on; in the last slot it stays. With `prompt_tokens` the first so many tokens are read at once, by rows that
    stand at 0.
    """
    w = _Writer(weights)
    op, hidden, count = w.op, config.d_model, prompt_tokens
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    text, position = w.input(np.int32, "rows", "slots"), w.input(np.int32, "rows")
    prompt, heard = w.input(np.int32, "rows"), w.input(np.int32, "rows")
    likely = w.input(np.float32, "rows", "slots")
    taken, cross = _cross(w, config, form.stacked)
    cache = _Stacked(w, config) if form.stacked else _Turned(w, config)

    # 1. Where the tokens stand, and what they may see.
    slot = op.cast(w.count(w.length(text, 1)), to=np.int32)
    column = op.unsqueeze(position, w.shape(1))
    last = op.add(column, w.constant(np.int32(count - 1)))
    audible = op.less(op.cast(w.count(w.length(cross["cross_v.0"], 2)), to=np.int32), op.unsqueeze(heard, w.shape(1)))
    cross_mask = op.unsqueeze(w.forbid(audible), w.shape(1, 2))
    if count == 1:
        token = op.gather_elements(text, column, axis=1)
        place = op.gather(w.weight("decoder.embed_positions.weight"), column)
        seen = op.unsqueeze(op.less_or_equal(slot, column), w.shape(1))
        cache.here = op.equal(slot, column)
    else:
        token = op.slice(text, w.shape(0), w.shape(count), w.shape(1))
        places = w.weights["decoder.embed_positions.weight"][None, :count]
        place = w.bind("decoder.embed_positions.prompt", places)
        order = w.constant(np.arange(count, dtype=np.int32)[:, None])
        seen = op.unsqueeze(op.less_or_equal(op.unsqueeze(slot, w.shape(0)), order), w.shape(0))
    self_mask = op.unsqueeze(w.forbid(seen), w.shape(1))

    # 2. Layers.
    vocabulary = w.weight("decoder.embed_tokens.weight")
    x = op.add(op.gather(vocabulary, token), place)
    for layer in range(layers):
        prefix = f"decoder.layers.{layer}"
        names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        fused = w.linear(w.norm(x, f"{prefix}.self_attn_layer_norm"), *names, scale=1 / sqrt(size))
        query, keys, values = cache.updated(layer, fused, count)
        shares = op.softmax(op.add(op.matmul(query, keys), self_mask), axis=-1)
        mixed = _joined(w, op.matmul(shares, values), count, hidden)
        x = op.add(x, _split_linear(w, mixed, f"{prefix}.self_attn.out_proj", form.split_small))
        asked = w.norm(x, f"{prefix}.encoder_attn_layer_norm")
        query = _split_linear(w, asked, f"{prefix}.encoder_attn.q_proj", form.split_small, 1 / sqrt(size))
        query = op.reshape(query, w.shape(0, heads, 1, size)) if count == 1 else w.heads(query, heads, size)
        shares = op.softmax(w.scores(query, cross[f"cross_k.{layer}"], cross_mask), axis=-1)
        mixed = _joined(w, op.matmul(shares, cross[f"cross_v.{layer}"]), count, hidden)
        x = op.add(x, _split_linear(w, mixed, f"{prefix}.encoder_attn.out_proj", form.split_small))
        inner = op.gelu(w.linear(w.norm(x, f"{prefix}.final_layer_norm"), f"{prefix}.fc1"))
        x = op.add(x, _split_linear(w, inner, f"{prefix}.fc2", form.split))

    # 3. The likeliest token after the last, unless the prompt goes on there.
    if count > 1:
        x = op.slice(x, w.shape(count - 1), w.shape(count), w.shape(1))
    logits = op.matmul(w.norm(x, "decoder.layer_norm"), op.transpose(vocabulary, perm=[1, 0]))
    logits = op.squeeze(logits, w.shape(1))
    behind = op.add(last, w.constant(np.int32(1)))
    given = op.unsqueeze(prompt, w.shape(1))
    table = suppression(config)
    first, text_rule = (w.bind(f"suppression.{name}", table[row]) for name, row in (("first", 2), ("text", 1)))
    logits = op.add(logits, op.where(op.equal(behind, given), first, text_rule))
    highest = op.reduce_max(logits, w.shape(-1), keepdims=True)
    index = w.constant(np.arange(config.vocab_size, dtype=np.float32)[None])
    beyond = w.constant(np.float32(config.vocab_size))
    chosen = op.reduce_min(op.where(op.less(logits, highest), beyond, index), w.shape(-1), keepdims=True)
    total = op.reduce_sum(op.exp(op.sub(logits, highest)), w.shape(-1), keepdims=True)
    there = op.equal(slot, behind)
    ours = op.and_(there, op.greater_or_equal(slot, given))
    end = op.cast(op.sub(w.length(text, 1), w.shape(1)), to=np.int32)
    outputs = {
        f"text{NEXT}": op.where(ours, op.cast(chosen, to=np.int32), text),
        f"position{NEXT}": op.min([op.squeeze(behind, w.shape(1)), end]),
        f"likely{NEXT}": op.where(there, op.neg(op.log(total)), likely),
        **cache.outputs(),
    }
    inputs = {"text": text, "position": position, "prompt": prompt, "heard": heard, "likely": likely}
    return w.model({**inputs, **cache.inputs, **taken}, outputs)


def _cross(w: _Writer, config: WhisperConfig, stacked: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the graph takes of the encoder, and the keys and values of each layer by name."""
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    if not stacked:
        taken = {
            f"cross_{part}.{layer}": w.input(np.float32, "rows", heads, "positions", size)
            for layer in range(layers)
            for part in "kv"
        }
        return taken, taken
    taken = {f"cross_{part}": w.input(np.float32, layers, "rows", heads, "positions", size) for part in "kv"}
    named = {f"{name}.{layer}": one for name, tensor in taken.items() for layer, one in _layers(w, tensor, layers)}
    return taken, named


def _layers(w: _Writer, tensor: Any, layers: int) -> Iterator[tuple[int, Any]]:
    parts = w.op.split(tensor, num_outputs=layers, axis=0) if layers > 1 else [tensor]
    for layer, part in enumerate(parts):
        yield layer, w.op.squeeze(part, w.shape(0))


def _joined(w: _Writer, mixed: Any, count: int, hidden: int) -> Any:
    """[rows, heads, count, size] to [rows, count, hidden]; for one token nothing is moved."""
    return w.op.reshape(mixed, w.shape(0, 1, hidden)) if count == 1 else w.merge(mixed, hidden)


def _split_linear(w: _Writer, x: Any, name: str, pieces: int, scale: float = 1.0) -> Any:
    """`linear`, summed in pieces of its inputs: float32 [rows, n, in] to [rows, n, out]."""
    kernel = w.weights[f"{name}.weight"].T * np.float32(scale)
    taken, made = kernel.shape
    if pieces == 1 or taken % pieces:
        return w.linear(x, name, scale=scale)
    op = w.op
    shape = op.concat([op.slice(op.shape(x), w.shape(0), w.shape(2), w.shape(0)), w.shape(made)], axis=0)
    apart = op.transpose(op.reshape(x, w.shape(-1, pieces, taken // pieces)), perm=[1, 0, 2])
    products = op.matmul(apart, w.bind(f"{name}.pieces", kernel.reshape(pieces, taken // pieces, made)))
    whole = op.reshape(op.reduce_sum(products, w.shape(0), keepdims=False), shape)
    return op.add(whole, w.bind(f"{name}.bias", w.weights[f"{name}.bias"] * np.float32(scale)))


class _Turned:
    """Keys [rows, heads, size, slots] and values [rows, heads, slots, size] of every layer, each a state of its own.
    `here`, bool [rows, slots], is the slot of the token that is read."""

    def __init__(self, w: _Writer, config: WhisperConfig) -> None:
        self.w, self.config = w, config
        self.here: Any = None
        heads, size = config.decoder_attention_heads, config.head_size
        self.inputs: dict[str, Any] = {}
        for layer in range(config.decoder_layers):
            self.inputs[f"self_k.{layer}"] = w.input(np.float32, "rows", heads, size, "slots")
            self.inputs[f"self_v.{layer}"] = w.input(np.float32, "rows", heads, "slots", size)
        self._outputs: dict[str, Any] = {}

    def outputs(self) -> dict[str, Any]:
        return self._outputs

    def updated(self, layer: int, fused: Any, count: int) -> Any:
        """Query of the new tokens, and keys (turned) and values of all slots."""
        w, op = self.w, self.w.op
        heads, size = self.config.decoder_attention_heads, self.config.head_size
        old_key, old_value = self.inputs[f"self_k.{layer}"], self.inputs[f"self_v.{layer}"]
        if count > 1:
            query, key, value = w.split_heads(fused, 3, heads, size)
            turned = op.transpose(key, perm=[0, 1, 3, 2])
            keys = op.concat([turned, _behind(w, old_key, count, 3)], axis=3)
            values = op.concat([value, _behind(w, old_value, count, 2)], axis=2)
        else:
            query, key, value = op.split(op.reshape(fused, w.shape(0, 3 * heads, 1, size)), num_outputs=3, axis=1)
            turned = op.reshape(key, w.shape(0, heads, size, 1))
            keys = op.where(op.unsqueeze(self.here, w.shape(1, 2)), turned, old_key)
            values = op.where(op.unsqueeze(self.here, w.shape(1, 3)), value, old_value)
        self._outputs |= {f"self_k.{layer}{NEXT}": keys, f"self_v.{layer}{NEXT}": values}
        return query, keys, values


class _Stacked:
    """Keys and values of all layers in one state, [layers, rows, 2 * heads, slots, size]."""

    def __init__(self, w: _Writer, config: WhisperConfig) -> None:
        self.w, self.config = w, config
        self.here: Any = None
        heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
        self.inputs = {"self_kv": w.input(np.float32, layers, "rows", 2 * heads, "slots", size)}
        self._old = dict(_layers(w, self.inputs["self_kv"], layers))
        self._new: list[Any] = []

    def outputs(self) -> dict[str, Any]:
        lifted = [self.w.op.unsqueeze(one, self.w.shape(0)) for one in self._new]
        return {f"self_kv{NEXT}": self.w.op.concat(lifted, axis=0)}

    def updated(self, layer: int, fused: Any, count: int) -> Any:
        w, op = self.w, self.w.op
        heads, size = self.config.decoder_attention_heads, self.config.head_size
        if count > 1:
            query, key, value = w.split_heads(fused, 3, heads, size)
            kv = op.concat([op.concat([key, value], axis=1), _behind(w, self._old[layer], count, 2)], axis=2)
        else:
            split = op.reshape(fused, w.shape(0, 3 * heads, 1, size))
            query, new = op.split(split, w.shape(heads, 2 * heads), num_outputs=None, axis=1)
            kv = op.where(op.unsqueeze(self.here, w.shape(1, 3)), new, self._old[layer])
        self._new.append(kv)
        key, value = op.split(kv, num_outputs=2, axis=1)
        return query, op.transpose(key, perm=[0, 1, 3, 2]), value


def _behind(w: _Writer, cache: Any, count: int, axis: int) -> Any:
    """The slots after the first `count`."""
    return w.op.slice(cache, w.shape(count), w.shape(np.iinfo(np.int32).max), w.shape(axis))


def stepper_states(config: WhisperConfig, form: StepForm) -> tuple[StatePair, ...]:
    """All written in place: each element depends on itself and on what the step computes."""
    names = ("text", "position", "likely", *_caches(config, form))
    return tuple(StatePair(name, name + NEXT, in_place=True) for name in names)


def cross_names(config: WhisperConfig, form: StepForm) -> tuple[str, ...]:
    """What the decoder takes of the encoder."""
    if form.stacked:
        return ("cross_k", "cross_v")
    return tuple(f"cross_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv")


def low_borders(config: WhisperConfig, form: StepForm) -> tuple[str, ...]:
    """What both of Whisper's graphs keep in half precision between runs."""
    if not form.low_caches:
        return ()
    caches = _caches(config, form)
    return ("likely", "likely" + NEXT, *cross_names(config, form), *caches, *(name + NEXT for name in caches))


def _caches(config: WhisperConfig, form: StepForm) -> tuple[str, ...]:
    if form.stacked:
        return ("self_kv",)
    return tuple(f"self_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv")
