"""Whisper's decoder as a GPU serves it: a run reads one token of each row, or several, and answers after every one.

Text, caches and places stay on the device, each row's in one piece. After one token the likeliest next one is written
behind it and the row goes on by itself; the host may start several runs, and look afterwards. Where it must look at
once (a language, whether anybody speaks, times, chance) the logits are there. What follows a token is told by `rule`,
an index into RULES, as on a CPU (`write_decoder`).
"""

import hashlib
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aula.backends.kernel_program import Program
from aula.backends.kernels import DECODER, source
from aula.backends.session import StatePair
from aula.core.types import Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_graphs import _Writer
from aula.models.whisper_program import Step
from aula.models.whisper_reader_program import write_reader_program
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_stepper import NEXT
from aula.models.whisper_tokens import RULES, suppression

if TYPE_CHECKING:
    import onnx

READ = 4
"""Tokens of one row that are read at once: start, language, task, no timestamps; or a piece of a draft."""
ROWS = 4
"""Utterances that one run serves."""
STEP_PROFILE, ROWS_PROFILE, READ_PROFILE = "step", "rows", "read"
SURE = 4.0
"""Where all tokens are sure, the logarithms of their probabilities are next to nothing; their differences are then seen
beside this, as they are beside the logarithm itself where tokens are not sure."""
STATES = ("text", "position", "likely", "self_kv")
CACHES = ("self_kv", "self_kv" + NEXT, "cross_k", "cross_v")


def reader_profiles(slots: int, positions: int) -> tuple[Profile, ...]:
    """What is served: one row's step, that of several, and several tokens of one row."""

    def profile(name: str, rows: int, tokens: int) -> Profile:
        sizes = {"rows": rows, "tokens": tokens, "slots": slots, "positions": positions}
        return Profile(name, {dimension: Size(size, size, size) for dimension, size in sizes.items()})

    return (profile(STEP_PROFILE, 1, 1), profile(ROWS_PROFILE, ROWS, 1), profile(READ_PROFILE, 1, READ))


