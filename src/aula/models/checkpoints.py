"""Checkpoints: weights by name from safetensors, and models that ordinary packages carry."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aula.core.errors import CheckpointError, ModelNotFoundError
from aula.core.types import Float32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder in the Hugging Face layout: config.json, model.safetensors and a tokenizer."""

    folder: Path

    @property
    def weights_file(self) -> Path:
        return self.folder / "model.safetensors"

    def read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"the checkpoint {self.folder} has no {name}",
                available=sorted(entry.name for entry in self.folder.glob("*")),
                next_step="copy the whole model folder, as the model's page lists it",
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as JSON ({error})", next_step="copy the file again"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is not a JSON object", next_step="copy the file again")
        return content

    def weights(self, shapes: Mapping[str, tuple[int, ...]], prefixes: tuple[str, ...] = ("",)) -> dict[str, Float32]:
        """The tensors named in `shapes`, as float32, each checked against its shape.

        `prefixes`: what may stand before every name (checkpoints of a larger model write "bert."). Raises
        CheckpointError for a missing file, a damaged one, a missing tensor or a wrong shape.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.weights_file, framework="numpy") as file:
                names = set(file.keys())
                prefix = self._prefix(names, next(iter(shapes)), prefixes)
                return {name: self._tensor(file, names, prefix + name, shape) for name, shape in shapes.items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the weights {self.weights_file} cannot be read ({error})",
                next_step="copy or download the file again",
            ) from error

    def _prefix(self, names: set[str], probe: str, prefixes: tuple[str, ...]) -> str:
        for prefix in prefixes:
            if prefix + probe in names:
                return prefix
        raise CheckpointError(
            f"{self.weights_file} has no tensor {probe}",
            available=sorted(names)[:8],
            next_step="this may be another architecture: see its config.json",
        )

    def _tensor(self, file: Any, names: set[str], name: str, shape: tuple[int, ...]) -> Float32:
        if name not in names:
            raise CheckpointError(
                f"{self.weights_file} has no tensor {name}",
                next_step="the file is incomplete: download it again",
            )
        tensor = file.get_tensor(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {name} is {list(tensor.shape)} but config.json implies {list(shape)}",
                next_step="config.json and weights belong to different models: copy both again",
            )
        return np.asarray(tensor, dtype=np.float32)


def packaged_file(package: str, relative: str, install: str) -> Path:
    """A file or folder inside an installed package, found without importing it (some import PyTorch).

    Raises ModelNotFoundError, with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(f"the package that carries {package} is not installed", next_step=install)
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise ModelNotFoundError(f"the package {package} has no {relative}", next_step=f"install it again: {install}")
    return path
