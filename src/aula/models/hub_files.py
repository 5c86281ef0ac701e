"""Which files of a repository on a hub make the checkpoint that recipes read."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from aula.core.errors import CheckpointError
from aula.models.hub_client import PUBLIC_HUB, HubFile

WANTED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)
"""What recipes read, beside the weights: pickles are never among it."""
WEIGHTS = "model.safetensors"
_SHARDS = ("model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack")
_SAFE_PART = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


def choose_files(model: str, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """Those of a repository's files that recipes read, the weights last.

    Raises CheckpointError where a part has no safetensors.
    """
    # A name with a step upwards, or with a character that some system reads as a separator, is not looked at.
    listed = {file.path: file for file in files if all(map(_SAFE_PART.fullmatch, file.path.split("/")))}
    chosen = {path for path in listed if any(_matches(path, pattern) for pattern in WANTED)}
    if "config.json" not in chosen:
        raise CheckpointError(
            f"{model} has no config.json, so it is no checkpoint in the Hugging Face layout",
            available=sorted(listed)[:8],
            next_step=f"see {PUBLIC_HUB}/{model}: its card may name the repository that has one",
        )
    weights = [path for path in listed if path == WEIGHTS]
    weights = weights or [path for path in listed if any(_matches(path, pattern) for pattern in _SHARDS)]
    weights = weights or [path for path in listed if _matches(path, "*.safetensors")]
    parts = {path.rpartition("/")[0] for path in chosen if path.endswith("config.json")}
    for part in sorted(parts):
        pickles = [path for path in listed if path.rpartition("/")[0] == part and _is_pickle(path)]
        if not (weights if part == "" else f"{part}/{WEIGHTS}" in chosen) and (pickles or part == ""):
            raise _without_weights(model, pickles, sorted(listed))
    return tuple(listed[path] for path in [*sorted(chosen), *sorted(weights)])


def _without_weights(model: str, pickles: Sequence[str], listed: Sequence[str]) -> CheckpointError:
    if not pickles:
        return CheckpointError(
            f"{model} has no weights in safetensors",
            available=listed[:8],
            next_step=f"see {PUBLIC_HUB}/{model}: its card may name the repository that has them",
        )
    return CheckpointError(
        f"{model} has weights as pickles only ({', '.join(pickles[:3])}): opening one runs whatever code its author "
        "put in, so aula reads safetensors alone",
        next_step=f"see {PUBLIC_HUB}/{model}/discussions for a conversion and take it with --revision refs/pr/NUMBER; "
        "or, if you trust the author, convert it with transformers (from_pretrained, then save_pretrained to a "
        "folder) and run: aula build FOLDER",
    )


def _matches(path: str, pattern: str) -> bool:
    """Folder by folder: a star does not reach into another."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _is_pickle(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in _PICKLES)
