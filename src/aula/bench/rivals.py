"""Who an engine is compared with: the libraries that its users run today, at the same thread count."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aula.bench.native_whisper import WINDOW
from aula.engine.bundle import Bundle
from aula.engine.recipe import Recipe

INSTALL = 'pip install "aula[bench]"'
_NEEDED = {"torch": ("torch", "transformers"), "onnxruntime": ("onnxruntime",)}


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """`order` is what its worker is started with; a text says why there is none."""

    name: str
    order: Mapping[str, Any] | str


def rivals_of(recipe: Recipe, part: str, bundle: Bundle, against: tuple[str, ...], threads: int) -> tuple[Rival, ...]:
    """Those of `against`. `bundle` holds the fp32 graph.

    PyTorch runs the checkpoint that the graph was written from; where that is a Whisper encoder, also with its input
    padded to 30 s, which is what its users pay. ONNX Runtime runs the graph, and its own dynamic int8 of it.
    """
    rivals: list[Rival] = []
    for library in against:
        absent = [name for name in _NEEDED[library] if importlib.util.find_spec(name) is None]
        if absent:
            rivals.append(Rival(library, f"{' and '.join(absent)} not installed: {INSTALL}"))
        elif library == "torch":
            rivals += _torch(recipe, part, bundle, threads)
        else:
            rivals += _onnxruntime(part, bundle, threads)
    return tuple(rivals)


def _torch(recipe: Recipe, part: str, bundle: Bundle, threads: int) -> list[Rival]:
    folder = _checkpoint_folder(recipe)
    if folder is None:
        return [Rival("torch", "there is no checkpoint for it to load, only a graph")]
    order = {
        "kind": "torch",
        "folder": str(folder),
        "part": part,
        "threads": threads,
        "outputs": _output_names(bundle, part),
        "variant": "",
    }
    rivals = [Rival("torch", order)]
    if "whisper" in recipe.name and "encoder" in part:
        rivals.append(Rival("torch, 30 s window", {**order, "variant": WINDOW}))
    return rivals


def _onnxruntime(part: str, bundle: Bundle, threads: int) -> list[Rival]:
    order = {"kind": "onnxruntime", "graph": str(bundle.model_file(part)), "threads": threads}
    return [
        Rival("onnxruntime", {**order, "dynamic_int8": False}),
        Rival("onnxruntime, dynamic int8", {**order, "dynamic_int8": True}),
    ]


def _checkpoint_folder(recipe: Recipe) -> Path | None:
    """The topmost that holds a config.json: parts of a sentence encoder have some of their own below it."""
    folders = [source.parent for source in recipe.sources if source.name == "config.json"]
    return min(folders, key=lambda folder: len(folder.parts), default=None)


def _output_names(bundle: Bundle, part: str) -> list[str]:
    import onnx

    graph = onnx.load(str(bundle.model_file(part)), load_external_data=False).graph
    return [value.name for value in graph.output]
