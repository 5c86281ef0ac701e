"""A model of two small matrix products, in milliseconds from recipe to bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.engine.graph import bind_weights
from aula.engine.recipe import Arrays, Calibration, Model, Profile, Recipe, Size

WIDTH = 32
FIRST = np.random.default_rng(1).standard_normal((WIDTH, WIDTH), dtype=np.float32)
SECOND = np.random.default_rng(2).standard_normal((WIDTH, WIDTH), dtype=np.float32)


def _graph() -> Any:
    import spox
    import spox.opset.ai.onnx.v20 as op

    x = spox.argument(spox.Tensor(np.float32, ("rows", "columns", WIDTH)))
    a, b = (spox.argument(spox.Tensor(np.float32, (WIDTH, WIDTH))) for _ in range(2))
    y = op.matmul(op.relu(op.matmul(x, a)), b)
    return bind_weights(spox.build({"x": x, "a": a, "b": b}, {"y": y}), {"a": FIRST, "b": SECOND})


def toy_recipe(folder: Path, **changes: Any) -> Recipe:
    source = folder / "weights.bin"
    source.write_bytes(b"weights")

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        return {"x": generator.standard_normal((sizes["rows"], sizes["columns"], WIDTH), dtype=np.float32)}

    def reference(inputs: Arrays) -> Arrays:
        inner = np.maximum(inputs["x"].astype(np.float64) @ FIRST, 0)
        return {"y": inner @ SECOND}

    usual = {"rows": Size(1, 1, 2), "columns": Size(2, 8, 16)}
    fields: dict[str, Any] = {
        "name": "toy",
        "revision": 1,
        "sources": (source,),
        "write_graph": _graph,
        "example": example,
        "reference": reference,
        "profiles": (Profile("usual", usual), Profile("wide", {**usual, "columns": Size(2, 32, 64)})),
        "seeded": True,
    }
    return Recipe(**{**fields, **changes})


def toy_file(folder: Path) -> Path:
    """The graph alone, as somebody else's ONNX file with two free dimensions."""
    import onnx

    path = folder / "toy.onnx"
    onnx.save(_graph(), str(path))
    return path


def toy_model(folder: Path, **changes: Any) -> Model:
    return Model.of(toy_recipe(folder, **changes))


def noise(recipe: Recipe) -> Calibration:
    generator = np.random.default_rng(3)
    inputs = [recipe.example({"rows": 1, "columns": 8}, generator) for _ in range(8)]
    return Calibration(inputs, "noise", "0" * 64, random=True)