def reader_recipe(
    checkpoint: Checkpoint,
    name: str,
    profiles: tuple[Profile, ...],
    licences: tuple[Licence, ...] = (),
    *,
    seeded: bool = False,
) -> Recipe:
    """`write_reader`, whose fp16 is a program of our own kernels."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.decoder_shapes()
    reference = WhisperReference(config, lambda: load_weights(checkpoint, shapes))
    steering = checkpoint.folder / "generation_config.json"
    sources: tuple[Path, ...] = (*checkpoint.weights_files, checkpoint.folder / "config.json")

    def program(profile: Profile, capability: str) -> Program:
        sizes = {dimension: size.greatest for dimension, size in profile.sizes.items()}
        step = Step(sizes["rows"], sizes["tokens"], sizes["slots"], sizes["positions"], apart=True)
        return write_reader_program(config, load_weights(checkpoint, shapes), step, capability)

    return Recipe(
        name=name,
        revision=1,
        sources=(*sources, *((steering,) if steering.exists() else ())),
        write_graph=lambda: write_reader(config, load_weights(checkpoint, shapes)),
        example=lambda sizes, generator: reader_example(config, sizes, generator),
        reference=lambda inputs: reader_reference(reference, inputs),
        profiles=profiles,
        limits={"slots": config.max_target_positions, "positions": config.max_source_positions},
        states=tuple(StatePair(state, state + NEXT, in_place=True) for state in STATES),
        unproven=(f"text{NEXT}", "next"),  # where two tokens are equally likely, another choice is no error
        seeded=seeded,
        licences=licences,
        half_tolerance=5e-2,
        low_borders=CACHES,
        handed_over=("cross_k", "cross_v", "logits"),
        least_scales={f"likely{NEXT}": SURE, "logprob": SURE},
        rows="rows",
        spelling="reader" + hashlib.sha256(source(DECODER).encode()).hexdigest(),
        program=program,
    )


def write_reader(config: WhisperConfig, weights: Mapping[str, Float32]) -> "onnx.ModelProto":
    """States, each with an output of the same form and ".next" behind its name:

    text, int32 [rows, slots]; position, int32 [rows]: the slot of the first token that is read; likely, float32 [rows,
    slots]: natural logarithmic probability of what was written; self_kv, float32 [rows, layers, 2 * heads, slots,
    size], keys before values.

    Inputs: rule, int32 [rows, tokens]: what may follow each; heard, int32 [rows]; cross_k, cross_v, float32 [rows,
    layers, heads, positions, size]. Outputs: next, int32, and logprob, float32 [rows, tokens]; logits, float32 [rows,
    tokens, vocabulary], to which no rule was applied.

    The tokens from `position` on are read, and the last one's answer is written behind them. Beyond the last slot
    nothing is written, and the last place is as far as a row goes.
    """
    w = _Writer(weights)
    op, hidden = w.op, config.d_model
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    text, position = w.input(np.int32, "rows", "slots"), w.input(np.int32, "rows")
    likely, rule = w.input(np.float32, "rows", "slots"), w.input(np.int32, "rows", "tokens")
    heard = w.input(np.int32, "rows")
    self_kv = w.input(np.float32, "rows", layers, 2 * heads, "slots", size)
    crosses = [w.input(np.float32, "rows", layers, heads, "positions", size) for _ in "kv"]

    # 1. Where the tokens stand, and what they may see.
    slot = op.cast(w.count(w.length(text, 1)), to=np.int32)
    end = op.cast(op.sub(w.length(text, 1), w.shape(1)), to=np.int32)
    order = op.cast(w.count(w.length(rule, 1)), to=np.int32)
    place = op.add(op.unsqueeze(position, w.shape(1)), op.unsqueeze(order, w.shape(0)))
    within = op.min([place, end])
    token = op.gather_elements(text, within, axis=1)
    here = op.equal(op.unsqueeze(slot, w.shape(0, 2)), op.unsqueeze(place, w.shape(1)))  # [rows, slots, tokens]
    one_hot = op.unsqueeze(op.cast(here, to=np.float32), w.shape(1))
    taken = op.greater(op.reduce_sum(one_hot, w.shape(3), keepdims=True), w.constant(np.float32(0)))
    seen = op.less_or_equal(op.unsqueeze(slot, w.shape(0, 1)), op.unsqueeze(place, w.shape(2)))
    audible = op.less(op.cast(w.count(w.length(crosses[0], 3)), to=np.int32), op.unsqueeze(heard, w.shape(1)))
    self_mask, cross_mask = op.unsqueeze(w.forbid(seen), w.shape(1)), op.unsqueeze(w.forbid(audible), w.shape(1, 2))

    # 2. Layers.
    vocabulary = w.weight("decoder.embed_tokens.weight")
    x = op.add(op.gather(vocabulary, token), op.gather(w.weight("decoder.embed_positions.weight"), within))
    caches = []
    for layer in range(layers):
        prefix = f"decoder.layers.{layer}"
        names = [f"{prefix}.self_attn.{part}_proj" for part in "qkv"]
        fused = w.linear(w.norm(x, f"{prefix}.self_attn_layer_norm"), *names, scale=1 / sqrt(size))
        query, key, value = w.split_heads(fused, 3, heads, size)
        # Where a slot is taken, the one token that stands there: a product with ones and noughts moves it.
        moved = op.matmul(one_hot, op.concat([key, value], axis=1))
        kv = op.where(taken, moved, op.gather(self_kv, w.constant(np.int64(layer)), axis=1))
        caches.append(op.unsqueeze(kv, w.shape(1)))
        key, value = op.split(kv, num_outputs=2, axis=1)
        mixed = op.matmul(op.softmax(w.scores(query, key, self_mask), axis=-1), value)
        x = op.add(x, w.linear(w.merge(mixed, hidden), f"{prefix}.self_attn.out_proj"))
        asked = w.norm(x, f"{prefix}.encoder_attn_layer_norm")
        query = w.heads(w.linear(asked, f"{prefix}.encoder_attn.q_proj", scale=1 / sqrt(size)), heads, size)
        key, value = (op.gather(cross, w.constant(np.int64(layer)), axis=1) for cross in crosses)
        mixed = op.matmul(op.softmax(w.scores(query, key, cross_mask), axis=-1), value)
        x = op.add(x, w.linear(w.merge(mixed, hidden), f"{prefix}.encoder_attn.out_proj"))
        x = w.feed_forward(x, prefix)

    # 3. The answers, and the last one's place.
    logits = op.matmul(w.norm(x, "decoder.layer_norm"), op.transpose(vocabulary, perm=[1, 0]))
    allowed = op.add(logits, op.gather(w.bind("suppression", suppression(config)), rule))
    highest = op.reduce_max(allowed, w.shape(-1), keepdims=True)
    index = w.constant(np.arange(config.vocab_size, dtype=np.float32))
    beyond = w.constant(np.float32(config.vocab_size))
    following = op.reduce_min(op.where(op.less(allowed, highest), beyond, index), w.shape(-1), keepdims=False)
    following = op.cast(following, to=np.int32)
    logprob = op.neg(op.log(op.reduce_sum(op.exp(op.sub(allowed, highest)), w.shape(-1), keepdims=False)))
    behind = op.add(position, op.cast(w.length(rule, 1), to=np.int32))
    there = op.equal(slot, op.unsqueeze(behind, w.shape(1)))

    def last(answers: object) -> object:
        return op.gather(answers, w.shape(-1), axis=1)

    outputs = {
        f"text{NEXT}": op.where(there, last(following), text),
        f"position{NEXT}": op.min([behind, end]),
        f"likely{NEXT}": op.where(there, last(logprob), likely),
        f"self_kv{NEXT}": op.concat(caches, axis=1),
        "next": following,
        "logprob": logprob,
        "logits": logits,
    }
    inputs = {"text": text, "position": position, "likely": likely, "self_kv": self_kv, "rule": rule, "heard": heard}
    return w.model({**inputs, "cross_k": crosses[0], "cross_v": crosses[1]}, outputs)


def reader_example(config: WhisperConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random tokens, places and caches; every row but the first hears less and stands earlier."""
    rows, tokens, slots, positions = (sizes[name] for name in ("rows", "tokens", "slots", "positions"))
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    most = max(0, slots - tokens - 1)
    position = np.full(rows, most, dtype=np.int32)
    heard = np.full(rows, positions, dtype=np.int32)
    position[1:] = generator.integers(0, most + 1, rows - 1)
    heard[1:] = generator.integers(1, positions + 1, rows - 1)
    cross = (rows, layers, heads, positions, size)
    return {
        "text": generator.integers(0, config.vocab_size, (rows, slots), dtype=np.int32),
        "position": position,
        "likely": np.zeros((rows, slots), dtype=np.float32),
        "self_kv": generator.standard_normal((rows, layers, 2 * heads, slots, size), dtype=np.float32),
        "rule": generator.integers(0, len(RULES), (rows, tokens), dtype=np.int32),
        "heard": heard,
        "cross_k": generator.standard_normal(cross, dtype=np.float32),
        "cross_v": generator.standard_normal(cross, dtype=np.float32),
    }


