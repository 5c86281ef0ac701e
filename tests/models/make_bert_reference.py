"""Makes bert_reference.npz: what transformers and sentence-transformers compute with the small seeded models of
bert_small_model.py.

Run with PyTorch, transformers and sentence-transformers installed, from the repository's root:
    PYTHONPATH=src:. python tests/models/make_bert_reference.py
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aula.models.checkpoints import Checkpoint
from tests.models.bert_small_model import CHANGES, MODULES, SENTENCES, inputs, small, small_sentence_encoder


def transformers_outputs(checkpoint: Checkpoint, architecture: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """What the class `architecture` gives, by the names of its outputs. Loads the folder as a user would."""
    import torch
    import transformers

    # What the recipe writes of a model that guesses masked words is its encoder.
    name = "BertModel" if architecture in ("BertForMaskedLM", "BertForPreTraining") else architecture
    model, told = getattr(transformers, name).from_pretrained(
        checkpoint.folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not told["missing_keys"], told
    with torch.no_grad():
        outputs = model.eval()(**{key: torch.from_numpy(array) for key, array in tensors.items()})
    names = {"last_hidden_state": "hidden", "pooler_output": "pooled"}
    return {names.get(key, key): array.numpy() for key, array in outputs.items()}


def sentence_vectors(checkpoint: Checkpoint) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(checkpoint.folder), device="cpu").encode(SENTENCES, convert_to_numpy=True)


def main() -> None:
    stored: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in CHANGES:
            checkpoint = small(Path(folder) / variant, variant)
            architecture = variant if variant.startswith("Bert") else "BertModel"
            for name, array in transformers_outputs(checkpoint, architecture, inputs()).items():
                stored[f"{variant}/{name}"] = array
        digest = hashlib.sha256((Path(folder) / "BertModel" / "model.safetensors").read_bytes()).hexdigest()
        for name in MODULES:
            stored[f"sentences/{name}"] = sentence_vectors(small_sentence_encoder(Path(folder) / name, name))
    np.savez_compressed(Path(__file__).with_name("bert_reference.npz"), digest=digest, **stored)


if __name__ == "__main__":
    main()
