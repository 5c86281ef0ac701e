"""Whisper on a GPU: the decoder's recipe, and the greedy loop that never leaves the device.

The encoder writes its keys and values where the decoder reads them; prompt and step share their states; the host starts
everything on one stream and waits once, for the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aula.backends.session import Session
from aula.backends.tensorrt import DeviceTensor, TensorRtSession
from aula.core.errors import EngineError
from aula.core.types import Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_stepper import NEXT, low_borders, stepper_states, write_stepper

__all__ = ["GPU_ROWS", "PROMPT", "WhisperStepping", "low_borders", "stepper_recipe"]

GPU_ROWS = 64
"""Utterances that one run of the decoder serves on a GPU."""
SLOTS = 64
POSITIONS = 250
PROMPT = 4
"""Start, language, task, no timestamps: read at once. Longer prompts are read on, token by token."""
ANY_FIRST, ANY_TEXT = 2, 1
"""Rules (whisper_tokens.RULES) at the start of a text, and within one."""


def stepper_recipe(
    checkpoint: Checkpoint, name: str, licences: tuple[Licence, ...] = (), *, seeded: bool = False
) -> Recipe:
    """`write_stepper` with its prompt graph. Profiles: "step" and "prompt" of one row that hears five seconds, "steps"
    and "prompts" of many, "window step" and "window prompt" of one row that hears the whole context."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.decoder_shapes()
    reference = WhisperReference(config, lambda: load_weights(checkpoint, shapes))
    slots, heard = min(SLOTS, config.max_target_positions), min(POSITIONS, config.max_source_positions)

    def profile(name: str, rows: int, positions: int) -> Profile:
        sizes = {"rows": rows, "slots": slots, "positions": positions}
        return Profile(name, {dimension: Size(size, size, size) for dimension, size in sizes.items()})

    served = {
        "step": (1, heard),
        "prompt": (1, heard),
        "steps": (GPU_ROWS, heard),
        "prompts": (GPU_ROWS, heard),
        "window-step": (1, config.max_source_positions),
        "window-prompt": (1, config.max_source_positions),
    }
    steering = checkpoint.folder / "generation_config.json"
    step = Recipe(
        name=name,
        revision=1,
        sources=(
            *checkpoint.weights_files,
            checkpoint.folder / "config.json",
            *((steering,) if steering.exists() else ()),
        ),
        write_graph=lambda: write_stepper(config, load_weights(checkpoint, shapes)),
        example=lambda sizes, generator: _example(config, sizes, generator, 1),
        reference=lambda inputs: _reference(config, reference, inputs, 1),
        profiles=tuple(profile(name, *sizes) for name, sizes in served.items()),
        limits={"slots": config.max_target_positions, "positions": config.max_source_positions},
        states=stepper_states(config),
        unproven=(f"text{NEXT}",),  # where two tokens are equally likely, another choice is no error
        seeded=seeded,
        licences=licences,
        half_tolerance=5e-2,
        low_borders=low_borders(config),
        rows="rows",
    )
    prompt = replace(
        step,
        write_graph=lambda: write_stepper(config, load_weights(checkpoint, shapes), prompt_tokens=PROMPT),
        example=lambda sizes, generator: _example(config, sizes, generator, PROMPT),
        reference=lambda inputs: _reference(config, reference, inputs, PROMPT),
    )
    return replace(step, by_profile={name: prompt for name in served if "prompt" in name})


def _example(config: WhisperConfig, sizes: Mapping[str, int], generator: np.random.Generator, count: int) -> Arrays:
    """Prompts of as many tokens as are read at once, or one more: both rules are met. Later rows hear less."""
    rows, slots, positions = sizes["rows"], sizes["slots"], sizes["positions"]
    heads, size = config.decoder_attention_heads, config.head_size
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
    for layer in range(config.decoder_layers):
        inputs[f"self_k.{layer}"] = generator.standard_normal((rows, heads, size, slots), dtype=np.float32)
        inputs[f"self_v.{layer}"] = generator.standard_normal((rows, heads, slots, size), dtype=np.float32)
        for part in "kv":
            shape = (rows, heads, positions, size)
            inputs[f"cross_{part}.{layer}"] = generator.standard_normal(shape, dtype=np.float32)
    return inputs


