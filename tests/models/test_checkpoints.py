import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.core.errors import CheckpointError
from aula.models.checkpoints import INDEX, Checkpoint

SHAPES = {"a": (2, 3), "b": (4,)}
VALUES = {"a": np.arange(6, dtype=np.float32).reshape(2, 3) / 2, "b": np.arange(4, dtype=np.float32) - 1.5}


def _stored(array: NDArray[Any], kind: str) -> bytes:
    """As safetensors stores it. Every value here is exact in all kinds."""
    if kind == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1"}[kind]).tobytes()


def _save(path: Path, tensors: dict[str, NDArray[Any]], kind: str = "F32") -> None:
    header, body = {}, b""
    for name, array in tensors.items():
        raw = _stored(array, kind)
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _split(folder: Path, kind: str = "F32") -> Checkpoint:
    for name in SHAPES:
        _save(folder / f"of-{name}.safetensors", {name: VALUES[name]}, kind)
    _index(folder, {name: f"of-{name}.safetensors" for name in SHAPES})
    return Checkpoint(folder)


def _index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
def test_weights_of_every_float_type_become_float32(tmp_path: Path, kind: str) -> None:
    _save(tmp_path / "model.safetensors", VALUES, kind)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.weights_files == (checkpoint.weights_file,) == (tmp_path / "model.safetensors",)
    found = checkpoint.weights(SHAPES)
    assert list(found) == list(SHAPES)
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, VALUES[name])


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_weights_in_several_files(tmp_path: Path, kind: str) -> None:
    checkpoint = _split(tmp_path, kind)
    found = checkpoint.weights({"b": (4,), "a": (2, 3)})
    assert list(found) == ["b", "a"]
    assert all(np.array_equal(found[name], VALUES[name]) for name in SHAPES)
    assert checkpoint.weights_file.name == INDEX
    assert [path.name for path in checkpoint.weights_files] == [INDEX, "of-a.safetensors", "of-b.safetensors"]


def test_one_file_stands_before_an_index(tmp_path: Path) -> None:
    _split(tmp_path)
    _save(tmp_path / "model.safetensors", {name: array + 1 for name, array in VALUES.items()})
    np.testing.assert_array_equal(Checkpoint(tmp_path).weights(SHAPES)["b"], VALUES["b"] + 1)


def test_names_may_stand_behind_one_of_the_prefixes(tmp_path: Path) -> None:
    _save(tmp_path / "model.safetensors", {f"model.{name}": array for name, array in VALUES.items()})
    assert set(Checkpoint(tmp_path).weights(SHAPES, ("", "model."))) == set(SHAPES)
    with pytest.raises(CheckpointError, match="has no tensor a") as raised:
        Checkpoint(tmp_path).weights(SHAPES)
    assert "model.a" in raised.value.available


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        (["of-a.safetensors"], "no weight_map"),
        ({"a": "../of-a.safetensors"}, "does not lie beside it"),
        ({"a": "/of-a.safetensors"}, "does not lie beside it"),
        ({"a": "..\\of-a.safetensors"}, "does not lie beside it"),
        ({"a": ".."}, "does not lie beside it"),
        ({"a": ""}, "does not lie beside it"),
        ({"a": 3}, "does not lie beside it"),
        ({"a": "of-a.bin"}, "does not lie beside it"),
        ({"a": "of-c.safetensors"}, "does not have"),
        ({"a": "of-a.safetensors", "b": "of-a.safetensors"}, "of-a.safetensors holds b, which it does not"),
        ({"a": "of-a.safetensors"}, "has no tensor b"),
    ],
)
def test_a_senseless_index_is_told(tmp_path: Path, weight_map: Any, message: str) -> None:
    checkpoint = _split(tmp_path)
    _index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.weights(SHAPES)


def test_what_identifies_the_weights_needs_a_sound_index_too(tmp_path: Path) -> None:
    checkpoint = _split(tmp_path)
    (tmp_path / "of-b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names of-b\.safetensors"):
        _ = checkpoint.weights_files


def test_a_tensor_in_two_places_is_told(tmp_path: Path) -> None:
    checkpoint = _split(tmp_path)
    _save(tmp_path / "of-b.safetensors", VALUES)
    with pytest.raises(CheckpointError, match=r"tensor a is in of-a\.safetensors and in of-b\.safetensors"):
        checkpoint.weights(SHAPES)
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "of-a.safetensors", "a": "of-b.safetensors"}}')
    with pytest.raises(CheckpointError, match="a is given twice"):
        checkpoint.weights(SHAPES)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, "\x00"])
def test_json_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON|is not a JSON object"):
        Checkpoint(tmp_path).weights(SHAPES)


def test_a_damaged_or_absent_file_of_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(tmp_path).weights(SHAPES)
    checkpoint = _split(tmp_path)
    shard = tmp_path / "of-b.safetensors"
    for content in (b"", shard.read_bytes()[:-1], b"\xff" * 40):
        shard.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"of-b\.safetensors cannot be read"):
            checkpoint.weights(SHAPES)


def test_a_wrong_shape_or_a_type_that_is_no_float_is_told(tmp_path: Path) -> None:
    _save(tmp_path / "model.safetensors", VALUES)
    with pytest.raises(CheckpointError, match=r"tensor b is \[4\] but config\.json implies \[5\]"):
        Checkpoint(tmp_path).weights({**SHAPES, "b": (5,)})
    _save(tmp_path / "model.safetensors", VALUES, "I8")
    with pytest.raises(CheckpointError, match="stored as I8"):
        Checkpoint(tmp_path).weights(SHAPES)
