from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import available_backends
from aula.core.errors import CheckpointError, EngineError, StorageError, VerificationError
from aula.engine.build import BuildOptions, build, open_engine
from aula.engine.graph import bind_weights
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from aula.engine.store import EngineStore


def _recipe(folder: Path, *, wrong: float = 0.0) -> Recipe:
    """y = x @ w, whose reference is off by `wrong`."""
    source = folder / "weights.bin"
    if not source.exists():
        source.write_bytes(b"weights")
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)

    def write_graph() -> Any:
        import spox
        import spox.opset.ai.onnx.v20 as op

        x = spox.argument(spox.Tensor(np.float32, ("rows", 3)))
        w = spox.argument(spox.Tensor(np.float32, (3, 2)))
        return bind_weights(spox.build({"x": x, "w": w}, {"y": op.matmul(x, w)}), {"w": weight})

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        return {"x": generator.normal(size=(sizes["rows"], 3)).astype(np.float32)}

    return Recipe(
        name="toy",
        revision=1,
        sources=(source,),
        write_graph=write_graph,
        example=example,
        reference=lambda inputs: {"y": inputs["x"] @ weight.astype(np.float64) + wrong},
        profiles=(Profile("usual", {"rows": Size(1, 2, 4)}),),
    )


def test_a_built_engine_computes_and_its_manifest_says_how_it_was_chosen(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    steps: list[str] = []
    engine = build(
        recipe, EngineStore(tmp_path / "store"), BuildOptions(threads=1), progress=lambda what, _: steps.append(what)
    )
    assert {candidate.backend for candidate in engine.manifest.candidates} == set(available_backends())
    chosen = engine.manifest.chosen
    assert chosen.rejected is None
    assert chosen.relative_error is not None
    assert chosen.relative_error <= recipe.tolerance
    assert steps[0] == "writing the graph"
    assert steps[-1] == "built"
    with open_engine(engine, recipe) as session:
        result = session.run({"x": np.ones((3, 3), np.float32)})
    np.testing.assert_allclose(result["y"], [[6, 9]] * 3)


def test_the_second_build_of_the_same_inputs_is_found_and_other_inputs_are_not(tmp_path: Path) -> None:
    recipe, store = _recipe(tmp_path), EngineStore(tmp_path / "store")
    first = build(recipe, store, BuildOptions(threads=1))
    steps: list[str] = []
    again = build(recipe, store, BuildOptions(threads=1), progress=lambda what, _: steps.append(what))
    assert (again.folder, steps) == (first.folder, ["found"])
    recipe.sources[0].write_bytes(b"other weights")
    assert build(recipe, store, BuildOptions(threads=1)).folder != first.folder


def test_an_engine_that_differs_from_its_reference_is_not_kept(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    with pytest.raises(VerificationError, match="over the tolerance"):
        build(_recipe(tmp_path, wrong=0.1), store, BuildOptions(threads=1))
    with pytest.raises(VerificationError):
        build(_recipe(tmp_path, wrong=float("nan")), store, BuildOptions(threads=1))
    assert list(store.folder.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, share: float) -> None:
        if what.startswith("proving"):
            raise KeyboardInterrupt

    store = EngineStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        build(_recipe(tmp_path), store, BuildOptions(threads=1), progress=interrupt)
    assert list(store.folder.iterdir()) == []


def test_one_changed_byte_is_found_before_the_engine_is_opened(tmp_path: Path) -> None:
    recipe, store = _recipe(tmp_path), EngineStore(tmp_path / "store")
    engine = build(recipe, store, BuildOptions(threads=1))
    content = bytearray(engine.model.read_bytes())
    content[len(content) // 2] ^= 1
    engine.model.write_bytes(content)
    with pytest.raises(VerificationError, match="has changed since it was proven"):
        open_engine(engine, recipe)
    open_engine(build(recipe, store, BuildOptions(threads=1, rebuild=True)), recipe).close()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"name": 1}'])
def test_a_damaged_manifest_counts_as_absent_and_is_built_over(tmp_path: Path, damage: bytes) -> None:
    recipe, store = _recipe(tmp_path), EngineStore(tmp_path / "store")
    engine = build(recipe, store, BuildOptions(threads=1))
    (engine.folder / "manifest.json").write_bytes(damage)
    assert store.find(engine.manifest.key) is None
    assert build(recipe, store, BuildOptions(threads=1)).manifest.model_digest == engine.manifest.model_digest


def test_a_manifest_whose_model_lies_outside_its_folder_is_not_trusted(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    engine = build(_recipe(tmp_path), store, BuildOptions(threads=1))
    manifest = engine.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fp32.onnx"', '"../fp32.onnx"'))
    (store.folder / "fp32.onnx").write_bytes(b"climbed out")
    assert store.find(engine.manifest.key) is None


def test_missing_sources_and_a_store_that_is_a_file(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        build(recipe, EngineStore(blocked), BuildOptions(threads=1))
    recipe.sources[0].unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin cannot be read"):
        build(recipe, EngineStore(tmp_path / "store"), BuildOptions(threads=1))


def test_sizes_must_rise() -> None:
    with pytest.raises(EngineError, match="rise from 1"):
        Size(4, 2, 8)
