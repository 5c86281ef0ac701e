"""Files that are written and read back, and files that must not be believed."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aula.core.errors import AulaError, EngineError, StorageError
from aula.engine.onnx_files import external_files, load_model, rename_external, save_model
from tests.engine.small_graphs import FLOAT, model_of, node, run, value

X = np.arange(8, dtype=np.float32)[None]


def _model(**constants: Any) -> Any:
    generator = np.random.default_rng(0)
    tensors = {
        "w": generator.normal(size=(8, 40)).astype(np.float32),
        "v": generator.normal(size=(40, 40)).astype(np.float32),
        "b": np.ones(40, dtype=np.float32),
    }
    return model_of(
        [node("MatMul", "x w", "h"), node("MatMul", "h v", "i"), node("Add", "i b", "y")],
        [value("x", FLOAT, "n", 8)],
        [value("y", FLOAT, "n", 40)],
        {**tensors, **constants},
    )


def _external(folder: Path, limit: int = 0) -> Path:
    path = folder / "model.onnx"
    save_model(_model(), path, limit)
    return path


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    path = _external(tmp_path, 10_000_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert external_files(load_model(path)) == []


def test_large_weights_lie_in_one_file_beside_it(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = _model()
    before = model.SerializeToString()
    path = tmp_path / "model.onnx"
    save_model(model, path, limit=0)
    assert model.SerializeToString() == before, "the model that was given is not changed"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    light = load_model(path, weights=False)
    assert external_files(light) == ["model.onnx.data"]
    assert len(light.graph.initializer[2].raw_data) == 160, "small tensors stay inside"
    whole = load_model(path)
    assert external_files(whole) == []
    for stored, given_tensor in zip(whole.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), onnx.numpy_helper.to_array(given_tensor))
    wanted = run(model, {"x": X})["y"]
    np.testing.assert_array_equal(run(whole, {"x": X})["y"], wanted)
    session = onnxruntime.InferenceSession(str(path))
    np.testing.assert_allclose(session.run(None, {"x": X})[0], wanted, rtol=1e-5)


def test_weights_that_are_not_stored_raw_are_written_raw(tmp_path: Path) -> None:
    import onnx

    model = _model()
    flat = onnx.helper.make_tensor("v", FLOAT, [40, 40], np.arange(1600, dtype=np.float32).tolist())
    model.graph.initializer[1].CopyFrom(flat)
    save_model(model, tmp_path / "model.onnx", limit=0)
    loaded = load_model(tmp_path / "model.onnx")
    assert onnx.numpy_helper.to_array(loaded.graph.initializer[1])[1, 0] == 40


def test_external_files_can_be_renamed(tmp_path: Path) -> None:
    path = _external(tmp_path)
    light = rename_external(load_model(path, weights=False), "model.onnx.data", "0af3.bin")
    (tmp_path / "model.onnx.data").rename(tmp_path / "0af3.bin")
    (tmp_path / "new.onnx").write_bytes(light.SerializeToString())
    assert external_files(load_model(tmp_path / "new.onnx", weights=False)) == ["0af3.bin"]
    assert len(load_model(tmp_path / "new.onnx").graph.initializer) == 3
    with pytest.raises(EngineError, match=r"no weight .* lies in 'model\.onnx\.data'"):
        rename_external(light, "model.onnx.data", "a.bin")
    with pytest.raises(EngineError, match="leads out"):
        rename_external(light, "0af3.bin", "../a.bin")
    with pytest.raises(EngineError, match="not in memory"):
        save_model(light, tmp_path / "again.onnx")


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/passwd", "a/../../b", "", "C:\\weights", "\\\\host\\weights", "..\\weights", "."]
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = _external(folder)
    (folder / "model.onnx.data").rename(tmp_path / "weights")
    light = load_tampered(path, location=location)
    path.write_bytes(light)
    for weights in (True, False):
        with pytest.raises(EngineError, match="leads out"):
            load_model(path, weights=weights)


def load_tampered(path: Path, **changes: str) -> bytes:
    """The file with other entries for every external weight."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)
    return bytes(model.SerializeToString())


