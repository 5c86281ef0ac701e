from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.hosted import HostedSession
from aula.backends.hosting.records import Hosting
from aula.backends.session import available_backends
from aula.core.errors import BackendError, CheckpointError, EngineError, StorageError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.graph import bind_weights
from aula.engine.manifest import Part
from aula.engine.recipe import Model, Profile, Size
from aula.engine.store import Store
from aula.engine.verify import verify
from tests.engine.toy import toy_model, toy_recipe

ONE = BuildOptions(threads=1)


def _left(store: Store) -> list[str]:
    """Everything in the store but empty folders."""
    return [str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()]


def test_a_built_engine_computes_and_its_manifest_says_how_it_was_chosen(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    steps: list[str] = []
    bundle = build(model, Store(tmp_path / "store"), ONE, progress=lambda what, _: steps.append(what))
    engine = bundle.engine()
    assert {candidate.backend for candidate in engine.candidates} == set(available_backends())
    assert engine.chosen.rejected is None
    assert engine.chosen.relative_error is not None
    assert engine.chosen.relative_error <= model.recipe("model").tolerance
    assert engine.chosen.milliseconds.keys() == {"usual"}
    assert bundle.engine().inputs == {"x": ("rows", 3)}
    assert bundle.engine().written.parameters == 6
    assert (steps[0], steps[-1]) == ("writing the graph", "built")
    with bundle.open() as session:
        result = session.run({"x": np.ones((3, 3), np.float32)})
    np.testing.assert_allclose(result["y"], [[6, 9]] * 3)
    assert [verdict.passed for verdict in verify(bundle, model)] == [True]


def test_a_session_for_a_profile_serves_its_sizes(tmp_path: Path) -> None:
    profiles = (Profile("single", {"rows": Size(1, 1, 1)}), Profile("many", {"rows": Size(1, 4, 8)}))
    bundle = build(toy_model(tmp_path, profiles=profiles), Store(tmp_path / "store"), ONE)
    assert bundle.engine().bounds("many") == {"x": ((1, 8), (3, 3))}
    with bundle.open(profile="single") as single, bundle.open(profile="many") as many:
        np.testing.assert_allclose(single.run({"x": np.ones((1, 3), np.float32)})["y"], [[6, 9]])
        np.testing.assert_allclose(many.run({"x": np.ones((8, 3), np.float32)})["y"], [[6, 9]] * 8)
    with pytest.raises(EngineError, match="no profile 'none'") as failure:
        bundle.open(profile="none")
    assert failure.value.available == ("single", "many")


def test_a_bundle_opens_in_a_process_of_its_own_after_the_same_checks(tmp_path: Path) -> None:
    bundle = build(toy_model(tmp_path), Store(tmp_path / "store"), ONE)
    with bundle.open(hosting=Hosting()) as hosted, bundle.open() as here:
        assert isinstance(hosted, HostedSession)
        assert (hosted.backend, hosted.inputs, hosted.options) == (here.backend, here.inputs, here.options)
        np.testing.assert_allclose(hosted.run({"x": np.ones((3, 3), np.float32)})["y"], [[6, 9]] * 3)
    with pytest.raises(EngineError, match="no profile 'none'") as failure:
        bundle.open(profile="none", hosting=Hosting())
    assert failure.value.available == ("usual",)
    bundle.model_file().write_bytes(b"other bytes")
    with pytest.raises(VerificationError):
        bundle.open(hosting=Hosting())


def test_the_second_build_of_the_same_inputs_is_found_and_other_inputs_are_not(tmp_path: Path) -> None:
    model, store = toy_model(tmp_path), Store(tmp_path / "store")
    first = build(model, store, ONE)
    steps: list[str] = []
    again = build(model, store, ONE, progress=lambda what, _: steps.append(what))
    assert (again, steps) == (first, ["found"])
    other_sizes = toy_model(tmp_path, profiles=(Profile("usual", {"rows": Size(1, 2, 5)}),))
    assert build(other_sizes, store, ONE).manifest.key != first.manifest.key
    model.recipe("model").sources[0].write_bytes(b"other weights")
    assert build(model, store, ONE).manifest.key != first.manifest.key


def test_two_sources_of_one_name_both_count(tmp_path: Path) -> None:
    sources = [tmp_path / "config.json", tmp_path / "1_Pooling" / "config.json"]
    sources[1].parent.mkdir()
    for source in sources:
        source.write_text("{}")
    model, store = toy_model(tmp_path, sources=tuple(sources)), Store(tmp_path / "store")
    first = build(model, store, ONE)
    assert set(first.part().sources) == {"config.json", "1_Pooling/config.json"}
    for source in sources:
        source.write_text('{"changed": true}')
        assert build(model, store, ONE).manifest.key != first.manifest.key
        source.write_text("{}")


def test_an_engine_that_differs_from_its_reference_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(VerificationError, match="over the tolerance"):
        build(toy_model(tmp_path, wrong=0.1), store, ONE)
    with pytest.raises(VerificationError):
        build(toy_model(tmp_path, wrong=float("nan")), store, ONE)
    assert _left(store) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, share: float) -> None:
        if what.startswith("proving"):
            raise KeyboardInterrupt

    store = Store(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        build(toy_model(tmp_path), store, ONE, progress=interrupt)
    assert _left(store) == []


def test_an_interrupted_build_of_two_parts_goes_on_with_the_second(tmp_path: Path) -> None:
    written: list[str] = []

    def recipe(name: str) -> object:
        plain = toy_recipe(tmp_path)
        graph = plain.write_graph

        def write() -> object:
            written.append(name)
            return graph()

        return toy_recipe(tmp_path, name=name, write_graph=write)

    model = Model("pair", {"first": recipe("first"), "second": recipe("second")})  # type: ignore[dict-item]
    store = Store(tmp_path / "store")

    def interrupt(what: str, share: float) -> None:
        if what.startswith("second: proving"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, store, ONE, progress=interrupt)
    assert store.keys() == []
    assert written == ["first", "second"]
    bundle = build(model, store, ONE)
    assert written == ["first", "second", "second"]
    assert list(bundle.manifest.parts) == ["first", "second"]
    with pytest.raises(EngineError, match="no part 'third'"):
        bundle.open("third")


def test_a_build_over_damaged_files_makes_them_whole(tmp_path: Path) -> None:
    model, store = toy_model(tmp_path), Store(tmp_path / "store")
    bundle = build(model, store, ONE)
    path = bundle.model_file()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match="has changed since it was proven"):
        bundle.open()
    with pytest.raises(VerificationError, match="has changed"):
        bundle.check()
    build(model, store, BuildOptions(threads=1, rebuild=True)).open().close()
    path.unlink()
    build(model, store, ONE).open().close()


