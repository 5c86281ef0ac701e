"""The int8 graphs that the GPU bench's engines are made of, by NNCF, on a machine that has it; needs no GPU.

    python -m benchmarks.gpu.quantise --work FOLDER --out QUANTISED [--digits DIGITS]

FOLDER holds the seeded checkpoints of `prepare`; DIGITS is what training/digits/train_digits.py left. QUANTISED is then
carried to the GPU host, where `engines --quantised QUANTISED` takes it: efficientnet-b0.int8.onnx (made-up weights,
ranges on made-up pictures: for speed alone), and digits/ with the trained checkpoint, its int8 graph and test pictures.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from aula.engine.onnx_files import save_model
from aula.engine.passes import simplify
from aula.engine.precision import lower_variant
from aula.engine.recipe import Calibration, Recipe
from aula.engine.trial import Prover
from aula.models import efficientnet, efficientnet_examples
from aula.models.checkpoints import Checkpoint
from benchmarks.gpu.prepare import prepare

EXAMPLES = 16
MOST_DROP = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--digits", type=Path, help="the folder that training/digits/train_digits.py filled")
    options = parser.parse_args()
    prepare(options.work)
    options.out.mkdir(parents=True, exist_ok=True)
    made_up(Checkpoint(options.work / "efficientnet-b0"), options.out / "efficientnet-b0.int8.onnx")
    if options.digits:
        trained(options.digits, options.out / "digits")


def made_up(checkpoint: Checkpoint, target: Path) -> None:
    recipe = replace(efficientnet.efficientnet_recipe(checkpoint, "efficientnet-b0"), seeded=True)
    generator = np.random.default_rng(0)
    pictures = [recipe.example({"batch": 1}, generator) for _ in range(EXAMPLES)]
    _quantise(recipe, Calibration(pictures, "made-up pictures", "0" * 64, random=True), target)


def trained(folder: Path, target: Path) -> None:
    """The builder's own search, on the pictures that the training set aside."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / name, target / name)
    np.savez_compressed(target / "test.npz", **np.load(folder / "test.npz"))
    checkpoint = Checkpoint(target)
    calibration = efficientnet_examples.calibration(
        efficientnet_examples.read_pictures(folder / "calibration.npz", checkpoint)
    )
    task = efficientnet_examples.task(efficientnet_examples.read_pictures(target / "test.npz", checkpoint))
    _quantise(
        efficientnet.efficientnet_recipe(checkpoint, "digits", task=lambda: task), calibration, target / "int8.onnx"
    )


def _quantise(recipe: Recipe, calibration: Calibration, target: Path) -> None:
    graph = simplify(recipe.write_graph())
    task = None if recipe.seeded or recipe.task is None else recipe.task()
    prover = Prover(recipe, 0, task, MOST_DROP, {})
    with tempfile.TemporaryDirectory(prefix="aula-quantise-") as name:
        folder = Path(name)
        reference = 1.0
        if task is not None:
            save_model(graph, folder / "fp32.onnx")
            reference = prover.metric_of(folder / "fp32.onnx")
        variant = lower_variant(
            "int8",
            graph,
            recipe,
            folder,
            calibration=calibration,
            evaluate=prover.metric_of if task is not None else None,
            watched=task.inputs if task is not None else (),
            reference=reference,
            most_drop=MOST_DROP,
            progress=lambda what, _share: print(f"{recipe.name}: {what}", flush=True),
        )
        shutil.copyfile(variant.path, target)
    told = f"fp32 {reference:.4f}, int8 {max(variant.tried.values()):.4f}" if variant.tried else "not judged"
    print(f"{target}: {variant.method}, {told}, left in fp32: {', '.join(variant.restored) or 'none'}")


if __name__ == "__main__":
    main()