def test_links_and_missing_and_short_weights_are_refused(tmp_path: Path) -> None:
    path = _external(tmp_path)
    side = tmp_path / "model.onnx.data"
    content = side.read_bytes()
    side.write_bytes(content[:-1])
    with pytest.raises(EngineError, match="cut off, or belong to another model"):
        load_model(path)
    side.unlink()
    with pytest.raises(EngineError, match=r"model\.onnx\.data, which is not there"):
        load_model(path)
    (tmp_path / "elsewhere").write_bytes(content)
    side.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="symbolic link"):
        load_model(path)


@pytest.mark.parametrize("changes", [{"offset": "-1"}, {"offset": "x"}, {"length": "7"}, {"offset": str(2**70)}])
def test_senseless_places_are_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    path = _external(tmp_path)
    path.write_bytes(load_tampered(path, **changes))
    with pytest.raises(EngineError):
        load_model(path)


def _damaged(change: Any) -> bytes:
    model = _model()
    change(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"not a model at all", "not ONNX"),
        (b"\x08\x0a", "not ONNX, or cut off"),
        (_damaged(lambda m: setattr(m, "ir_version", 99)), r"IR version 99, but 3 to \d+ .* operator set 20"),
        (_damaged(lambda m: setattr(m.opset_import[0], "version", 999)), "operator set 999, but 7 to"),
        (_damaged(lambda m: setattr(m.opset_import[0], "version", 3)), "operator set 3, but 7 to"),
        (_damaged(lambda m: m.graph.ClearField("output")), "without outputs"),
        (_damaged(lambda m: m.graph.node.add(op_type="Add", input=["x"], output=["z"])), "not a valid ONNX graph"),
        (_damaged(lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234")), "1280 bytes, but 4 bytes"),
        (_damaged(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "type 77"),
        (_damaged(lambda m: m.graph.initializer[0].dims.append(-1)), r"shape \[8, 40, -1\]"),
        (_damaged(lambda m: m.graph.initializer[0].dims.append(2**40)), "bytes of elements"),
    ],
    ids=range(12),
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=fault):
        load_model(path)


def test_absent_files_folders_and_full_disks_are_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        load_model(tmp_path)
    with pytest.raises(StorageError, match="cannot be written"):
        save_model(_model(), tmp_path / "absent" / "model.onnx")


_VALID = bytes(_model().SerializeToString())
_CUTS = st.integers(0, len(_VALID) - 1)


def _refused_or_sound(folder: Path, content: bytes) -> None:
    """Reading ends in a model whose tensors can be read, or in an error of ours."""
    import onnx

    path = folder / "fuzzed.onnx"
    path.write_bytes(content)
    try:
        model = load_model(path)
    except AulaError:
        return
    for tensor in model.graph.initializer:
        onnx.numpy_helper.to_array(tensor)


@given(content=st.binary(max_size=300))
def test_random_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    _refused_or_sound(tmp_path_factory.getbasetemp(), content)


@given(cut=_CUTS)
def test_cut_files_do_no_harm(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    _refused_or_sound(tmp_path_factory.getbasetemp(), _VALID[:cut])


_HEAD = min(len(_VALID), 400)
"""Most of the file is weights, in which any byte is lawful; the structure is at its two ends."""


@settings(max_examples=200)
@given(
    flips=st.lists(
        st.tuples(st.one_of(st.integers(0, _HEAD - 1), st.integers(-_HEAD, -1)), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_flipped_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    content = bytearray(_VALID)
    for place, mask in flips:
        content[place] ^= mask
    _refused_or_sound(tmp_path_factory.getbasetemp(), bytes(content))


def test_deep_nesting_is_refused_before_the_checker_follows_it(tmp_path: Path) -> None:
    content = b""
    for _ in range(5000):
        # field 5 (attribute) in a node, field 6 (g) in that, field 1 (node) in that: a body in a body
        content = _field(1, _field(5, _field(6, content)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x0a" + _field(7, content) + _field(8, b"\x10\x14"))
    with pytest.raises(EngineError, match="not ONNX, or cut off"):
        load_model(path)


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited protobuf field."""
    size, length = len(content), b""
    while True:
        length += struct.pack("B", (size & 127) | (128 if size > 127 else 0))
        size >>= 7
        if not size:
            return struct.pack("B", number << 3 | 2) + length + content
