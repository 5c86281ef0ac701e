"""A training's result as the folder that ships: matrices in int8 with a scale a row, the rest in float16.

    python -m training.recogniser.package RESULT OUT --tokens tokens.json [--language language.npz]

RESULT is what training leaves: weights-*.safetensors and config.json. Needs no PyTorch.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from aula.models.checkpoints import WEIGHTS, Checkpoint
from aula.models.ctc_config import KIND, SCALE, TOKENS, CtcConfig, load_weights, read_alphabet
from aula.models.ctc_language import LANGUAGE, read_language
from aula.models.graph_writer import round_int8

MOST_BYTES = 16_000_000
_EXACT = ("mean", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--language", type=Path, help="what training.recogniser.language wrote")
    options = parser.parse_args()
    checkpoint = package(options.result, options.out, options.tokens, options.language)
    print(f"{checkpoint.weights_file}: {checkpoint.weights_file.stat().st_size / 1e6:.1f} MB")


def package(result: Path, out: Path, tokens: Path, language: Path | None = None, *, rounded: bool = True) -> Checkpoint:
    """Write the folder and read it once. `rounded` False keeps float32, to compare with. Raises SystemExit for more
    than MOST_BYTES."""
    notes = json.loads((result / "config.json").read_text("utf-8"))
    weights: dict[str, NDArray[Any]] = {}
    for file in sorted(result.glob("weights-*.safetensors")):
        weights |= load_file(file)
    out.mkdir(parents=True, exist_ok=True)
    model = {name: value for name, value in notes["model"].items() if name != "dropout"}
    trained = {name: value for name, value in notes.items() if name != "model"}
    config = {"model_type": KIND, "model": model, "trained": trained}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    shutil.copyfile(tokens, out / TOKENS)
    if language is not None:
        shutil.copyfile(language, out / LANGUAGE)
    save_file(stored(weights) if rounded else _exactly(weights), out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)  # it is written for its owner alone
    checkpoint = Checkpoint(out)
    read = CtcConfig.from_checkpoint(checkpoint)
    load_weights(checkpoint, read)
    read_alphabet(checkpoint, read.units)
    read_language(checkpoint)
    if rounded and checkpoint.weights_file.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{checkpoint.weights_file} has more than {MOST_BYTES} bytes: train a smaller model")
    return checkpoint


def stored(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for name, array in weights.items():
        if array.ndim == 2:
            whole, scale = round_int8(array.astype(np.float32), axis=1)
            tensors |= {name: whole, name + SCALE: np.ascontiguousarray(scale[:, 0])}
        else:
            tensors[name] = array.astype(np.float32 if name in _EXACT else np.float16)
    return tensors


def _exactly(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.astype(np.float32) for name, array in weights.items()}


def add_confidence(checkpoint: Checkpoint, weights: tuple[float, ...], bias: float) -> None:
    """What was fitted with these weights belongs to them."""
    path = checkpoint.folder / "config.json"
    config = {**json.loads(path.read_text("utf-8"))}
    config["confidence"] = {"weights": [round(weight, 4) for weight in weights], "bias": round(bias, 4)}
    path.write_text(json.dumps(config, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
