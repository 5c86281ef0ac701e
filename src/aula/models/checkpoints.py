"""Checkpoints: weights by name from safetensors, and models that ordinary packages carry."""

import importlib.util
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from aula.core.errors import CheckpointError, ModelNotFoundError
from aula.core.types import Float32

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Names the file of every tensor where the weights lie in several files."""

FLOATS = ("F32", "BF16", "F16", "F64")
"""Types of weights that are read, as safetensors calls them; all become float32."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder in the Hugging Face layout: config.json, weights in one file or in several with an index, and a
    tokenizer."""

    folder: Path

    @property
    def weights_file(self) -> Path:
        """model.safetensors, or the index where the weights lie in several files."""
        return self.folder / (INDEX if self._is_split() else WEIGHTS)

    @property
    def weights_files(self) -> tuple[Path, ...]:
        """Every file that the weights come from, the index among them: what identifies them. Raises CheckpointError
        for a senseless index."""
        if not self._is_split():
            return (self.weights_file,)
        return (self.weights_file, *sorted(set(self._listed().values())))

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError for a file that is absent, damaged, no object, or gives a key twice."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"the checkpoint {self.folder} has no {name}",
                available=sorted(entry.name for entry in self.folder.glob("*")),
                next_step="copy the whole model folder, as the model's page lists it",
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read as JSON ({error})", next_step="copy the file again"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is not a JSON object", next_step="copy the file again")
        return content

    def weights(self, shapes: Shapes, prefixes: tuple[str, ...] = ("",)) -> dict[str, Float32]:
        """The tensors named in `shapes`, as float32, each checked against its shape.

        `prefixes`: what may stand before every name (checkpoints of a larger model write "bert."). Raises
        CheckpointError for a missing or damaged file, a senseless index, a missing tensor, a tensor in two files,
        a type that is no float, or a wrong shape.
        """
        holders = self._holders()
        prefix = self._prefix(holders, next(iter(shapes)), prefixes)
        wanted: dict[Path, list[str]] = {}
        for name in shapes:
            if prefix + name not in holders:
                raise CheckpointError(
                    f"{self.weights_file} has no tensor {prefix + name}",
                    next_step="the file is incomplete: download it again",
                )
            wanted.setdefault(holders[prefix + name], []).append(name)
        found: dict[str, Float32] = {}
        for path, names in wanted.items():
            with _Tensors(path) as tensors:
                found |= {name: tensors.read(prefix + name, shapes[name]) for name in names}
        return {name: found[name] for name in shapes}

    def _is_split(self) -> bool:
        return not (self.folder / WEIGHTS).exists() and (self.folder / INDEX).exists()

    def _holders(self) -> dict[str, Path]:
        """The file that holds each tensor."""
        if not self._is_split():
            with _Tensors(self.weights_file) as tensors:
                return dict.fromkeys(tensors.names, self.weights_file)
        listed = self._listed()
        holders: dict[str, Path] = {}
        for path in sorted(set(listed.values())):
            with _Tensors(path) as tensors:
                for name in tensors.names:
                    if name in holders:
                        raise CheckpointError(
                            f"tensor {name} is in {holders[name].name} and in {path.name}",
                            next_step="these files are not of one checkpoint: download the folder again",
                        )
                    holders[name] = path
        for name, path in listed.items():
            if holders.get(name) != path:
                raise CheckpointError(
                    f"{INDEX} says that {path.name} holds {name}, which it does not",
                    next_step="index and weights are of different checkpoints: download the folder again",
                )
        return holders

    def _listed(self) -> dict[str, Path]:
        """The index: the file of each tensor. Every file lies in this folder."""
        listed = self.read_json(INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{INDEX} has no weight_map", next_step="copy the file again")
        for file in set(map(str, listed.values())):
            # A backslash would climb out on Windows only; no checkpoint needs one.
            if PurePath(file).name != file or "\\" in file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{INDEX} names the file {file!r}, which does not lie beside it as safetensors",
                    next_step="copy the file again",
                )
            if not (self.folder / file).is_file():
                raise CheckpointError(
                    f"{INDEX} names {file}, which {self.folder} does not have",
                    available=sorted(path.name for path in self.folder.glob("*.safetensors")),
                    next_step="download the missing file",
                )
        return {name: self.folder / str(file) for name, file in listed.items()}

    def _prefix(self, names: Mapping[str, Path], probe: str, prefixes: tuple[str, ...]) -> str:
        for prefix in prefixes:
            if prefix + probe in names:
                return prefix
        raise CheckpointError(
            f"{self.weights_file} has no tensor {probe}",
            available=sorted(names)[:8],
            next_step="this may be another architecture: see its config.json",
        )


class _Tensors:
    """One safetensors file, open. Whatever the library raises becomes a CheckpointError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def __enter__(self) -> "_Tensors":
        from safetensors import SafetensorError, safe_open

        try:
            opened: Any = safe_open(self._path, framework="numpy")
            self._file = opened.__enter__()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the weights {self._path} cannot be read ({error})", next_step="copy or download the file again"
            ) from error
        self.names: frozenset[str] = frozenset(self._file.keys())
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        view = self._file.get_slice(name)
        kind = str(view.get_dtype())
        if kind not in FLOATS:
            raise CheckpointError(
                f"tensor {name} in {self._path.name} is stored as {kind}",
                available=FLOATS,
                next_step="take the checkpoint as it was published, before anyone quantised it",
            )
        if tuple(view.get_shape()) != shape:
            raise CheckpointError(
                f"tensor {name} is {list(view.get_shape())} but config.json implies {list(shape)}",
                next_step="config.json and weights belong to different models: copy both again",
            )
        if kind == "BF16":
            return self._read_bfloat16(name, shape)
        return np.asarray(self._file.get_tensor(name), dtype=np.float32)

    def _read_bfloat16(self, name: str, shape: tuple[int, ...]) -> Float32:
        """numpy has no such type: the upper halves of float32. `safe_open` has checked the header by now."""
        with self._path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            start, _ = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + start)
            halves = np.frombuffer(file.read(2 * int(np.prod(shape))), dtype="<u2")
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin} is given twice")
    return content


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
