"""Whisper as two recipes, from a Hugging Face folder: tiny to large-v3 and turbo, multilingual and English-only.

The parts: `whisper_config` sizes and weights, `whisper_tokens` special tokens and rules, `whisper_mel` the front end,
`whisper_graphs` the two graphs, `whisper_reference` what they are checked against, `whisper_decoding` the loop,
`whisper_choice` choices outside the graph, `whisper_clips` real sound and its texts, `whisper_task` what int8 is
calibrated on and judged by.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aula.core.errors import ModelNotFoundError
from aula.core.types import Licence
from aula.engine.recipe import Arrays, Calibration, ContextProof, Model, Profile, Recipe, Size, Task
from aula.models import whisper_gpu, whisper_reader, whisper_task
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_clips import read_clips, read_sounds
from aula.models.whisper_config import WhisperConfig, load_weights
from aula.models.whisper_graphs import write_decoder, write_encoder
from aula.models.whisper_mel import FRAMES_A_POSITION
from aula.models.whisper_program import kernels_serve
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_tokens import RULES

if TYPE_CHECKING:
    from aula.engine.bundle import Bundle

LICENCES = (Licence("Whisper", "MIT", "weights by OpenAI; the copies on the Hugging Face hub say Apache-2.0"),)
QUESTION_POSITIONS = 250
"""Five seconds: 50 positions of the encoder a second."""

SHORT_POSITIONS = 300
"""Six seconds: a question of five and a second of silence (`whisper_contexts`), on a GPU."""

QUESTION_SLOTS = 64
"""Tokens of a prompt and a question; the slots grow where a text is longer."""

MOST_ROWS = 8
"""Utterances that one run of the decoder serves on a CPU."""


UNPROVEN = ("next", "logprob")
"""Outputs of the decoder that its reference leaves out."""


def _fixed(size: int) -> Size:
    return Size(size, size, size)


ONE = _fixed(1)


def whisper_model(
    checkpoint: Checkpoint, name: str, *, clips: Path | None = None, calibrate: Path | None = None, seeded: bool = False
) -> Model:
    """The parts "encoder" and "decoder". Int8 of the encoder is made by the builder, that of the decoder is written
    here, by rounding its matrices.

    `clips`: labelled clips that int8 of either part is judged by (see `read_clips`); without them nothing judges.
    `calibrate`: clips whose sound the encoder's ranges are found on, their texts not needed; None means `clips`.
    `seeded`: the weights are made up, and are only measured; then the encoder is calibrated on noise.
    Raises CheckpointError for another architecture, CalibrationError for lists of clips that cannot be read or are
    too short to judge by.
    """
    config = WhisperConfig.from_checkpoint(checkpoint)
    labelled = None if clips is None else whisper_task.enough(read_clips(clips), clips)
    heard = labelled if calibrate is None else read_sounds(calibrate)
    source = (calibrate or clips or Path()).name

    def calibration() -> Calibration:
        return whisper_task.noise(config) if heard is None else whisper_task.calibration(config, heard, source)

    evaluations: dict[str, Callable[[], Task]] = {}
    if labelled is not None:
        judged = whisper_task.Judge(checkpoint, config, labelled)
        evaluations = {
            "encoder": lambda: judged.task("encoder", decoder.write_graph),
            "decoder": lambda: judged.task("decoder", encoder.write_graph),
        }
    encoder = encoder_recipe(
        checkpoint,
        f"{name}-encoder",
        calibration=calibration if heard is not None or seeded else None,
        task=evaluations.get("encoder"),
        seeded=seeded,
    )
    decoder = decoder_recipe(checkpoint, f"{name}-decoder", task=evaluations.get("decoder"), seeded=seeded)
    gpu_parts = _served_on_gpu if kernels_serve(config) else _stepping_on_gpu

    def prove_contexts(bundle: "Bundle", margin: float) -> ContextProof:
        from aula.models.whisper_proof import prove

        assert labelled is not None
        return prove(checkpoint, bundle, labelled, margin)

    parts = {"encoder": encoder, "decoder": decoder}
    proving = prove_contexts if labelled is not None and not seeded else None
    chosen = gpu_parts(checkpoint, config, name, encoder, seeded)
    return Model(name, parts, gpu_parts=chosen, prove_contexts=proving)


def _served_on_gpu(
    checkpoint: Checkpoint, config: WhisperConfig, name: str, encoder: Recipe, seeded: bool
) -> dict[str, Recipe]:
    """What the rung on a GPU is made of: six seconds or the whole window, and a decoder that is a reader."""
    window, short = config.max_source_positions, min(SHORT_POSITIONS, config.max_source_positions)
    listener = whisper_gpu.listener_recipe(encoder, checkpoint, whisper_gpu.MANY)
    listens = whisper_gpu.listening
    profiles = whisper_reader.reader_profiles(config.max_target_positions, window)
    return {
        "encoder": replace(listener, profiles=(listens("question", 1, short), listens("window", 1, window))),
        "decoder": whisper_reader.reader_recipe(checkpoint, f"{name}-decoder", profiles, LICENCES, seeded=seeded),
    }


def _stepping_on_gpu(
    checkpoint: Checkpoint, config: WhisperConfig, name: str, encoder: Recipe, seeded: bool
) -> dict[str, Recipe]:
    """For architectures that our own kernels do not serve: greedy steps by TensorRT alone, which no rung uses."""
    window, slots = config.max_source_positions, min(QUESTION_SLOTS, config.max_target_positions)
    positions = min(QUESTION_POSITIONS, window)
    form, listens, steps = whisper_gpu.FEW, whisper_gpu.listening, whisper_gpu.stepping
    listener = whisper_gpu.listener_recipe(encoder, checkpoint, form)
    profiles = (
        steps("step", 1, positions, slots),
        steps("prompt", 1, positions, slots),
        steps("window-step", 1, window, slots),
        steps("window-prompt", 1, window, slots),
    )
    stepper = whisper_gpu.stepper_recipe(checkpoint, f"{name}-decoder", form, profiles, LICENCES, seeded=seeded)
    return {
        "encoder": replace(listener, profiles=(listens("question", 1, positions), listens("window", 1, window))),
        "decoder": stepper,
    }


def encoder_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    calibration: Callable[[], Calibration] | None = None,
    task: Callable[[], Task] | None = None,
    seeded: bool = False,
) -> Recipe:
    """mel, float32 [rows, bins, frames], to hidden and all cross keys and values: see `write_encoder`.

    Profiles: "question" is five seconds, "window" the whole context, each of one row.
    """
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.encoder_shapes()
    most = config.max_source_positions * FRAMES_A_POSITION
    question = min(QUESTION_POSITIONS * FRAMES_A_POSITION, most)

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        mel = generator.uniform(-1, 1, (sizes["rows"], config.num_mel_bins, sizes["frames"]))
        return {"mel": mel.astype(np.float32)}

    return Recipe(
        name=name,
        revision=2,
        sources=_sources(checkpoint),
        write_graph=lambda: write_encoder(config, load_weights(checkpoint, shapes)),
        example=example,
        reference=WhisperReference(config, lambda: load_weights(checkpoint, shapes)).encode,
        profiles=(
            Profile("question", {"rows": _fixed(1), "frames": _fixed(question)}),
            Profile("window", {"rows": _fixed(1), "frames": _fixed(most)}),
        ),
        limits={"frames": most},
        shared=True,
        calibration=calibration,
        task=task,
        seeded=seeded,
        licences=LICENCES,
    )


def decoder_recipe(
    checkpoint: Checkpoint, name: str, *, task: Callable[[], Task] | None = None, seeded: bool = False
) -> Recipe:
    """Tokens, cached keys and values to the likeliest next tokens: see `write_decoder`. Its int8 has rounded weights
    alone; runtimes round the activations of each row as they come (dynamic quantisation).

    Profiles: "step" is one token of one row in a question's slots, "long" the same in any number of them, "prompt"
    several tokens, "window" a step that hears the whole context, "rows" a step of several utterances. They are timed
    apart; one session serves them all, since each would hold the weights again.

    The reference leaves out `next`: where two tokens are equally likely, another choice is not an error; and `logprob`,
    which is near 0 where the choice is all but certain, so that any rounding is large beside it. The logits, from which
    both come, are checked.
    """
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.decoder_shapes()
    reference = WhisperReference(config, lambda: load_weights(checkpoint, shapes))
    whole, most = config.max_source_positions, config.max_target_positions
    heard, slots = min(QUESTION_POSITIONS, whole), min(QUESTION_SLOTS, most)

    def proof(inputs: Arrays) -> Arrays:
        return {name: array for name, array in reference.decode(inputs).items() if name not in UNPROVEN}

    def profile(name: str, rows: Size, slots: Size, positions: Size, **more: Size) -> Profile:
        sizes = {"rows": rows, "tokens": ONE, "answers": ONE, "slots": slots, "positions": positions, **more}
        return Profile(name, sizes)

    return Recipe(
        name=name,
        revision=3,
        sources=_sources(checkpoint),
        write_graph=lambda: write_decoder(config, load_weights(checkpoint, shapes)),
        example=lambda sizes, generator: decoder_example(config, sizes, generator),
        reference=proof,
        profiles=(
            profile("step", ONE, _fixed(slots), Size(1, heard, whole)),
            profile("long", ONE, Size(1, most, most), Size(1, heard, whole)),
            profile(
                "prompt",
                ONE,
                Size(16, slots, slots),
                Size(1, heard, whole),
                tokens=Size(2, 4, 16),
                answers=Size(1, 2, 16),
            ),
            profile("window", ONE, _fixed(slots), _fixed(whole)),
            profile("rows", Size(1, 4, MOST_ROWS), _fixed(slots), Size(1, heard, heard)),
        ),
        limits={"tokens": most, "answers": most, "slots": most, "positions": whole},
        shared=True,
        unproven=UNPROVEN,
        # One scale a row and product: a step of whisper-small takes 9.7 ms, with the runtime's habit of 32 values 10.8.
        dynamic_quantisation=config.d_model,
        task=task,
        written={"int8": lambda: write_decoder(config, load_weights(checkpoint, shapes), int8_weights=True)},
        seeded=seeded,
        licences=LICENCES,
    )


def decoder_example(config: WhisperConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random tokens, places and caches; every row but the first has fewer slots filled and hears less."""
    rows, tokens, answers = sizes["rows"], sizes["tokens"], sizes["answers"]
    room = min(sizes["slots"], config.max_target_positions - tokens)
    position = np.full(rows, max(0, room - 1), dtype=np.int64)
    heard = np.full(rows, sizes["positions"], dtype=np.int64)
    for row in range(1, rows):
        position[row] = generator.integers(0, room + 1)
        heard[row] = generator.integers(1, sizes["positions"] + 1)
    inputs: Arrays = {
        "tokens": generator.integers(0, config.vocab_size, (rows, tokens), dtype=np.int64),
        "position": position,
        "heard": heard,
        "places": np.sort(generator.integers(0, tokens, (rows, answers), dtype=np.int64), axis=1),
        "rule": generator.integers(0, len(RULES), (rows, answers), dtype=np.int64),
    }
    lengths = {"past": sizes["slots"], "cross": sizes["positions"]}
    for layer in range(config.decoder_layers):
        for kind, length in lengths.items():
            for part in "kv":
                shape = (rows, config.decoder_attention_heads, length, config.head_size)
                inputs[f"{kind}_{part}.{layer}"] = generator.standard_normal(shape, dtype=np.float32)
    return inputs


