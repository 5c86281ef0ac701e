"""Makes parakeet_reference.npz: what transformers' ParakeetForCTC and its feature extractor say of the small seeded
checkpoints of parakeet_small_model.py.

Run with PyTorch and transformers installed, from the repository's root:
    PYTHONPATH=src:. python tests/models/make_parakeet_reference.py
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.types import Float32
from aula.models.checkpoints import Checkpoint
from aula.models.parakeet_config import ParakeetConfig
from tests.models.parakeet_small_model import FRAMES, VARIANTS, mel_frames, small, sound


def said(checkpoint: Checkpoint, mel: Float32, counted: int | None = None) -> Float32:
    """transformers' logarithms; of so many frames where not all count."""
    import torch
    from transformers import ParakeetForCTC

    model, told = ParakeetForCTC.from_pretrained(
        checkpoint.folder, output_loading_info=True, attn_implementation="eager"
    )
    if any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"transformers reads the checkpoint otherwise: {told}")
    mask = None if counted is None else (torch.arange(mel.shape[1]) < counted)[None]
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(mel), attention_mask=mask).logits
    made: Float32 = torch.log_softmax(logits, -1).numpy()
    return made


def features(bins: int, samples: Float32) -> tuple[Float32, int]:
    """transformers' features of a sound, and how many of its frames count."""
    from transformers import ParakeetFeatureExtractor

    made = ParakeetFeatureExtractor(feature_size=bins)(samples, sampling_rate=16_000)
    return np.asarray(made["input_features"][0], np.float32), int(made["attention_mask"][0].sum())


def main() -> None:
    arrays: dict[str, Any] = {"features": features(80, sound())[0]}
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            checkpoint = small(Path(folder) / variant, variant)
            config = ParakeetConfig.from_checkpoint(checkpoint)
            for frames in FRAMES:
                arrays[f"{variant} {frames}"] = said(checkpoint, mel_frames(config, frames))
    np.savez_compressed(Path(__file__).with_name("parakeet_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
