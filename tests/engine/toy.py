"""A model of one matrix product, for tests that build bundles in milliseconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aula.engine.graph import bind_weights
from aula.engine.recipe import Arrays, Model, Profile, Recipe, Size

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def toy_graph() -> Any:
    import spox
    import spox.opset.ai.onnx.v20 as op

    x = spox.argument(spox.Tensor(np.float32, ("rows", 3)))
    w = spox.argument(spox.Tensor(np.float32, (3, 2)))
    return bind_weights(spox.build({"x": x, "w": w}, {"y": op.matmul(x, w)}), {"w": WEIGHT})


def toy_recipe(folder: Path, *, wrong: float = 0.0, **changes: Any) -> Recipe:
    """y = x @ w, whose reference is off by `wrong`."""
    source = folder / "weights.bin"
    if not source.exists():
        source.write_bytes(b"weights")

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        return {"x": generator.normal(size=(sizes["rows"], 3)).astype(np.float32)}

    fields: dict[str, Any] = {
        "name": "toy",
        "revision": 1,
        "sources": (source,),
        "write_graph": toy_graph,
        "example": example,
        "reference": lambda inputs: {"y": inputs["x"] @ WEIGHT.astype(np.float64) + wrong},
        "profiles": (Profile("usual", {"rows": Size(1, 2, 4)}),),
    }
    return Recipe(**{**fields, **changes})


def toy_model(folder: Path, **changes: Any) -> Model:
    return Model.of(toy_recipe(folder, **changes))
