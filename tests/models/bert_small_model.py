"""A BERT small enough for milliseconds, with every part of the true architecture, in the layouts that occur."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np

from aula.models.bert_modules import POOLINGS
from aula.models.bert_seeded import random_checkpoint
from aula.models.checkpoints import Checkpoint

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
PIECES += [f"##{letter}" for letter in string.ascii_lowercase] + ["学", "生"]
SMALL: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": len(PIECES),
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
LABELS = {"id2label": {"0": "x", "1": "y", "2": "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
CHANGES: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {},
    "BertForSequenceClassification": LABELS,
    "BertForTokenClassification": LABELS,
    "BertForQuestionAnswering": {},
    "gelu_new": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
}
"""Variants by their name: an architecture, or an activation of BertModel."""

MODULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mean": (("mean",), ("Normalize",)),
    "cls": (("cls",), ("Normalize",)),
    "max": (("max",), ()),
    "mean_sqrt_len": (("mean_sqrt_len_tokens",), ("Dense", "Normalize")),
    "together": (("cls", "max", "mean"), ()),
}
"""Sentence encoders by their name: poolings, and the modules after them."""

SENTENCES = ["a student asks", "why", "学生 of a class", "the quick brown fox jumps over it"]
SEED = 7


def small(folder: Path, variant: str = "BertModel", **changes: Any) -> Checkpoint:
    architecture = variant if variant.startswith("Bert") else "BertModel"
    return random_checkpoint(
        {**SMALL, "architectures": [architecture], **CHANGES.get(variant, {}), **changes}, folder, SEED
    )


def relaid(checkpoint: Checkpoint, *, prefix: str = "", old_norms: bool = False, dtype: Any = np.float32) -> None:
    """Write the weights again as other releases laid them out."""
    from safetensors.numpy import load_file, save_file

    tensors = {}
    for name, tensor in load_file(checkpoint.weights_file).items():
        if old_norms:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[(prefix if name.startswith(("embeddings", "encoder", "pooler")) else "") + name] = tensor.astype(dtype)
    save_file(tensors, checkpoint.weights_file, metadata={"format": "pt"})


def small_sentence_encoder(folder: Path, name: str) -> Checkpoint:
    """With the vocabulary, and texts of at most 20 tokens."""
    from safetensors.numpy import save_file

    checkpoint = small(folder)
    poolings, modules = MODULES[name]
    hidden = SMALL["hidden_size"]
    listing = [("Transformer", ""), ("Pooling", "1_Pooling")]
    listing += [(kind, f"{place}_{kind}") for place, kind in enumerate(modules, 2)]
    write(folder / "modules.json", _listing(listing))
    switches = {f"pooling_mode_{key}": mode in poolings for mode, key in POOLINGS.items()}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **switches})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    if "Dense" in modules:
        generator = np.random.default_rng(SEED)
        dense = {"in_features": hidden, "out_features": 6, "bias": True}
        write(
            folder / "2_Dense" / "config.json",
            {**dense, "activation_function": "torch.nn.modules.activation.Tanh"},
        )
        kernel = generator.standard_normal((6, hidden), dtype=np.float32) / 4
        bias = generator.standard_normal(6, dtype=np.float32) / 4
        save_file({"linear.weight": kernel, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors")
    write_vocabulary(folder)
    return checkpoint


def write_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": 30, "tokenizer_class": "BertTokenizer"}
    write(folder / "tokenizer_config.json", settings)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def inputs() -> dict[str, Any]:
    """Three rows with padding and two segments each, int64 [3, 11]."""
    generator = np.random.default_rng(SEED)
    mask = (np.arange(11) < np.array([[11], [7], [3]])).astype(np.int64)
    types = ((np.arange(11) >= np.array([[6], [3], [1]])) & (mask == 1)).astype(np.int64)
    tokens = generator.integers(5, SMALL["vocab_size"], (3, 11))
    return {"input_ids": tokens * mask, "attention_mask": mask, "token_type_ids": types}


def _listing(modules: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(modules)
    ]