def _reference(config: WhisperConfig, reference: WhisperReference, inputs: Arrays, count: int) -> Arrays:
    """What a step leaves behind, by the decoder's own reference."""
    text, position = inputs["text"], inputs["position"].astype(np.int64)
    rows, slots = text.shape
    taken = position[:, None] + np.arange(count)
    rule = np.full((rows, count), ANY_TEXT, dtype=np.int64)
    rule[:, -1] = np.where(position + count == inputs["prompt"], ANY_FIRST, ANY_TEXT)
    asked: Arrays = {
        "tokens": np.take_along_axis(text, taken, axis=1).astype(np.int64),
        "position": position,
        "heard": inputs["heard"].astype(np.int64),
        "rule": rule,
    }
    for layer in range(config.decoder_layers):
        asked[f"past_k.{layer}"] = inputs[f"self_k.{layer}"].swapaxes(2, 3)
        asked[f"past_v.{layer}"] = inputs[f"self_v.{layer}"]
        asked |= {name: inputs[name] for name in (f"cross_k.{layer}", f"cross_v.{layer}")}
    made = reference.decode(asked)
    left: Arrays = {f"position{NEXT}": np.minimum(position + count, slots - 1)}
    likely = inputs["likely"].astype(np.float64)
    new = made["new"]
    for row in range(rows):
        if position[row] + count < slots:
            likely[row, position[row] + count] = made["logprob"][row, -1]
    left[f"likely{NEXT}"] = likely
    for layer in range(config.decoder_layers):
        key = inputs[f"self_k.{layer}"].astype(np.float64)
        value = inputs[f"self_v.{layer}"].astype(np.float64)
        for row in range(rows):
            key[row, :, :, taken[row]] = new[2 * layer, row].transpose(1, 0, 2)
            value[row, :, taken[row]] = new[2 * layer + 1, row].transpose(1, 0, 2)
        left |= {f"self_k.{layer}{NEXT}": key, f"self_v.{layer}{NEXT}": value}
    return left


class Stepper(Protocol):
    """What the loop needs of a session on a device; `TensorRtSession` has it."""

    def attach(self, name: str, tensor: DeviceTensor) -> None: ...

    def device_tensor(self, name: str) -> DeviceTensor: ...

    def enqueue(self, tensors: Mapping[str, NDArray[np.generic]]) -> None: ...

    def read_state(self, name: str) -> NDArray[np.generic]: ...

    def write_state(self, name: str, array: NDArray[np.generic]) -> None: ...


