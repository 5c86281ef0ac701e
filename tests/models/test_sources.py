"""Whatever a recipe reads to write its graph identifies the engine: an unlisted file could change unseen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aula.engine.recipe import Model
from aula.models import checkpoints, efficientnet_seeded, whisper
from aula.models.bert import bert_recipe
from aula.models.checkpoints import INDEX, WEIGHTS, Checkpoint
from aula.models.efficientnet import efficientnet_recipe
from tests.models.bert_small_model import LABELS, small, small_sentence_encoder
from tests.models.whisper_small_model import SMALL as SMALL_WHISPER

LENGTHS = {"sentence_bert_config.json", "tokenizer_config.json", "config_sentence_transformers.json"}
"""Read for the length of texts, which the profiles tell, or to refuse a checkpoint."""


def _bert(folder: Path) -> Model:
    return Model.of(bert_recipe(small(folder), "bert"))


def _sentences(folder: Path) -> Model:
    return Model.of(bert_recipe(small_sentence_encoder(folder, "mean_sqrt_len"), "sentences"))


def _efficientnet(folder: Path) -> Model:
    raw = {**efficientnet_seeded.ARCHITECTURES["efficientnet-b0"], **LABELS, "image_size": 32}
    efficientnet_seeded.random_checkpoint(raw, folder, 1)
    return Model.of(efficientnet_recipe(Checkpoint(folder), "pictures"))


def _whisper(folder: Path) -> Model:
    whisper.random_checkpoint(SMALL_WHISPER, folder, 1)
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [3]}))
    return whisper.whisper_model(Checkpoint(folder), "speech")


def _again(make: Callable[[Path], Model], folder: Path) -> Model:
    """The recipe of the folder as it lies now, its weights in several files."""
    checkpoint = Checkpoint(folder)
    if make is _whisper:
        return whisper.whisper_model(checkpoint, "speech")
    recipe = efficientnet_recipe if make is _efficientnet else bert_recipe
    return Model.of(recipe(checkpoint, "again"))


def _split(path: Path) -> None:
    """One file of weights becomes two and an index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    path.unlink()
    names = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in sorted(set(names.values())):
        save_file({name: tensors[name] for name in names if names[name] == file}, path.parent / file)
    (path.parent / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Every file that is read from now on, by the ways that recipes have."""
    files: set[Path] = set()
    text, raw, enter = Path.read_text, Path.read_bytes, checkpoints._Tensors.__enter__

    def read_text(path: Path, *given: Any, **named: Any) -> str:
        files.add(path)
        return text(path, *given, **named)

    def read_bytes(path: Path) -> bytes:
        files.add(path)
        return raw(path)

    def open_tensors(tensors: Any) -> Any:
        files.add(tensors._path)
        return enter(tensors)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(checkpoints._Tensors, "__enter__", open_tensors)
    return files


@pytest.mark.parametrize("split", [False, True], ids=["one file", "several files"])
@pytest.mark.parametrize("make", [_bert, _sentences, _efficientnet, _whisper])
def test_what_is_read_is_among_the_sources(
    tmp_path: Path, read: set[Path], make: Callable[[Path], Model], split: bool
) -> None:
    make(tmp_path)
    weights = sorted(tmp_path.rglob(WEIGHTS))
    if split:
        for path in weights:
            _split(path)
    read.clear()
    model = _again(make, tmp_path)
    for recipe in model.parts.values():
        recipe.write_graph()
    sources = {source for recipe in model.parts.values() for source in recipe.sources}
    shaping = {path for path in read if tmp_path in path.parents and path.name not in LENGTHS}
    assert shaping == sources
    assert sum(path.suffix == ".safetensors" for path in sources) == len(weights) * (2 if split else 1)
