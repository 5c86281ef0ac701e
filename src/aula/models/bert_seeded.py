"""Checkpoints with made-up weights in the true sizes, for benches and tests of speed and parity."""

import hashlib
import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.errors import ModelNotFoundError
from aula.engine.recipe import Calibration, Recipe
from aula.models.bert_config import HIDDEN, BertConfig
from aula.models.bert_modules import LISTING, POOLINGS
from aula.models.checkpoints import Checkpoint

EXAMPLES = 32

_WIDTHS = {
    "bert-base": (768, 12, 12, 30_522, "BertForMaskedLM"),
    "bert-base-chinese": (768, 12, 12, 21_128, "BertForMaskedLM"),
    "minilm": (384, 6, 12, 30_522, "BertModel"),
    "minilm-multilingual": (384, 12, 12, 250_037, "BertModel"),
    "bge-small-zh": (512, 4, 8, 21_128, "BertModel"),
}
_SENTENCE_ENCODERS: dict[str, tuple[str, bool, int]] = {
    "minilm": ("mean", True, 256),
    "minilm-multilingual": ("mean", False, 128),
    "bge-small-zh": ("cls", True, 512),
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: {
        "architectures": [head],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    for name, (hidden, layers, heads, vocabulary, head) in _WIDTHS.items()
}
"""config.json of `bert-base-uncased`, `bert-base-chinese`, `all-MiniLM-L6-v2`, `paraphrase-multilingual-MiniLM-L12-v2`
and `bge-small-zh-v1.5`, as they lie on the Hugging Face hub."""


def random_checkpoint(architecture: str | Mapping[str, Any], folder: Path, seed: int) -> Checkpoint:
    """Write seeded random weights into `folder`, with config.json and, for a sentence encoder, its modules.

    `architecture`: a name in ARCHITECTURES, or a config.json. Raises ModelNotFoundError and CheckpointError. The
    scales are those of trained weights where these decide how activations look: kernels keep the spread of what goes
    through them, and queries are strong enough that attention picks some tokens.
    """
    from safetensors.numpy import save_file

    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise ModelNotFoundError(
                f"there is no BERT called {architecture!r}",
                available=list(ARCHITECTURES),
                next_step="choose one of these",
            )
        raw = ARCHITECTURES[architecture]
    else:
        raw = dict(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", raw)
    if isinstance(architecture, str) and architecture in _SENTENCE_ENCODERS:
        write_modules(folder, raw["hidden_size"], *_SENTENCE_ENCODERS[architecture])
    checkpoint = Checkpoint(folder)
    config = BertConfig.from_checkpoint(checkpoint)
    generator = np.random.default_rng(seed)
    pooler = config.pooler_shapes() if config.head == HIDDEN else {}
    tensors = {}
    for name, shape in (config.weight_shapes() | config.head_shapes() | pooler).items():
        array = generator.standard_normal(shape, dtype=np.float32)
        if "LayerNorm" in name and name.endswith("weight"):
            array = 1 + array / np.float32(10)
        elif len(shape) == 1:
            array /= np.float32(10)
        elif "embeddings" in name:
            array *= np.float32(0.04)
        else:
            array *= np.float32((2 if "query" in name else 1) / sqrt(shape[1]))
        tensors[name] = array
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def write_modules(folder: Path, hidden_size: int, pooling: str, normalise: bool, longest: int) -> None:
    """modules.json and what it names: a sentence encoder with one pooling, over `longest` tokens at most."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if normalise else {})
    listing = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    _write_json(folder / LISTING, listing)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    switches = {f"pooling_mode_{key}": name == pooling for name, key in POOLINGS.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **switches})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})


def random_calibration(recipe: Recipe) -> Calibration:
    """Made-up sentences of a question's usual length, which only a builder of seeded weights takes."""
    generator = np.random.default_rng(0)
    inputs = [recipe.example(recipe.profiles[0].usual, generator) for _ in range(EXAMPLES)]
    digest = hashlib.sha256(b"".join(array.tobytes() for example in inputs for array in example.values()))
    return Calibration(inputs, "made-up sentences", digest.hexdigest(), random=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