def reader_reference(reference: WhisperReference, inputs: Arrays) -> Arrays:
    """What a run answers and leaves behind, by the decoder's own reference."""
    text, position = inputs["text"], inputs["position"].astype(np.int64)
    rows, slots = text.shape
    count = inputs["rule"].shape[1]
    taken = position[:, None] + np.arange(count)
    kv = inputs["self_kv"].astype(np.float64)
    layers, heads = kv.shape[1], kv.shape[2] // 2
    asked: Arrays = {
        "tokens": np.take_along_axis(text, taken, axis=1).astype(np.int64),
        "position": position,
        "heard": inputs["heard"].astype(np.int64),
        "places": np.tile(np.arange(count), (rows, 1)),
        "rule": inputs["rule"].astype(np.int64),
    }
    for layer in range(layers):
        asked |= {f"past_k.{layer}": kv[:, layer, :heads], f"past_v.{layer}": kv[:, layer, heads:]}
        asked |= {f"cross_{part}.{layer}": inputs[f"cross_{part}"][:, layer] for part in "kv"}
    made = reference.decode(asked)
    likely = inputs["likely"].astype(np.float64)
    for row in range(rows):
        new = made["new"].reshape(layers, 2, *made["new"].shape[1:])[:, :, row]  # [layers, kv, heads, tokens, size]
        kv[row, :, :, taken[row]] = new.reshape(layers, 2 * heads, count, -1).transpose(2, 0, 1, 3)
        if position[row] + count < slots:
            likely[row, position[row] + count] = made["logprob"][row, -1]
    return {
        f"position{NEXT}": np.minimum(position + count, slots - 1),
        f"likely{NEXT}": likely,
        f"self_kv{NEXT}": kv,
        "logprob": made["logprob"],
        "logits": made["logits"],
    }
