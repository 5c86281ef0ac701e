"""Whisper's decoder for a GPU: the next token of every row at a time, everything that it needs already there.

A step on a GPU takes as long as its kernels are many, and a word to the host between two steps costs as much as ten of
them. So whatever a step changes is a state that stays on the device: the text so far, where each row stands, and the
keys and values of earlier tokens, which are written in place. The host starts steps one after the other without
waiting, and reads the text when it likes.

A row's prompt lies in its text from the start; rows stand where they stand, so that one may begin while others go on
(continuous batching), and what a row writes does not depend on the others.

Choices that decide the speed (TensorRT 8.6 on an H100, Whisper-small, one row, 250 positions):

- Keys are kept turned, [size, slots]: turning them in the graph is fused into the write of the new key, which keeps
  TensorRT from fusing the attention behind it (one kernel instead of four).
- The new key and value are put into their slot by a selection, element by element, so that the state may be written
  where it is read.
- Heads of a single token are named apart by a reshape; nothing is moved.
- The likeliest token by a maximum and a comparison, as on the CPU.
"""

from collections.abc import Mapping
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


def write_stepper(
    config: WhisperConfig, weights: Mapping[str, Float32], *, prompt_tokens: int = 1, layout: str = "turned"
) -> "onnx.ModelProto":
    """States, each with an output of the same form and ".next" behind its name:

    text, int32 [rows, slots]: the prompt, then what was written; position, int32 [rows]: the slot of the token that is
    read next; likely, float32 [rows, slots]: natural logarithmic probability of what was written; self_k.I, float32
    [rows, heads, size, slots], and self_v.I, float32 [rows, heads, slots, size].

    Inputs: prompt, int32 [rows]: how many tokens of the text were given; heard, int32 [rows]: positions of the encoder
    that belong to the row; cross_k.I, cross_v.I, float32 [rows, heads, positions, size].

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
    cross = {
        f"cross_{part}.{layer}": w.input(np.float32, "rows", heads, "positions", size)
        for layer in range(layers)
        for part in "kv"
    }
    cache = _CACHES[layout](w, config)

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
        x = op.add(x, w.linear(mixed, f"{prefix}.self_attn.out_proj"))
        asked = w.norm(x, f"{prefix}.encoder_attn_layer_norm")
        query = w.linear(asked, f"{prefix}.encoder_attn.q_proj", scale=1 / sqrt(size))
        query = op.reshape(query, w.shape(0, heads, 1, size)) if count == 1 else w.heads(query, heads, size)
        shares = op.softmax(w.scores(query, cross[f"cross_k.{layer}"], cross_mask), axis=-1)
        mixed = _joined(w, op.matmul(shares, cross[f"cross_v.{layer}"]), count, hidden)
        x = op.add(x, w.linear(mixed, f"{prefix}.encoder_attn.out_proj"))
        x = w.feed_forward(x, prefix)

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
        **cache.outputs,
    }
    inputs = {"text": text, "position": position, "prompt": prompt, "heard": heard, "likely": likely}
    return w.model({**inputs, **cache.inputs, **cross}, outputs)


def _joined(w: _Writer, mixed: Any, count: int, hidden: int) -> Any:
    """[rows, heads, count, size] to [rows, count, hidden]; for one token nothing is moved."""
    return w.op.reshape(mixed, w.shape(0, 1, hidden)) if count == 1 else w.merge(mixed, hidden)


class _Turned:
    """Keys [rows, heads, size, slots] and values [rows, heads, slots, size] of every layer, each a state of its own."""

    def __init__(self, w: _Writer, config: WhisperConfig) -> None:
        self.w, self.config = w, config
        self.here: Any = None
        heads, size = config.decoder_attention_heads, config.head_size
        self.inputs: dict[str, Any] = {}
        for layer in range(config.decoder_layers):
            self.inputs[f"self_k.{layer}"] = w.input(np.float32, "rows", heads, size, "slots")
            self.inputs[f"self_v.{layer}"] = w.input(np.float32, "rows", heads, "slots", size)
        self.outputs: dict[str, Any] = {}

    def updated(self, layer: int, fused: Any, count: int) -> Any:
        """Query of the new tokens, and keys (turned) and values of all slots."""
        w, op = self.w, self.w.op
        heads, size = self.config.decoder_attention_heads, self.config.head_size
        old_key, old_value = self.inputs[f"self_k.{layer}"], self.inputs[f"self_v.{layer}"]
        if count == 1:
            parts = op.split(
                op.reshape(fused, w.shape(0, 3 * heads, 1, size)),
                w.shape(heads, heads, heads),
                num_outputs=None,
                axis=1,
            )
            query, key, value = parts
            turned = op.reshape(key, w.shape(0, heads, size, 1))
            keys = op.where(op.unsqueeze(self.here, w.shape(1, 2)), turned, old_key)
            values = op.where(op.unsqueeze(self.here, w.shape(1, 3)), value, old_value)
        else:
            query, key, value = w.split_heads(fused, 3, heads, size)
            most = w.shape(np.iinfo(np.int32).max)
            turned = op.transpose(key, perm=[0, 1, 3, 2])
            keys = op.concat([turned, op.slice(old_key, w.shape(count), most, w.shape(3))], axis=3)
            values = op.concat([value, op.slice(old_value, w.shape(count), most, w.shape(2))], axis=2)
        self.outputs |= {f"self_k.{layer}{NEXT}": keys, f"self_v.{layer}{NEXT}": values}
        return query, keys, values


class _Merged(_Turned):
    """Both of a layer in one state, [rows, 2 * heads, slots, size]."""

    def __init__(self, w: _Writer, config: WhisperConfig) -> None:
        super().__init__(w, config)
        heads, size = config.decoder_attention_heads, config.head_size
        self.inputs = {
            f"self_kv.{layer}": w.input(np.float32, "rows", 2 * heads, "slots", size)
            for layer in range(config.decoder_layers)
        }

    def updated(self, layer: int, fused: Any, count: int) -> Any:
        w, op = self.w, self.w.op
        heads, size = self.config.decoder_attention_heads, self.config.head_size
        parts = op.split(
            op.reshape(fused, w.shape(0, 3 * heads, 1, size)), w.shape(heads, 2 * heads), num_outputs=None, axis=1
        )
        kv = op.where(op.unsqueeze(self.here, w.shape(1, 3)), parts[1], self.inputs[f"self_kv.{layer}"])
        self.outputs[f"self_kv.{layer}{NEXT}"] = kv
        key, value = op.split(kv, num_outputs=2, axis=1)
        return parts[0], op.transpose(key, perm=[0, 1, 3, 2]), value


class _Square(_Turned):
    """Both in one state [rows, 2 * heads, size, slots] where slots equal size: keys turned, values not."""

    def __init__(self, w: _Writer, config: WhisperConfig) -> None:
        super().__init__(w, config)
        heads, size = config.decoder_attention_heads, config.head_size
        self.inputs = {
            f"self_kv.{layer}": w.input(np.float32, "rows", 2 * heads, size, size)
            for layer in range(config.decoder_layers)
        }

    def updated(self, layer: int, fused: Any, count: int) -> Any:
        w, op = self.w, self.w.op
        heads, size = self.config.decoder_attention_heads, self.config.head_size
        query, key, value = op.split(
            op.reshape(fused, w.shape(0, 3 * heads, 1, size)), w.shape(heads, heads, heads), num_outputs=None, axis=1
        )
        old_key, old_value = op.split(self.inputs[f"self_kv.{layer}"], num_outputs=2, axis=1)
        keys = op.where(op.unsqueeze(self.here, w.shape(1, 2)), op.reshape(key, w.shape(0, heads, size, 1)), old_key)
        values = op.where(op.unsqueeze(self.here, w.shape(1, 3)), value, old_value)
        self.outputs[f"self_kv.{layer}{NEXT}"] = op.concat([keys, values], axis=1)
        return query, keys, values


_CACHES: dict[str, Any] = {"turned": _Turned, "merged": _Merged, "square": _Square}


def stepper_states(config: WhisperConfig) -> tuple[StatePair, ...]:
    """All written in place: each element depends on itself and on what the step computes."""
    caches = [f"self_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv"]
    return tuple(StatePair(name, name + NEXT, in_place=True) for name in ("text", "position", "likely", *caches))


def low_borders(config: WhisperConfig) -> tuple[str, ...]:
    """What both Whisper graphs keep in half precision between runs: caches, and what the encoder hands over."""
    caches = [f"self_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv"]
    cross = [f"cross_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv"]
    return ("likely", "likely" + NEXT, *cross, *caches, *(name + NEXT for name in caches))