class WhisperStepping:
    """As many utterances at once as the engines have rows. Not for two threads at once.

    `encoder`, `prompt` and `step` are sessions of one bundle on one GPU, for the same rows and positions; the encoder
    may have fewer rows, and then listens several times. They are closed by `close`.
    """

    def __init__(
        self, config: WhisperConfig, encoder: TensorRtSession, prompt: TensorRtSession, step: TensorRtSession
    ) -> None:
        self._config = config
        self._encoder, self._prompt, self._step = encoder, prompt, step
        self.rows, self._slots = step.device_tensor("text").shape
        self._batch = encoder.device_tensor("mel").shape[0]
        if self.rows % self._batch:
            raise EngineError(
                f"an encoder of {self._batch} rows does not divide a decoder of {self.rows}",
                next_step="open both for the same rows",
            )
        # Everything on the encoder's stream; what one writes is read where it lies.
        for session in (prompt, step):
            session.follow(encoder)
        for pair in step.options.states:
            prompt.attach(pair.input, step.device_tensor(pair.input))
        for name in ("prompt", "heard"):
            step.attach(name, prompt.device_tensor(name))
        self._cross = [f"cross_{part}.{layer}" for layer in range(config.decoder_layers) for part in "kv"]
        for name in self._cross:
            prompt.attach(name, step.device_tensor(name))
        self._heard = np.full(self.rows, step.device_tensor("cross_k.0").shape[2], dtype=np.int32)
        self._text = np.zeros((self.rows, self._slots), dtype=np.int32)
        self._place(0)

    def write(
        self, mel: Float32, prompt: Sequence[int], tokens: int, *, end: int | None = None, look: int = 8
    ) -> list[list[int]]:
        """Greedy texts of at most `tokens` tokens, the prompt left out. `mel`, float32 [rows, bins, frames], may have
        fewer rows than the engines; with `end`, texts stop there, and after every `look` steps it is looked whether all
        have. Raises EngineError for too many rows, no prompt or more tokens than there are slots."""
        count = len(mel)
        self._check(count, prompt, tokens)
        self._text[:] = 0
        self._text[:, : len(prompt)] = prompt
        self._step.write_state("text", self._text)
        self._step.write_state("position", np.zeros(self.rows, dtype=np.int32))
        self._listen(mel)
        given = np.full(self.rows, len(prompt), dtype=np.int32)
        self._prompt.enqueue({"prompt": given, "heard": self._heard})
        left = len(prompt) - PROMPT + tokens - 1
        while left > 0:
            chunk = left if end is None else min(look, left)
            for _ in range(chunk):
                self._step.enqueue({})
            left -= chunk
            if end is not None and left and all(end in text for text in self._texts(count, len(prompt), tokens)):
                break
        texts = self._texts(count, len(prompt), tokens)
        return texts if end is None else [text[: text.index(end)] if end in text else text for text in texts]

    def close(self) -> None:
        for session in (self._step, self._prompt, self._encoder):
            session.close()

    def _listen(self, mel: Float32) -> None:
        for first in range(0, len(mel), self._batch):
            part = mel[first : first + self._batch]
            if len(part) < self._batch:
                part = np.concatenate([part, np.zeros((self._batch - len(part), *mel.shape[1:]), dtype=np.float32)])
            self._place(first)
            self._encoder.enqueue({"mel": np.ascontiguousarray(part)})

    def _place(self, first: int) -> None:
        """Let the encoder write the keys and values of the rows from `first` on."""
        if self._batch < self.rows or first == 0:
            for name in self._cross:
                self._encoder.attach(name, self._step.device_tensor(name).part(first, self._batch))

    def _texts(self, count: int, given: int, tokens: int) -> list[list[int]]:
        text = self._step.read_state("text")[:count, given : given + tokens]
        return [[int(token) for token in row] for row in text]

    def _check(self, count: int, prompt: Sequence[int], tokens: int) -> None:
        if not 0 < count <= self.rows:
            raise EngineError(
                f"{count} utterances for engines of {self.rows} rows", next_step=f"give 1 to {self.rows} at a time"
            )
        if len(prompt) < PROMPT or tokens < 1 or len(prompt) + tokens > self._slots:
            raise EngineError(
                f"a prompt of {len(prompt)} and {tokens} tokens do not fit into {self._slots} slots, "
                f"or the prompt is shorter than {PROMPT}",
                next_step="shorten the prompt, or build for more slots",
            )


def open_stepping(config: WhisperConfig, encoder: Session, prompt: Session, step: Session) -> WhisperStepping:
    """Raises EngineError for sessions that are not on a GPU."""
    for session in (encoder, prompt, step):
        if not isinstance(session, TensorRtSession):
            raise EngineError(
                f"{type(session).__name__} keeps no states on a device",
                next_step="open the parts of a bundle for a GPU; on a CPU use WhisperDecoding",
            )
    assert isinstance(encoder, TensorRtSession)
    assert isinstance(prompt, TensorRtSession)
    assert isinstance(step, TensorRtSession)
    return WhisperStepping(config, encoder, prompt, step)