def _sources(checkpoint: Checkpoint) -> tuple[Path, ...]:
    steering = checkpoint.folder / "generation_config.json"
    return (
        *checkpoint.weights_files,
        checkpoint.folder / "config.json",
        *((steering,) if steering.exists() else ()),
    )


_WIDTHS = {
    "whisper-tiny": (384, 4, 4, 6, 80, 51_865),
    "whisper-tiny.en": (384, 4, 4, 6, 80, 51_864),
    "whisper-base": (512, 6, 6, 8, 80, 51_865),
    "whisper-base.en": (512, 6, 6, 8, 80, 51_864),
    "whisper-small": (768, 12, 12, 12, 80, 51_865),
    "whisper-small.en": (768, 12, 12, 12, 80, 51_864),
    "whisper-medium": (1024, 24, 24, 16, 80, 51_865),
    "whisper-medium.en": (1024, 24, 24, 16, 80, 51_864),
    "whisper-large-v2": (1280, 32, 32, 20, 80, 51_865),
    "whisper-large-v3": (1280, 32, 32, 20, 128, 51_866),
    "whisper-large-v3-turbo": (1280, 32, 4, 20, 128, 51_866),
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: {
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": hidden,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * hidden,
        "decoder_ffn_dim": 4 * hidden,
        "num_mel_bins": bins,
        "vocab_size": vocabulary,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }
    for name, (hidden, encoder_layers, decoder_layers, heads, bins, vocabulary) in _WIDTHS.items()
}
"""config.json of each published size (the sizes' table of the paper, and the model cards of large-v3 and turbo)."""


