"""Makes whisper_reference.npz: what transformers computes with the small seeded model of whisper_small_model.py.

Run with PyTorch and transformers installed (the extra `export`), from the repository's root:
    PYTHONPATH=src:. python tests/models/make_whisper_reference.py
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aula.models.checkpoints import Checkpoint
from aula.models.whisper import random_checkpoint
from tests.models.whisper_small_model import INPUTS, POSITIONS, PROMPT, SEED, SMALL, TOKENS

SAMPLES, FRAMES = 7_777, 60


def mels(positions: int, bins: int, count: int) -> Any:
    return np.random.default_rng(positions).uniform(-1, 1, (count, bins, 2 * positions)).astype(np.float32)


def samples() -> Any:
    """Half a second of a rising tone in a little noise, float32 at 16 kHz."""
    time = np.arange(SAMPLES) / 16_000
    noise = 0.01 * np.random.default_rng(5).standard_normal(SAMPLES)
    return (0.3 * np.sin(2 * np.pi * (200 + 2000 * time) * time) + noise).astype(np.float32)


def transformers_model(checkpoint: Checkpoint, raw: dict[str, Any], positions: int) -> Any:
    """With a context of `positions`: transformers takes no shorter input than its context."""
    import torch
    from safetensors.torch import load_file
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    fields = {name: value for name, value in raw.items() if name != "model_type"}
    config = WhisperConfig(**{**fields, "max_source_positions": positions})
    config._attn_implementation = "eager"
    model = WhisperForConditionalGeneration(config).eval()
    weights = load_file(checkpoint.weights_file)
    name = "model.encoder.embed_positions.weight"
    weights[name] = weights[name][:positions]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["proj_out.weight"], missing
    assert not unexpected, unexpected
    model.tie_weights()
    torch.set_grad_enabled(False)
    return model


def hidden_and_tokens(model: Any, mel: Any, prompt: tuple[int, ...], tokens: int, raw: dict[str, Any]) -> Any:
    """Encoder output [positions, d_model], and the greedy continuation."""
    import torch

    encoded = model.model.encoder(torch.from_numpy(mel[None]))
    text = list(prompt)
    for step in range(tokens):
        logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([text])).logits[0, -1]
        logits[raw.get("suppress_tokens") or []] = -torch.inf
        if step == 0:
            logits[raw.get("begin_suppress_tokens") or []] = -torch.inf
        text.append(int(logits.argmax()))
    return encoded.last_hidden_state[0].numpy(), text[len(prompt) :]


def main() -> None:
    from transformers import WhisperFeatureExtractor

    stored: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(SMALL, Path(folder), SEED)
        stored["digest"] = hashlib.sha256(checkpoint.weights_file.read_bytes()).hexdigest()
        for positions in POSITIONS:
            model = transformers_model(checkpoint, SMALL, positions)
            made = [
                hidden_and_tokens(model, mel, PROMPT, TOKENS, SMALL)
                for mel in mels(positions, SMALL["num_mel_bins"], INPUTS // len(POSITIONS))
            ]
            stored[f"hidden_{positions}"] = np.stack([hidden for hidden, _ in made[:2]])
            stored[f"tokens_{positions}"] = np.array([tokens for _, tokens in made], dtype=np.int16)
    for bins in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bins)
        features = extractor(samples(), sampling_rate=16_000, max_length=FRAMES * 160, return_tensors="np")
        stored[f"mel_{bins}"] = features["input_features"][0]
    np.savez_compressed(Path(__file__).with_name("whisper_reference.npz"), **stored)


if __name__ == "__main__":
    main()
