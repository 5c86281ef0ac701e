"""A Whisper with the true vocabulary, six seconds of window and little else, and a way to make it insist on tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.whisper import decoder_recipe, encoder_recipe, random_checkpoint
from aula.models.whisper_config import WhisperConfig
from aula.models.whisper_contexts import Contexts
from aula.models.whisper_decoding import WhisperDecoding
from aula.models.whisper_hearing import HearingOptions, WhisperHearing
from aula.models.whisper_seeded import made_up_tokenizer
from aula.models.whisper_tokenizer import WhisperTokenizer
from tests.models.whisper_small_model import SMALL

VOCABULARY = 51_865
THIN: dict[str, Any] = {
    **SMALL,
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "max_source_positions": 300,
    "max_target_positions": 48,
    "suppress_tokens": [1, 2, 7, 50_362],
    "begin_suppress_tokens": [220, 50_257],
}
WINDOW = 6 * 16_000
"""Samples."""


def thin_checkpoint(folder: Path, seed: int = 3, **changes: Any) -> Checkpoint:
    checkpoint = random_checkpoint({**THIN, **changes}, folder, seed)
    made_up_tokenizer(folder, changes.get("vocab_size", VOCABULARY))
    return checkpoint


def sessions_of(checkpoint: Checkpoint, backend: str = "onnxruntime") -> tuple[Session, Session]:
    import onnx

    opened = []
    for recipe in (encoder_recipe(checkpoint, "e"), decoder_recipe(checkpoint, "d")):
        path = checkpoint.folder / f"{recipe.name}.onnx"
        if not path.exists():
            onnx.save(recipe.write_graph(), str(path))
        opened.append(open_session(backend, path, SessionOptions(threads=1)))
    return opened[0], opened[1]


def hearing_of(
    checkpoint: Checkpoint, *, safe: Mapping[float, float] | None = None, options: HearingOptions | None = None
) -> WhisperHearing:
    config = WhisperConfig.from_checkpoint(checkpoint)
    decoding = WhisperDecoding(config, *sessions_of(checkpoint))
    tokenizer = WhisperTokenizer.open(checkpoint, config)
    return WhisperHearing(config, decoding, tokenizer, Contexts.of(config, 0.5, safe), options)


def insist_on(checkpoint: Checkpoint, tokens: dict[int, float]) -> None:
    """Every logit of these tokens becomes as large as said, whatever is heard."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint.weights_file)
    bias, matrix = tensors["model.decoder.layer_norm.bias"], tensors["model.decoder.embed_tokens.weight"]
    # What the norm leaves of a state has no part along the bias, so that only the bias counts along it.
    tensors["model.decoder.layer_norm.weight"][-1] = 0
    bias[-1] = 1.0
    for token, logit in tokens.items():
        matrix[token] = 0
        matrix[token, -1] = logit
    save_file(tensors, checkpoint.weights_file, metadata={"format": "pt"})
    for leftover in checkpoint.folder.glob("*.onnx"):
        leftover.unlink()


def make_sure(checkpoint: Checkpoint, times: float = 8.0) -> None:
    """What it writes becomes far likelier than the rest, so that no text is suspect; by less than 1, all are."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint.weights_file)
    for name in ("model.decoder.layer_norm.weight", "model.decoder.layer_norm.bias"):
        tensors[name] *= times
    save_file(tensors, checkpoint.weights_file, metadata={"format": "pt"})


def sound(seed: int, seconds: float = 3.0) -> Float32:
    """A tone that glides, in noise."""
    count = int(seconds * 16_000)
    generator = np.random.default_rng(seed)
    time = np.arange(count) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (150 + 300 * seed + 200 * np.sin(3 * time)) * time)
    return np.asarray(tone + 0.05 * generator.standard_normal(count), dtype=np.float32)


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**THIN, **changes}))