def architecture(name: str) -> dict[str, Any]:
    """Raises ModelNotFoundError."""
    if name not in ARCHITECTURES:
        raise ModelNotFoundError(
            f"there is no Whisper called {name!r}", available=list(ARCHITECTURES), next_step="choose one of these"
        )
    return ARCHITECTURES[name]


def random_checkpoint(raw: Mapping[str, Any], folder: Path, seed: int) -> Checkpoint:
    """Write config.json and seeded random weights of that architecture into `folder`, for benches and tests.

    The scales keep activations near one and make one next token, which depends on the sound, far likelier than the
    others, as training does.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(raw)), encoding="utf-8")
    checkpoint = Checkpoint(folder)
    config = WhisperConfig.from_checkpoint(checkpoint)
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in (config.encoder_shapes() | config.decoder_shapes()).items():
        array = generator.standard_normal(shape, dtype=np.float32)
        if "norm" in name and name.endswith("weight"):
            array = 1 + array / np.float32(10)
        elif len(shape) == 1:
            array /= np.float32(10)
        elif "embed" not in name:
            # Sharp attention: else every text says the same whatever is heard.
            gain = 3 if "q_proj" in name else 1.5
            array *= np.float32(gain / sqrt(np.prod(shape[1:])))
        elif "tokens" in name:
            array /= np.float32(2)
        tensors[f"model.{name}"] = array
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return checkpoint