def test_missing_sources_and_a_store_that_is_a_file(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        build(model, Store(blocked), ONE)
    model.recipe("model").sources[0].unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin cannot be read"):
        build(model, Store(tmp_path / "store"), ONE)


def test_a_full_disk_is_said_and_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> Part:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path / "store")
    monkeypatch.setattr("aula.engine.store.file_digest", full)
    with pytest.raises(StorageError, match="No space left"):
        build(toy_model(tmp_path), store, ONE)
    assert _left(store) == []


def test_names_that_no_disk_takes_become_keys_that_every_disk_takes(tmp_path: Path) -> None:
    for name in ("我的模型", "a/b c", "../up", ""):
        bundle = build(Model(name, {"model": toy_recipe(tmp_path)}), Store(tmp_path / "store"), ONE)
        assert bundle.manifest.name == name
        assert "/" not in bundle.manifest.key
        assert not bundle.manifest.key.startswith(".")


def test_sizes_must_rise_and_targets_and_precisions_be_known() -> None:
    with pytest.raises(EngineError, match="rise from 1"):
        Size(4, 2, 8)
    with pytest.raises(EngineError, match="no engine for 'sm70'") as failure:
        BuildOptions(target="sm70")
    assert failure.value.available == ("cpu", "sm75", "sm86", "sm89", "sm90")
    with pytest.raises(EngineError, match="no precision int4"):
        BuildOptions(("int4",))
    with pytest.raises(EngineError, match="no precision bf16 for the target sm75") as failure:
        BuildOptions(("bf16",), target="sm75")
    assert failure.value.available == ("fp32", "fp16", "int8")
    assert BuildOptions(("int8", "bf16", "fp16"), target="sm90").lower == ("fp16", "bf16", "int8")


def test_a_gpu_that_nothing_builds_for_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(BackendError, match="is built on such a GPU"):
        build(toy_model(tmp_path), store, BuildOptions(threads=1, target="sm89"))
    assert _left(store) == []


def test_weights_that_lie_beside_the_graph_go_into_the_store_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.arange(1500, dtype=np.float32).reshape(3, 500) / 1500

    def write() -> Any:
        import spox
        import spox.opset.ai.onnx.v20 as op

        x, w = (spox.argument(spox.Tensor(np.float32, shape)) for shape in (("rows", 3), (3, 500)))
        return bind_weights(spox.build({"x": x, "w": w}, {"y": op.matmul(x, w)}), {"w": weight})

    monkeypatch.setattr("aula.engine.build.MAPPED_LIMIT", 1000)
    model = toy_model(tmp_path, write_graph=write, reference=lambda inputs: {"y": inputs["x"] @ weight})
    bundle = build(model, Store(tmp_path / "store"), ONE)
    files = bundle.engine().files
    assert [file.suffix for file in files] == [".onnx", ".data"]
    assert sorted(path.name for path in bundle.files.iterdir()) == sorted(file.name for file in files)
    with bundle.open() as session:
        result = session.run({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_allclose(result["y"][0], weight.sum(axis=0), rtol=1e-6)
    side = bundle.files / files[1].name
    side.write_bytes(bytes(len(side.read_bytes())))
    with pytest.raises(VerificationError, match="has changed"):
        bundle.open()
