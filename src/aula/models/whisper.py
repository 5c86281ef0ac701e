"""Whisper as two recipes, from a Hugging Face folder: tiny to large-v3 and turbo, multilingual and English-only.

The parts: `whisper_config` sizes and weights, `whisper_tokens` special tokens and rules, `whisper_mel` the front end,
`whisper_graphs` the two graphs, `whisper_reference` what they are checked against, `whisper_decoding` the greedy loop.
"""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.errors import ModelNotFoundError
from aula.core.types import Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models.checkpoints import Checkpoint
from aula.models.whisper_config import WhisperConfig, load_weights, weight_files
from aula.models.whisper_graphs import rounded, write_decoder, write_encoder
from aula.models.whisper_mel import FRAMES_A_POSITION
from aula.models.whisper_reference import WhisperReference
from aula.models.whisper_tokens import RULES

LICENCES = (Licence("Whisper", "MIT", "weights by OpenAI; the copies on the Hugging Face hub say Apache-2.0"),)
QUESTION_POSITIONS = 250
"""Five seconds: 50 positions of the encoder a second."""

QUESTION_SLOTS = 64
"""Tokens of a prompt and a question; the slots grow where a text is longer."""


def encoder_recipe(checkpoint: Checkpoint, name: str) -> Recipe:
    """mel, float32 [rows, bins, frames], to hidden and all cross keys and values: see `write_encoder`."""
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.encoder_shapes()
    most = config.max_source_positions * FRAMES_A_POSITION
    usual = min(QUESTION_POSITIONS * FRAMES_A_POSITION, most)

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        mel = generator.uniform(-1, 1, (sizes["rows"], config.num_mel_bins, sizes["frames"]))
        return {"mel": mel.astype(np.float32)}

    return Recipe(
        name=f"{name}-encoder",
        revision=1,
        sources=_sources(checkpoint),
        write_graph=lambda: write_encoder(config, load_weights(checkpoint, shapes)),
        example=example,
        reference=WhisperReference(config, lambda: load_weights(checkpoint, shapes)).encode,
        profiles=(
            Profile("question", {"rows": Size(1, 1, 1), "frames": Size(min(100, usual), usual, usual)}),
            Profile("window", {"rows": Size(1, 1, 1), "frames": Size(usual, most, most)}),
        ),
        licences=LICENCES,
    )


def decoder_recipe(checkpoint: Checkpoint, name: str, *, int8_weights: bool = False) -> Recipe:
    """Tokens, cached keys and values to the likeliest next tokens: see `write_decoder`.

    The recipe's reference leaves out `next`: where two tokens are equally likely, another choice is not an error.
    The log probability of the choice is checked. With `int8_weights` it computes with the rounded weights: what the
    rounding itself costs is for the task's metric to say.
    """
    config = WhisperConfig.from_checkpoint(checkpoint)
    shapes = config.decoder_shapes()

    def proven() -> dict[str, Float32]:
        weights = load_weights(checkpoint, shapes)
        return rounded(weights) if int8_weights else weights

    reference = WhisperReference(config, proven)
    positions = min(QUESTION_POSITIONS, config.max_source_positions)
    slots = min(QUESTION_SLOTS, config.max_target_positions)

    def proof(inputs: Arrays) -> Arrays:
        return {name: array for name, array in reference.decode(inputs).items() if name != "next"}

    def profile(name: str, tokens: Size, slots: Size, heard: int) -> Profile:
        sizes = {"rows": Size(1, 1, 4), "tokens": tokens, "slots": slots, "positions": Size(1, heard, heard)}
        return Profile(name, sizes)

    return Recipe(
        name=f"{name}-decoder" + ("-int8" if int8_weights else ""),
        revision=1,
        sources=_sources(checkpoint),
        write_graph=lambda: write_decoder(config, load_weights(checkpoint, shapes), int8_weights=int8_weights),
        example=lambda sizes, generator: decoder_example(config, sizes, generator),
        reference=proof,
        profiles=(
            profile("step", Size(1, 1, 1), Size(1, slots, config.max_target_positions), positions),
            profile("prompt", Size(2, 4, 16), Size(16, slots, slots), positions),
            profile("window", Size(1, 1, 1), Size(1, slots, config.max_target_positions), config.max_source_positions),
        ),
        # OpenVINO and ONNX Runtime round activations too where weights are int8 (dynamic quantisation).
        tolerance=0.2 if int8_weights else 1e-4,
        licences=LICENCES,
    )


def decoder_example(config: WhisperConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random tokens and caches; every row but the first has fewer slots filled and hears less."""
    rows, tokens = sizes["rows"], sizes["tokens"]
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
        "rule": generator.integers(0, len(RULES), (rows, tokens), dtype=np.int64),
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
        *weight_files(checkpoint),
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
