"""Whisper on a GPU: the recipes of its two parts, and the greedy loop that never leaves the device.

The encoder writes its keys and values where the decoder reads them; prompt and step share their states; the host starts
everything on one stream and waits once, for the text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from aula.backends.device_session import DeviceSession
from aula.backends.device_tensor import DeviceTensor
from aula.backends.kernel_program import Program
from aula.backends.kernels import DECODER, source
from aula.core.errors import EngineError
from aula.core.types import Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_graphs import write_encoder
from aula.models.whisper_mel import FRAMES_A_POSITION
from aula.models.whisper_program import Step, kernels_serve, write_program
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_step_proof import StepReference, example
from aula.models.whisper_stepper import NEXT, StepForm, cross_names, low_borders, stepper_states, write_stepper

__all__ = ["FEW", "MANY", "PROMPT", "StepForm", "WhisperStepping", "listener_recipe", "stepper_recipe"]

PROMPT = 4
"""Start, language, task, no timestamps: read at once. Longer prompts are read on, token by token."""
FEW, MANY = StepForm(), StepForm(stacked=True, low_caches=True)
"""How a step is spelled for TensorRT, for one row and for many; our own kernels take the second."""


def listener_recipe(base: Recipe, checkpoint: Checkpoint, form: StepForm) -> Recipe:
    """The encoder's recipe for a GPU: what it hands to the decoder has the form in which the decoder takes it."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    reference = base.reference

    def stacked(inputs: Arrays) -> Arrays:
        made = reference(inputs)
        kept = {name: array for name, array in made.items() if not name.startswith("cross_")}
        layers = range(config.decoder_layers)
        return kept | {name: np.stack([made[f"{name}.{i}"] for i in layers]) for name in ("cross_k", "cross_v")}

    return replace(
        base,
        write_graph=lambda: write_encoder(
            config, load_weights(checkpoint, config.encoder_shapes()), stacked=form.stacked
        ),
        reference=stacked if form.stacked else reference,
        task=None,
        low_borders=low_borders(config, form),
        handed_over=("hidden", *cross_names(config, form)),
        half_tolerance=5e-2,
        rows="rows",
        spelling="stacked" if form.stacked else "",
    )


