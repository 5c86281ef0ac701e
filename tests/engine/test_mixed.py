"""int8+bf16: the int8 graph with BF16 for the rest, where the processor has it: judged, raced and opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, available_backends, computes, open_session
from aula.core.clock import FakeClock
from aula.core.errors import BundleError, EngineError
from aula.core.types import TensorSpec
from aula.engine.build import BuildOptions, build
from aula.engine.bundle import Bundle, session_options
from aula.engine.manifest import TargetEngine, read_manifest, sealed, write_manifest
from aula.engine.recipe import Model, Task
from aula.engine.store import Store
from aula.engine.targets import MIXED, share_in
from aula.engine.trial import share_fault
from aula.engine.verify import verify
from tests.engine.toy import WEIGHT, toy_graph, toy_recipe

INT8 = BuildOptions(("fp32", "int8"), threads=1)
needs_bf16 = pytest.mark.skipif(
    "openvino" not in available_backends() or not computes("openvino", "bf16"), reason="no BF16 on this processor"
)


@dataclass
class FakeProcessor:
    """What a run takes and how far it is off, by the graph's file and the arithmetic: the precision that is proven."""

    seconds: dict[str, float]
    error: dict[str, float] = field(default_factory=dict)
    layers: dict[str, Mapping[str, int]] = field(default_factory=dict)
    bf16: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    opened: list[tuple[str, str, str]] = field(default_factory=list)
    bounds: list[Mapping[str, Any]] = field(default_factory=list)

    def open(self, backend: str, path: Path, options: SessionOptions | None = None) -> Session:
        assert options is not None
        self.bounds.append(options.bounds)
        self.opened.append((backend, path.name, options.precision))
        written = "fp32" if path.stem == "fp32" else "int8"  # in the store it is named by its bytes
        precision = written if options.precision == "fp32" else f"{written}+{options.precision}"
        return _FakeSession(self, precision, options)


class _FakeSession(Session):
    backend = "fake"

    def __init__(self, processor: FakeProcessor, precision: str, options: SessionOptions) -> None:
        self._processor = processor
        self.precision = precision
        super().__init__([TensorSpec("x", "float32", ("rows", 3))], [TensorSpec("y", "float32", ("rows", 2))], options)

    def _run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        self._processor.clock.advance(self._processor.seconds[self.precision])
        return {"y": tensors["x"] @ WEIGHT + np.float32(self._processor.error.get(self.precision, 0.0))}

    def precisions(self) -> dict[str, int]:
        usual = {"fp32": {"fp32": 4}, "int8": {"int8": 3, "fp32": 1}, MIXED: {"int8": 3, "bf16": 1}}
        return dict(self._processor.layers.get(self.precision, usual[self.precision]))


def _model(folder: Path, metric: Callable[[str], float] = lambda _precision: 0.9, **changes: Any) -> Model:
    """Judged by what `metric` says of a precision."""

    def evaluate(session: Session) -> float:
        return metric(session.precision) if isinstance(session, _FakeSession) else 0.9

    task = Task("luck", 200, "d", evaluate)
    return Model.of(toy_recipe(folder, written={"int8": toy_graph}, task=lambda: task, **changes))


def _built(
    processor: FakeProcessor,
    folder: Path,
    patch: pytest.MonkeyPatch,
    options: BuildOptions = INT8,
    metric: Callable[[str], float] = lambda _precision: 0.9,
    **changes: Any,
) -> Bundle:
    patch.setattr("aula.engine.trial.open_session", processor.open)
    for module in ("build", "trial", "mixed"):
        patch.setattr(f"aula.engine.{module}.available_backends", lambda: ["openvino"])
    patch.setattr("aula.engine.mixed.computes", lambda _backend, precision: precision == "fp32" or processor.bf16)
    return build(_model(folder, metric, **changes), Store(folder / "store"), options, clock=processor.clock)


def _rejected(engine: TargetEngine) -> dict[str, str | None]:
    return {candidate.precision: candidate.rejected for candidate in engine.candidates}


TIMES = {"fp32": 0.004, "int8": 0.002, MIXED: 0.001}


