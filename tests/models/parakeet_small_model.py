"""Small seeded checkpoints in the layout of Hugging Face's ParakeetForCTC, and a sound, for make_parakeet_reference.py
and the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.parakeet_config import ParakeetConfig

ENCODER: dict[str, Any] = {
    "model_type": "parakeet_encoder", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "hidden_act": "silu", "conv_kernel_size": 9, "subsampling_factor": 8,
    "subsampling_conv_channels": 12, "num_mel_bins": 16, "attention_bias": True, "convolution_bias": True,
    "scale_input": True,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "without biases": {"attention_bias": False, "convolution_bias": False, "scale_input": False},
    "other sizes": {"subsampling_factor": 4, "conv_kernel_size": 5, "num_mel_bins": 80, "num_attention_heads": 2},
}
PIECES = ("<unk>", "\u2581", "\u2581the", "\u2581What", "at", "e", "t", "a", "o", "'", "\u2581s")
FRAMES = (73, 80)


def small(folder: Path, variant: str = "as published", *, changes: dict[str, Any] | None = None) -> Checkpoint:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    encoder = {**ENCODER, **VARIANTS[variant]}
    raw = {
        "architectures": ["ParakeetForCTC"], "model_type": "parakeet_ctc", "vocab_size": len(PIECES) + 1,
        "pad_token_id": len(PIECES), "encoder_config": encoder, **(changes or {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    tokenizer = {
        "model": {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(PIECES)}},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": len(PIECES), "content": "<pad>", "special": True},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    extractor = {"feature_size": encoder["num_mel_bins"], "sampling_rate": 16000, "preemphasis": 0.97}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    checkpoint = Checkpoint(folder)
    rng = np.random.default_rng(6)
    weights: dict[str, Any] = {}
    for name, shape in ParakeetConfig.from_checkpoint(checkpoint).shapes().items():
        array = rng.standard_normal(shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
        if "running_var" in name:
            array = np.abs(array) + 0.5
        elif "norm" in name and name.endswith("weight"):
            array = 1 + array / 4
        weights[name] = array.astype(np.float32)
        if "running_var" in name:
            weights[name.replace("running_var", "num_batches_tracked")] = np.array(7, np.int64)
    save_file(weights, folder / "model.safetensors")
    return checkpoint


def mel_frames(config: ParakeetConfig, frames: int, rows: int = 1) -> Float32:
    return np.random.default_rng(7).standard_normal((rows, frames, config.num_mel_bins), dtype=np.float32)


def sound(samples: int = 9_000) -> Float32:
    """A tone that rises, and a little noise."""
    time = np.arange(samples) / 16_000
    noise = np.random.default_rng(8).standard_normal(samples) / 200
    return (np.sin(2 * np.pi * (200 + 1500 * time) * time) / 3 + noise).astype(np.float32)
