"""Engines for a GPU, with TensorRT replaced: what is built, proven, put back, kept and said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aula.core.errors import CalibrationError, VerificationError
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle
from aula.engine.manifest import TargetEngine
from aula.engine.plans import PlanOptions, UnbuildableError
from aula.engine.preflight import Card
from aula.engine.recipe import Model, Profile, Size, Task
from aula.engine.store import Store
from aula.engine.verify import verify
from tests.engine.fake_gpu import CARD, TENSORRT, FakeBuilder, FakeDeviceSession, fake_workshop
from tests.engine.toy import toy_graph, toy_model, toy_recipe


def _build(folder: Path, builder: FakeBuilder | None = None, *precisions: str, **changes: Any) -> Bundle:
    options = BuildOptions(precisions or ("fp32",), target="sm90", plans=changes.pop("plans", PlanOptions()))
    workshop = replace(fake_workshop(builder), card=changes.pop("card", CARD), version=changes.pop("version", TENSORRT))
    model = changes.pop("model", None) or toy_model(folder, **changes)
    return build(model, Store(folder / "store"), options, make_workshop=lambda _target: workshop)


def _engine(bundle: Bundle) -> TargetEngine:
    return bundle.engine(target="sm90")


def _session(bundle: Bundle, profile: str) -> FakeDeviceSession:
    return FakeDeviceSession(bundle.model_file("model", "sm90", profile), bundle.options("model", profile, "sm90"))


def test_a_plan_for_every_profile_in_fp16(tmp_path: Path) -> None:
    profiles = (Profile("one", {"rows": Size(1, 1, 1)}), Profile("many", {"rows": Size(2, 8, 16)}))
    builder = FakeBuilder()
    engine = _engine(_build(tmp_path, builder, profiles=profiles))
    assert builder.built == [("fp16-one", "fp16"), ("fp16-many", "fp16")]
    assert engine.precision == "fp16"
    assert engine.plans.keys() == engine.profiles.keys() == engine.inspection.keys() == {"one", "many"}
    assert engine.chosen.relative_error is not None
    assert engine.chosen.relative_error < 2e-2
    assert engine.device is not None
    assert (engine.device.name, engine.device.capability) == (CARD.name, CARD.capability)


def test_a_session_computes_what_the_recipe_says(tmp_path: Path) -> None:
    bundle = _build(tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    with _session(bundle, "usual") as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ np.arange(6).reshape(3, 2), rtol=2e-3)


def test_profiles_of_a_gpu_are_its_own(tmp_path: Path) -> None:
    bundle = _build(tmp_path, gpu_profiles=(Profile("many", {"rows": Size(64, 64, 64)}),))
    assert list(_engine(bundle).profiles) == ["many"]


def test_where_fp16_is_too_far_fp32_is_built(tmp_path: Path) -> None:
    engine = _engine(_build(tmp_path, half_tolerance=1e-9))
    assert engine.precision == "fp32"
    assert {one.precision: bool(one.rejected) for one in engine.candidates} == {"fp16": True, "fp32": False}


def test_where_nothing_passes_the_reasons_are_given(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"fp16: relative error .*; fp32: relative error"):
        _build(tmp_path, wrong=1.0)
    assert Store(tmp_path / "store").keys() == []


def test_few_of_many_rows_are_compared_with_the_reference(tmp_path: Path) -> None:
    seen: list[int] = []
    recipe = toy_recipe(tmp_path, rows="rows", profiles=(Profile("many", {"rows": Size(64, 64, 64)}),))

    def counting(inputs: Any) -> Any:
        seen.append(len(inputs["x"]))
        return recipe.reference(inputs)

    _build(tmp_path, model=Model.of(replace(recipe, reference=counting)))
    assert seen == [4]


def test_the_wrong_row_is_found_among_the_few(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, rows="rows", profiles=(Profile("many", {"rows": Size(64, 64, 64)}),), wrong=0.5)
    with pytest.raises(VerificationError):
        _build(tmp_path, model=Model.of(recipe))


def test_a_node_without_a_kernel_is_the_reason(tmp_path: Path) -> None:
    class Refusing(FakeBuilder):
        def build(self, model: Path, precision: str, *args: Any, **more: Any) -> Any:
            if precision == "fp16":
                raise UnbuildableError("TensorRT has no kernel for the_product", next_step="…")
            return super().build(model, precision, *args, **more)

    engine = _engine(_build(tmp_path, Refusing()))
    assert engine.precision == "fp32"
    assert engine.candidates[0].rejected == "TensorRT has no kernel for the_product"


def test_timings_are_kept_and_used_again(tmp_path: Path) -> None:
    caches: list[bytes] = []

    class Remembering(FakeBuilder):
        def build(self, *args: Any, cache: bytes = b"", **more: Any) -> Any:
            caches.append(cache)
            return super().build(*args, cache=cache, **more)

    _build(tmp_path, Remembering())
    _build(tmp_path, Remembering(), plans=PlanOptions(level=2))
    assert caches == [b"", b"t"]
    (file,) = (tmp_path / "store" / "timings").iterdir()
    assert "Fake-H200" in file.name
    file.unlink()
    file.mkdir()  # cannot be read, cannot be written: a miss, and no error
    _build(tmp_path, Remembering(), plans=PlanOptions(level=1))
    assert caches[-1] == b""


@pytest.mark.parametrize(
    "other",
    [
        {"card": Card("Other", "9.0", "13.0")},
        {"card": replace(CARD, driver="13.1")},
        {"version": "10.12.0"},
        {"plans": PlanOptions(level=4)},
        {"plans": PlanOptions(compatibility="ampere-plus")},
    ],
)
def test_what_decides_a_plan_decides_its_key(tmp_path: Path, other: dict[str, Any]) -> None:
    first = _build(tmp_path).manifest.key
    assert _build(tmp_path).manifest.key == first
    assert _build(tmp_path, **other).manifest.key != first


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(FakeBuilder):
        def build(self, *_args: Any, **_more: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, Interrupted())
    store = Store(tmp_path / "store")
    assert store.keys() == []
    assert not list(store.files.glob("*"))


def test_a_changed_plan_is_not_opened(tmp_path: Path) -> None:
    bundle = _build(tmp_path)
    path = bundle.model_file("model", "sm90", "usual")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(VerificationError):
        bundle.model_file("model", "sm90", "usual")


def _task(metrics: list[float]) -> Task:
    """Says the next metric each time it is asked: fp32 first."""
    return Task("made up", 100, "0" * 64, lambda _session: metrics.pop(0))


@pytest.mark.parametrize(("metric", "kept"), [(0.895, "fp16"), (0.85, "fp32")])
def test_where_a_task_judges_fp16_is_held_to_it(tmp_path: Path, metric: float, kept: str) -> None:
    engine = _engine(_build(tmp_path, None, "fp16", task=lambda: _task([0.9, metric, 0.9])))
    assert engine.precision == kept
    assert engine.gate is not None
    assert engine.gate.reference == 0.9


@pytest.mark.parametrize(("milliseconds", "kept"), [(0.99, "fp16"), (0.5, "int8")])
def test_int8_must_be_clearly_faster_than_fp16(tmp_path: Path, milliseconds: float, kept: str) -> None:
    builder = FakeBuilder(milliseconds={"fp16": 1.0, "int8": milliseconds})
    changes = {"task": lambda: _task([0.9, 0.9, 0.9]), "written": {"int8": toy_graph}}
    engine = _engine(_build(tmp_path, builder, "int8", **changes))
    assert engine.precision == kept
    reasons = {one.precision: one.rejected for one in engine.candidates}
    assert (reasons["int8"] is None) == (kept == "int8")


def test_int8_without_a_task_is_not_shipped_however_fast(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="labelled"):
        _build(tmp_path, FakeBuilder(milliseconds={"int8": 0.1}), "int8", written={"int8": toy_graph})


def test_layers_without_an_int8_kernel_are_put_back_and_named(tmp_path: Path) -> None:
    builder = FakeBuilder(without_kernel=("product",), milliseconds={"fp16": 1.0, "int8": 0.5})
    changes = {"task": lambda: _task([0.9, 0.9, 0.9]), "written": {"int8": _quantised_toy}}
    engine = _engine(_build(tmp_path, builder, "int8", write_graph=_named_toy, **changes))
    assert engine.quantisation is not None
    assert engine.quantisation.restored == ("product",)
    assert engine.precision == "int8"


def _named_toy() -> onnx.ModelProto:
    graph: onnx.ModelProto = toy_graph()
    next(node for node in graph.graph.node if node.op_type == "MatMul").name = "product"
    return graph


def _quantised_toy() -> onnx.ModelProto:
    """The product behind a pair on its input."""
    model = _named_toy()
    product = next(node for node in model.graph.node if node.name == "product")
    source = product.input[0]
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.asarray(0.05, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.asarray(0, np.int8), "zero"),
        ]
    )
    pair = [
        onnx.helper.make_node("QuantizeLinear", [source, "scale", "zero"], ["rounded"], name="rounded"),
        onnx.helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["back"], name="back"),
    ]
    product.input[0] = "back"
    nodes = [*pair, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_verify_proves_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = _build(tmp_path)
    monkeypatch.setattr(Bundle, "open", lambda self, part, profile, target: _session(self, profile))
    (verdict,) = verify(bundle, toy_model(tmp_path), target="sm90")
    assert verdict.passed
    assert verdict.relative_error is not None
    assert verdict.milliseconds == {"usual": 1.0}
    (wrong,) = verify(bundle, toy_model(tmp_path, wrong=1.0), target="sm90")
    assert not wrong.passed
    assert "relative error" in wrong.reason


def test_a_session_that_tells_no_device_time_proves_nothing(tmp_path: Path) -> None:
    from aula.backends.session import SessionOptions, open_session

    def plain(path: Path, options: SessionOptions) -> Any:
        graph = path.with_suffix(".onnx")
        graph.write_bytes(path.read_bytes().partition(b"\n")[2])
        return open_session("onnxruntime", graph)

    workshop = replace(fake_workshop(), open=plain)
    with pytest.raises(VerificationError, match="tells no device time"):
        build(
            toy_model(tmp_path),
            Store(tmp_path / "store"),
            BuildOptions(target="sm90"),
            make_workshop=lambda _target: workshop,
        )
