"""How a Whisper step on a GPU is proven: made-up inputs of any size, and what the reference leaves behind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.engine.recipe import Arrays
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_stepper import NEXT, StepForm

MADE_UP_ROWS = 8
"""Of an example's caches; later rows repeat them, since hundreds of rows are gigabytes."""
ANY_FIRST, ANY_TEXT = 2, 1
"""Rules (whisper_tokens.RULES) at the start of a text, and within one."""


def example(
    config: WhisperConfig, form: StepForm, sizes: Mapping[str, int], generator: np.random.Generator, count: int
) -> Arrays:
    """Prompts of as many tokens as are read at once, or one more: both rules are met. Later rows hear less."""
    rows, slots, positions = sizes["rows"], sizes["slots"], sizes["positions"]
    heads, size, layers = config.decoder_attention_heads, config.head_size, config.decoder_layers
    heard = np.full(rows, positions, dtype=np.int32)
    heard[1:] = generator.integers(1, positions + 1, rows - 1)
    position = np.zeros(rows, dtype=np.int32)
    if count == 1:
        position[:] = generator.integers(0, slots - 1, rows)
    inputs: Arrays = {
        "text": generator.integers(0, config.vocab_size, (rows, slots), dtype=np.int32),
        "position": position,
        "likely": np.zeros((rows, slots), dtype=np.float32),
        "prompt": generator.integers(count, count + 2, rows, dtype=np.int32),
        "heard": heard,
    }
    shapes: dict[str, tuple[int, ...]]
    if form.stacked:
        shapes = {"self_kv": (layers, rows, 2 * heads, slots, size)}
        shapes |= {f"cross_{part}": (layers, rows, heads, positions, size) for part in "kv"}
    else:
        shapes = {f"self_k.{layer}": (rows, heads, size, slots) for layer in range(layers)}
        shapes |= {f"self_v.{layer}": (rows, heads, slots, size) for layer in range(layers)}
        shapes |= {f"cross_{p}.{layer}": (rows, heads, positions, size) for p in "kv" for layer in range(layers)}
    axis = 1 if form.stacked else 0
    repeated = np.arange(rows) % MADE_UP_ROWS

    def made_up(shape: tuple[int, ...]) -> NDArray[Any]:
        """Of caches in half precision no more than these hold: reference and engine then begin with equal numbers, and
        nothing is rounded row by row."""
        few = (*shape[:axis], min(rows, MADE_UP_ROWS), *shape[axis + 1 :])
        made = generator.standard_normal(few, dtype=np.float32)
        return (made.astype(np.float16) if form.low_caches else made).take(repeated, axis=axis)

    return inputs | {name: made_up(shape) for name, shape in shapes.items()}


class StepReference:
    """What a step leaves behind, by the decoder's own reference. `count` tokens are read at once."""

    def __init__(self, config: WhisperConfig, form: StepForm, reference: WhisperReference, count: int) -> None:
        self._config, self._form, self._reference, self._count = config, form, reference, count
        self._last: tuple[Arrays, Arrays] | None = None

    def outputs(self, inputs: Arrays) -> Arrays:
        made = self._decoded(inputs)
        slots, count = inputs["text"].shape[1], self._count
        position = inputs["position"].astype(np.int64)
        taken = position[:, None] + np.arange(count)
        past = [[cache.astype(np.float64) for cache in self._past(inputs, layer)] for layer in self._layers()]
        left: Arrays = {f"position{NEXT}": np.minimum(position + count, slots - 1)}
        likely = inputs["likely"].astype(np.float64)
        for row in range(len(position)):
            if position[row] + count < slots:
                likely[row, position[row] + count] = made["logprob"][row, -1]
            for layer, pair in enumerate(past):
                for side, cache in enumerate(pair):
                    cache[row, :, taken[row]] = made["new"][2 * layer + side, row].transpose(1, 0, 2)
        left[f"likely{NEXT}"] = likely
        if self._form.stacked:
            left[f"self_kv{NEXT}"] = np.stack([np.concatenate(pair, axis=1) for pair in past])
            return left
        for layer, (key, value) in enumerate(past):
            left |= {f"self_k.{layer}{NEXT}": key.swapaxes(2, 3), f"self_v.{layer}{NEXT}": value}
        return left

    def scales(self, inputs: Arrays) -> dict[str, float]:
        """A logarithm of a probability is a difference of logits, and as exact as they are."""
        return {f"likely{NEXT}": float(np.abs(self._decoded(inputs)["logits"]).max())}

    def _layers(self) -> range:
        return range(self._config.decoder_layers)

    def _past(self, inputs: Arrays, layer: int) -> tuple[Any, Any]:
        heads = self._config.decoder_attention_heads
        if self._form.stacked:
            return inputs["self_kv"][layer, :, :heads], inputs["self_kv"][layer, :, heads:]
        return inputs[f"self_k.{layer}"].swapaxes(2, 3), inputs[f"self_v.{layer}"]

    def _decoded(self, inputs: Arrays) -> Arrays:
        """Kept, since outputs and scales want the same."""
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, self._reference.decode(self._asked(inputs))
        return self._last[1]

    def _asked(self, inputs: Arrays) -> Arrays:
        text, position, count = inputs["text"], inputs["position"].astype(np.int64), self._count
        taken = position[:, None] + np.arange(count)
        rule = np.full((len(text), count), ANY_TEXT, dtype=np.int64)
        rule[:, -1] = np.where(position + count == inputs["prompt"], ANY_FIRST, ANY_TEXT)
        asked: Arrays = {
            "tokens": np.take_along_axis(text, taken, axis=1).astype(np.int64),
            "position": position,
            "heard": inputs["heard"].astype(np.int64),
            "places": np.tile(np.arange(count), (len(text), 1)),
            "rule": rule,
        }
        for layer in self._layers():
            key, value = self._past(inputs, layer)
            asked |= {f"past_k.{layer}": key, f"past_v.{layer}": value}
            for part in "kv":
                name = f"cross_{part}"
                asked[f"{name}.{layer}"] = inputs[name][layer] if self._form.stacked else inputs[f"{name}.{layer}"]
        return asked