def stepper_recipe(
    checkpoint: Checkpoint,
    name: str,
    form: StepForm,
    profiles: Sequence[Profile],
    licences: tuple[Licence, ...] = (),
    *,
    seeded: bool = False,
) -> Recipe:
    """`write_stepper`; profiles whose names end in "prompt" or "prompts" read a prompt, the others go a step. In the
    form of `MANY`, fp16 is a program of our own kernels wherever they serve the architecture."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    ours = form == MANY and kernels_serve(config)
    shapes = config.decoder_shapes()
    decoder = WhisperReference(config, lambda: load_weights(checkpoint, shapes))
    steering = checkpoint.folder / "generation_config.json"
    sources: tuple[Path, ...] = (*checkpoint.weights_files, checkpoint.folder / "config.json")

    def program(count: int, profile: Profile, capability: str) -> Program:
        sizes = {name: size.greatest for name, size in profile.sizes.items()}
        step = Step(sizes["rows"], count, sizes["slots"], sizes["positions"])
        return write_program(config, load_weights(checkpoint, shapes), step, capability)

    def recipe(count: int) -> Recipe:
        reference = StepReference(config, form, decoder, count)
        return Recipe(
            name=name,
            revision=1,
            sources=(*sources, *((steering,) if steering.exists() else ())),
            write_graph=lambda: write_stepper(config, load_weights(checkpoint, shapes), form, prompt_tokens=count),
            example=lambda sizes, generator: example(config, form, sizes, generator, count),
            reference=reference.outputs,
            profiles=tuple(profiles),
            limits={"slots": config.max_target_positions, "positions": config.max_source_positions},
            states=stepper_states(config, form),
            unproven=(f"text{NEXT}",),  # where two tokens are equally likely, another choice is no error
            seeded=seeded,
            licences=licences,
            half_tolerance=5e-2,
            low_borders=low_borders(config, form),
            handed_over=cross_names(config, form),
            scales=reference.scales,
            rows="rows",
            spelling=repr(form) + (hashlib.sha256(source(DECODER).encode()).hexdigest() if ours else ""),
            program=partial(program, count) if ours else None,
        )

    prompts = [profile.name for profile in profiles if profile.name.endswith(("prompt", "prompts"))]
    return replace(recipe(1), by_profile=dict.fromkeys(prompts, recipe(PROMPT)))


def listening(name: str, rows: int, positions: int) -> Profile:
    """Of the encoder: so many utterances, so long."""
    return _fixed(name, rows=rows, frames=FRAMES_A_POSITION * positions)


def stepping(name: str, rows: int, positions: int, slots: int) -> Profile:
    """Of the decoder."""
    return _fixed(name, rows=rows, slots=slots, positions=positions)


def _fixed(name: str, **sizes: int) -> Profile:
    return Profile(name, {dimension: Size(size, size, size) for dimension, size in sizes.items()})


class WhisperStepping:
    """As many utterances at once as the engines have rows. Not for two threads at once.

    `encoder`, `prompt` and `step` are sessions on one GPU, for the same rows and positions. They are closed by `close`.
    """

    def __init__(self, encoder: DeviceSession, prompt: DeviceSession, step: DeviceSession) -> None:
        self._encoder, self._prompt, self._step = encoder, prompt, step
        self.rows, self._slots = step.device_tensor("text").shape
        # Everything on the encoder's stream; what one writes is read where it lies.
        for session in (prompt, step):
            session.follow(encoder)
        for pair in step.options.states:
            prompt.attach(pair.input, step.device_tensor(pair.input))
        for name in ("prompt", "heard"):
            step.attach(name, prompt.device_tensor(name))
        cross = [spec.name for spec in step.inputs if spec.name.startswith("cross_")]
        for name in cross:
            for session in (step, prompt, encoder):
                session.attach(name, step.device_tensor(name))
        # Nobody asks for the hidden states; they stay where they are.
        encoder.attach("hidden", encoder.device_tensor("hidden"))
        positions = step.device_tensor(cross[0]).shape[-2]
        self._heard = np.full(self.rows, positions, dtype=np.int32)
        self._text = np.zeros((self.rows, self._slots), dtype=np.int32)
        self._start = np.zeros(self.rows, dtype=np.int32)
        self._resident = False

    def mel(self) -> DeviceTensor:
        """Where the encoder reads what `write` is given."""
        return self._encoder.device_tensor("mel")

    def keep_mel(self, mel: DeviceTensor) -> None:
        """Listen to what lies in this memory from now on, which somebody else fills."""
        self._encoder.attach("mel", mel)
        self._resident = True

    def write(
        self, mel: Float32 | None, prompt: Sequence[int], tokens: int, *, end: int | None = None, look: int = 8
    ) -> list[list[int]]:
        """Greedy texts of at most `tokens` tokens, the prompt left out.

        `mel`, float32 [rows, bins, frames], may have fewer rows than the engines; None where it is kept on the device.
        With `end`, texts stop there, and after every `look` steps it is looked whether all have. Raises EngineError for
        too many rows, too short a prompt or more tokens than there are slots.
        """
        count = self.rows if mel is None else len(mel)
        self._check(count, prompt, tokens, mel)
        self._text[:] = 0
        self._text[:, : len(prompt)] = prompt
        self._step.write_state("text", self._text)
        self._step.write_state("position", self._start)
        self._encoder.enqueue({} if mel is None else {"mel": self._padded(mel)})
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

    def _padded(self, mel: Float32) -> Float32:
        if len(mel) == self.rows:
            return np.ascontiguousarray(mel)
        return np.concatenate([mel, np.zeros((self.rows - len(mel), *mel.shape[1:]), dtype=np.float32)])

    def _texts(self, count: int, given: int, tokens: int) -> list[list[int]]:
        text = self._step.read_state("text")[:count, given : given + tokens]
        return [[int(token) for token in row] for row in text]

    def _check(self, count: int, prompt: Sequence[int], tokens: int, mel: Float32 | None) -> None:
        if (mel is None) != self._resident:
            raise EngineError(
                "the sound lies on the device already" if self._resident else "no sound was given",
                next_step="give mel, or keep_mel() once and None from then on",
            )
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