def test_it_is_chosen_where_it_is_faster_and_within_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = FakeProcessor(TIMES)
    engine = _built(processor, tmp_path, monkeypatch).engine()
    assert (engine.precision, engine.chosen.milliseconds) == (MIXED, {"usual": 1.0})
    assert _rejected(engine) == {"fp32": None, "int8": None, MIXED: None}
    assert engine.chosen.layers == {"int8": 3, "bf16": 1}
    assert engine.quantisation is not None, "it is made like any int8 graph"
    assert ("openvino", "int8.onnx", "bf16") in processor.opened, "the same file, with other arithmetic"


@pytest.mark.parametrize(
    ("seconds", "metric", "layers", "why"),
    [
        (0.00199, 0.9, {}, "not clearly faster than int8 on openvino"),
        (0.001, 0.88, {}, "the metric drops by 2.00 points, more than 1"),
        (0.001, 0.9, {"fp32": 2, "int8": 2}, "only 0 of 2 layers that are not int8 truly run in bf16"),
        (0.001, 0.9, {"bf16": 3, "int8": 1}, "only 1 of 4 layers truly run in int8"),
    ],
)
def test_it_is_left_out_where_it_is_not(
    seconds: float,
    metric: float,
    layers: dict[str, int],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = FakeProcessor({**TIMES, MIXED: seconds}, layers={MIXED: layers} if layers else {})
    bundle = _built(processor, tmp_path, monkeypatch, metric=lambda precision: metric if precision == MIXED else 0.9)
    assert bundle.engine().precision == "int8"
    assert _rejected(bundle.engine()) == {"fp32": None, "int8": None, MIXED: why}


def test_it_may_not_be_much_further_from_the_reference_than_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = FakeProcessor(TIMES, error={"int8": 0.05, MIXED: 5.0})
    engine = _built(processor, tmp_path, monkeypatch).engine()
    assert engine.precision == "int8"
    assert "where the graph can have" in (_rejected(engine)[MIXED] or "")


def test_it_is_not_tried_without_bf16_nor_where_int8_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = _built(FakeProcessor(TIMES, bf16=False), tmp_path, monkeypatch).engine()
    assert _rejected(without) == {"fp32": None, "int8": None}
    failing = BuildOptions(("fp32", "int8"), threads=1, rebuild=True)
    failed = _built(FakeProcessor(TIMES), tmp_path, monkeypatch, failing, lambda one: 0.9 if one == "fp32" else 0.5)
    assert _rejected(failed.engine()).keys() == {"fp32", "int8"}


def test_it_can_be_refused_and_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = BuildOptions(("fp32", "int8"), threads=1, without=(MIXED,))
    plain = _built(FakeProcessor(TIMES), tmp_path, monkeypatch, refusing)
    assert plain.engine().precision == "int8"
    assert _rejected(plain.engine()).keys() == {"fp32", "int8"}
    asking = BuildOptions(("fp32", MIXED), threads=1)
    asked = _built(FakeProcessor(TIMES), tmp_path, monkeypatch, asking)
    assert asked.engine().precision == MIXED
    assert asked.manifest.key != plain.manifest.key
    with pytest.raises(EngineError, match="no BF16 arithmetic") as failure:
        _built(FakeProcessor(TIMES, bf16=False), tmp_path, monkeypatch, asking)
    assert "--precision int8" in failure.value.next_step


def test_options_that_contradict_each_other_are_refused() -> None:
    assert BuildOptions(("int8",)).lower == BuildOptions((MIXED,)).lower == ("int8", MIXED)
    assert BuildOptions(("bf16",)).lower == ("bf16",)
    assert BuildOptions(("int8",), target="sm90", without=(MIXED,)).lower == ("fp16", "int8")
    with pytest.raises(EngineError, match="also asked for"):
        BuildOptions((MIXED,), without=(MIXED,))
    with pytest.raises(EngineError, match="fp32 cannot be left out"):
        BuildOptions(without=("fp32",))
    with pytest.raises(EngineError, match=r"no precision int8\+bf16 for the target sm90"):
        BuildOptions((MIXED,), target="sm90")


def test_its_manifest_is_read_back_and_an_older_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _built(FakeProcessor(TIMES), tmp_path, monkeypatch).manifest
    assert read_manifest(write_manifest(manifest), "m") == manifest
    assert manifest.format == 6, "an older reader would compute the rest in fp32"
    older = sealed(replace(manifest, format=5))
    assert read_manifest(write_manifest(older), "m") == older
    with pytest.raises(BundleError, match="reads forms 5 and 6"):
        read_manifest(write_manifest(sealed(replace(manifest, format=7))), "m")
    part = manifest.parts["model"]
    cpu = part.engines["cpu"]
    odd = tuple(replace(one, precision="int4" if one.precision == MIXED else one.precision) for one in cpu.candidates)
    engine = replace(cpu, precision="int4", candidates=odd)
    foreign = sealed(replace(manifest, parts={"model": replace(part, engines={"cpu": engine})}))
    with pytest.raises(BundleError, match="is 'int4'") as failure:
        read_manifest(write_manifest(foreign), "m")
    assert MIXED in failure.value.available


def test_it_is_opened_with_bf16_and_as_plain_int8_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _built(FakeProcessor(TIMES), tmp_path, monkeypatch)
    monkeypatch.setattr("aula.engine.bundle.computes", lambda _backend, _precision: True)
    assert bundle.options().precision == "bf16"
    assert verify(bundle, _model(tmp_path))[0].precision == MIXED
    monkeypatch.setattr("aula.engine.bundle.computes", lambda _backend, _precision: False)
    assert bundle.options().precision == "fp32"
    verdict = verify(bundle, _model(tmp_path))[0]
    assert (verdict.precision, verdict.passed) == ("int8", True)
    engine = bundle.engine()
    failed = tuple(
        replace(one, rejected="the metric drops" if one.precision == "int8" else None) for one in engine.candidates
    )
    assert bundle.precision_here(replace(engine, candidates=failed)) == MIXED, "plain int8 was not proven"


@pytest.mark.parametrize(("shared", "bounds"), [(False, {"x": ((1, 4), (3, 3))}), (True, {})])
def test_an_engine_is_raced_in_the_session_that_serves(
    shared: bool, bounds: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = FakeProcessor(TIMES)
    bundle = _built(processor, tmp_path, monkeypatch, shared=shared)
    raced = processor.bounds[-3:]
    assert raced == [bounds] * 3, "fp32, int8 and int8+bf16 come last, and side by side"
    assert bundle.engine().precision == MIXED


def test_only_this_precision_changes_what_a_backend_is_told() -> None:
    told = {name: session_options(name, 1).precision for name in ("fp32", "fp16", "bf16", "int8", MIXED)}
    assert told == {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "fp32", MIXED: "bf16"}


def test_shares_of_layers() -> None:
    layers = {"int8": 73, "bf16": 71, "fp32": 1}
    assert (share_fault(layers, MIXED), share_fault({"int8": 98}, MIXED), share_fault({}, MIXED)) == ("", "", "")
    assert share_in(layers, MIXED) == pytest.approx(144 / 145)
    assert share_in(layers, "int8") == pytest.approx(73 / 145)


@needs_bf16
def test_openvino_truly_computes_the_rest_in_bf16(tmp_path: Path) -> None:
    """int8 weights in one product, none in the other."""
    import onnx
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "a": generator.integers(-100, 100, (64, 64)).astype(np.int8),
        "scale": np.full((), 0.01, np.float32),
        "b": generator.standard_normal((64, 64)).astype(np.float32),
        "s": np.full((), 0.05, np.float32),
        "z": np.zeros((), np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["a", "scale"], ["ad"]),
        helper.make_node("MatMul", ["xd", "ad"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "mixed",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 64])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", 64])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "mixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    x = np.round(generator.standard_normal((8, 64)).astype(np.float32) / 0.05) * np.float32(0.05)
    outputs = {}
    for precision, layers in (("int8", {"int8": 1, "fp32": 1}), (MIXED, {"int8": 1, "bf16": 1})):
        with open_session("openvino", path, session_options(precision, 1)) as session:
            assert session.precisions() == layers
            outputs[precision] = session.run({"x": x})["y"]
    difference = np.abs(outputs[MIXED] - outputs["int8"]).max() / np.abs(outputs["int8"]).max()
    assert 0 < difference < 0.02
