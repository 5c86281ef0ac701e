"""CTC recognisers as recipes: this project's own, which hears in chunks (see `training/recogniser`).

The parts: `ctc_config` sizes and weights, `ctc_graph` the graph, `ctc_reference` what it is checked against, `ctc_mel`
the front end, `ctc_hearing` chunks and what lies between them, `ctc_beam` the search for words, `ctc_confidence` how
sure they are, `ctc_task` what int8 is judged by, `ctc_transcriber` streams, `ctc_rung` the recogniser that ships.
"""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aula.core.types import Float32, Licence
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.models import ctc_task
from aula.models.checkpoints import Checkpoint
from aula.models.ctc_config import BINS, KIND, SUBSAMPLING, TOKENS, CtcConfig, load_weights, read_alphabet
from aula.models.ctc_graph import LONGEST_CHUNK, state_shapes, write_recogniser
from aula.models.ctc_hearing import CtcHearing
from aula.models.ctc_reference import CtcReference

MOST_ROWS = 8
"""Streams that one run may serve."""
ONE = Size(1, 1, 1)


def ctc_recipe(
    checkpoint: Checkpoint,
    name: str,
    *,
    labelled: ctc_task.Labelled | None = None,
    licences: tuple[Licence, ...] = (),
    seeded: bool = False,
) -> Recipe:
    """mel and states to logarithms and the next states: see `write_recogniser`. Its int8 has rounded matrices;
    runtimes round the activations as they come.

    Profiles: "chunk" is what a stream hears at once, "rows" the same of several streams, "long" more of a recording.
    """
    config = CtcConfig.from_checkpoint(checkpoint)
    frames = config.chunk * SUBSAMPLING
    one, most = Size(frames, frames, frames), LONGEST_CHUNK * SUBSAMPLING

    def weights() -> dict[str, Float32]:
        return load_weights(checkpoint, config)

    return Recipe(
        name=name,
        revision=1,
        sources=(checkpoint.weights_file, checkpoint.folder / "config.json", checkpoint.folder / TOKENS),
        write_graph=lambda: write_recogniser(config, weights()),
        example=lambda sizes, generator: example(config, sizes, generator),
        reference=CtcReference(config, weights),
        profiles=(
            Profile("chunk", {"rows": ONE, "frames": one}),
            Profile("rows", {"rows": Size(1, 4, MOST_ROWS), "frames": one}),
            Profile("long", {"rows": ONE, "frames": Size(SUBSAMPLING, most, most)}),
        ),
        limits={"frames": most},
        rows="rows",
        task=None
        if seeded
        else lambda: ctc_task.task(
            lambda session: CtcHearing(session, config).whole,
            read_alphabet(checkpoint, config.units),
            labelled or ctc_task.spoken(),
        ),
        written={"int8": lambda: write_recogniser(config, weights(), int8_weights=True)},
        dynamic_quantisation=config.width,
        seeded=seeded,
        licences=licences,
    )


def example(config: CtcConfig, sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
    """Random frames in the middle of a sound; every row but the first has heard less of it."""
    rows = sizes["rows"]
    inputs: Arrays = {"mel": generator.uniform(-7, 1, (rows, sizes["frames"], BINS)).astype(np.float32)}
    for name, shape in state_shapes(config, rows).items():
        if name == "heard":
            inputs[name] = generator.integers(0, config.left + 1, rows).astype(np.float32)
            inputs[name][0] = config.left
        else:
            inputs[name] = generator.standard_normal(shape, dtype=np.float32)  # type: ignore[arg-type]
    return inputs


SHIPPED: dict[str, Any] = {
    "units": 256, "width": 256, "heads": 4, "inner": 1024, "blocks": 9, "kernel": 15, "channels": 128, "left": 64,
    "chunk": 8, "said_after": [3, 6],
}  # fmt: skip
"""The sizes that training/recogniser trains."""


def random_checkpoint(raw: Mapping[str, Any], folder: Path, seed: int) -> Checkpoint:
    """Write a folder of those sizes with seeded random weights, for benches and tests. Its units spell letters."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": KIND, "model": dict(raw)}), encoding="utf-8")
    checkpoint = Checkpoint(folder)
    config = CtcConfig.from_checkpoint(checkpoint)
    vocabulary = {"<blank>": 0} | {f"{'▁' * (n % 3 == 0)}{_spelled(n)}": n for n in range(1, config.units)}
    (folder / TOKENS).write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")
    generator = np.random.default_rng(seed)
    tensors: dict[str, Float32] = {}
    for name, shape in config.shapes().items():
        array: NDArray[Any] = generator.standard_normal(shape, dtype=np.float32)
        if name == "mean":
            array = array / 2 - 4
        elif name == "scale" or (("norm" in name or "says" in name or "middle" in name) and name.endswith("weight")):
            array = 1 + array / np.float32(10)
        elif len(shape) == 1:
            array /= np.float32(10)
        else:
            array *= np.float32(1 / sqrt(np.prod(shape[1:])))
        tensors[name] = array.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return checkpoint


def _spelled(number: int) -> str:
    letters = ""
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters
