"""INT8 on a small network of two layers: y = relu(x @ a) @ b, with a task of telling which half of x is larger."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aula.backends.session import Session, SessionOptions, open_session
from aula.core.errors import CalibrationError
from aula.engine import precision
from aula.engine.build import BuildOptions, build
from aula.engine.graph import bind_weights, report
from aula.engine.quantize import (
    Method,
    check_calibration,
    quantize,
    quantized_layers,
    restored,
    sensitivities,
)
from aula.engine.recipe import Arrays, Calibration, Model, Profile, Recipe, Size, Task
from aula.engine.store import Store
from aula.engine.targets import MIXED
from aula.engine.verify import verify

pytest.importorskip("nncf", reason="the extra `quantize` is not installed")

WIDTH = 16
MINMAX = Method("minmax", None)


def _weights() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(5)
    a = generator.normal(0, 0.5, (WIDTH, 32)).astype(np.float32)
    b = generator.normal(0, 0.5, (32, 2)).astype(np.float32)
    return {"a": a, "b": b}


def _graph() -> Any:
    import spox
    import spox.opset.ai.onnx.v20 as op

    x = spox.argument(spox.Tensor(np.float32, ("rows", WIDTH)))
    a = spox.argument(spox.Tensor(np.float32, (WIDTH, 32)))
    b = spox.argument(spox.Tensor(np.float32, (32, 2)))
    return bind_weights(spox.build({"x": x, "a": a, "b": b}, {"y": op.matmul(op.relu(op.matmul(x, a)), b)}), _weights())


def _reference(inputs: Arrays) -> Arrays:
    weights = _weights()
    return {"y": np.maximum(inputs["x"].astype(np.float64) @ weights["a"], 0) @ weights["b"]}


def _inputs(count: int, seed: int = 0) -> list[Arrays]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.normal(size=(1, WIDTH)).astype(np.float32)} for _ in range(count)]


def _calibration(count: int = 32, **changes: Any) -> Calibration:
    return Calibration(**{"inputs": _inputs(count), "source": "a test", "digest": "d", **changes})


def _task() -> Task:
    """How often the engine's larger output is the reference's larger output."""
    examples = _inputs(200, seed=7)
    wanted = [int(_reference(example)["y"].argmax()) for example in examples]

    def evaluate(session: Session) -> float:
        got = [int(session.run(example)["y"].argmax()) for example in examples]
        return float(np.mean([mine == theirs for mine, theirs in zip(got, wanted, strict=True)]))

    return Task("agreement", len(examples), "t", evaluate)


def _recipe(folder: Path, **changes: Any) -> Recipe:
    source = folder / "weights.bin"
    source.write_bytes(b"weights")

    def example(sizes: Mapping[str, int], generator: np.random.Generator) -> Arrays:
        return {"x": generator.normal(size=(sizes["rows"], WIDTH)).astype(np.float32)}

    fields: dict[str, Any] = {
        "name": "toy",
        "revision": 1,
        "sources": (source,),
        "write_graph": _graph,
        "example": example,
        "reference": _reference,
        "profiles": (Profile("usual", {"rows": Size(1, 2, 4)}),),
        "transformer": False,
        "calibration": _calibration,
        "task": _task,
    }
    return Recipe(**{**fields, **changes})


def _run(model: Any, folder: Path) -> Any:
    import onnx

    path = folder / "model.onnx"
    onnx.save(model, str(path))
    with open_session("onnxruntime", path, SessionOptions(threads=1)) as session:
        return [session.run(example) for example in _inputs(8, seed=3)]


@pytest.fixture(scope="module")
def quantised() -> Any:
    return quantize(_graph(), _calibration(), MINMAX, transformer=False)


def test_every_layer_gets_its_pairs_and_the_weights_shrink(quantised: Any) -> None:
    assert len(quantized_layers(quantised)) == 2
    assert quantized_layers(_graph()) == []
    assert report(quantised).weight_bytes < report(_graph()).weight_bytes / 2
    assert report(quantised).operators["DequantizeLinear"] >= 4


def test_outputs_are_near_and_putting_every_layer_back_makes_them_exact(quantised: Any, tmp_path: Path) -> None:
    exact = np.vstack([row["y"] for row in _run(_graph(), tmp_path)])
    rough = np.vstack([row["y"] for row in _run(quantised, tmp_path)])
    whole = np.vstack([row["y"] for row in _run(restored(quantised, _graph(), quantized_layers(quantised)), tmp_path)])
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-5)
    assert quantized_layers(quantised), "the graph that was given is not changed"


def test_a_layer_that_is_put_back_gets_its_own_bias_again(tmp_path: Path) -> None:
    """NNCF corrects biases in place for what rounding does; without the rounding the correction is an error."""
    import spox
    import spox.opset.ai.onnx.v20 as op

    generator = np.random.default_rng(2)
    values = {
        "a": generator.normal(0, 0.5, (WIDTH, 32)).astype(np.float32),
        "bias": generator.normal(0, 0.5, 32).astype(np.float32),
    }
    arguments = {name: spox.argument(spox.Tensor(np.float32, array.shape)) for name, array in values.items()}
    x = spox.argument(spox.Tensor(np.float32, ("rows", WIDTH)))
    y = op.add(op.matmul(x, arguments["a"]), arguments["bias"])
    graph = bind_weights(spox.build({"x": x, **arguments}, {"y": y}), values)
    made = quantize(graph, _calibration(), MINMAX, transformer=False)
    for tensor in made.graph.initializer:  # as strong a correction as there ever is
        if tensor.name == "bias":
            tensor.raw_data = (values["bias"] + 1).tobytes()
    exact = np.vstack([row["y"] for row in _run(graph, tmp_path)])
    whole = np.vstack([row["y"] for row in _run(restored(made, graph, quantized_layers(made)), tmp_path)])
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-5)


def test_every_layer_is_ranked_by_how_much_putting_it_back_would_gain(quantised: Any, tmp_path: Path) -> None:
    gains = sensitivities(quantised, _graph(), lambda model: _run(model, tmp_path))
    assert {name for name, _ in gains} == set(quantized_layers(quantised))
    assert gains[0][1] >= gains[1][1]
    assert gains[0][1] > 0


@pytest.mark.parametrize(
    ("calibration", "fault"),
    [
        (_calibration(random=True), "random"),
        (_calibration(3), "too few"),
        (_calibration(inputs=[{"z": np.zeros((1, WIDTH), np.float32)}] * 20), "takes x float32"),
        (_calibration(inputs=[{"x": np.zeros((1, WIDTH), np.int64)}] * 20), "takes x float32"),
        (_calibration(inputs=[{"x": np.full((1, WIDTH), np.nan, np.float32)}] * 20), "not finite"),
    ],
)
def test_calibration_data_that_means_nothing_is_refused(calibration: Calibration, fault: str) -> None:
    with pytest.raises(CalibrationError, match=fault):
        check_calibration(calibration, _graph())


def test_a_build_tries_both_precisions_and_says_what_it_kept_and_why(tmp_path: Path) -> None:
    recipe, store = _recipe(tmp_path), Store(tmp_path / "store")
    options = BuildOptions(("fp32", "int8"), threads=1, most_drop=0.05)
    bundle = build(Model.of(recipe), store, options)
    engine = bundle.engine()
    assert {candidate.precision for candidate in engine.candidates} - {MIXED} == {"fp32", "int8"}
    assert engine.gate is not None
    assert (engine.gate.reference, engine.gate.examples) == (1.0, 200)
    assert engine.quantisation is not None
    assert engine.quantisation.digest == "d"
    kept = [candidate for candidate in engine.candidates if candidate.rejected is None]
    assert engine.chosen in kept
    if engine.precision == "fp32":
        assert all(c.rejected for c in engine.candidates if c.precision == "int8")
    assert [path.name for path in store.files.iterdir()] == [engine.files[0].name]
    assert store.find(bundle.manifest.key) == bundle, "the manifest is read back as it was written"
    verdict = verify(bundle, Model.of(recipe))[0]
    assert verdict.passed, verdict
    other = replace(recipe, task=lambda: replace(_task(), digest="others"))
    with pytest.raises(CalibrationError, match="other labelled examples"):
        verify(bundle, Model.of(other))
    bundle.open().close()


def test_a_gate_that_nothing_passes_leaves_fp32(tmp_path: Path) -> None:
    def strict() -> Task:
        """Only the exact graph pleases: any deviation costs everything."""
        example = _inputs(1, seed=9)[0]
        wanted = _reference(example)["y"]

        def evaluate(session: Session) -> float:
            return float(np.abs(session.run(example)["y"] - wanted).max() < 1e-4)

        return Task("exactness", 1, "s", evaluate)

    options = BuildOptions(("fp32", "int8"), threads=1)
    engine = build(Model.of(_recipe(tmp_path, task=strict)), Store(tmp_path / "store"), options).engine()
    assert engine.precision == "fp32"
    reasons = [c.rejected for c in engine.candidates if c.precision == "int8"]
    assert reasons
    assert all(reason and "int8" in reason for reason in reasons)


def test_sensitive_layers_are_put_back_until_the_metric_holds(tmp_path: Path) -> None:
    """A judge that wants at least one layer in fp32."""
    import onnx

    def evaluate(path: Path) -> float:
        return 1.0 if len(quantized_layers(onnx.load(str(path)))) < 2 else 0.5

    found = precision.quantised_variant(
        _graph(),
        _calibration(),
        tmp_path / "int8.onnx",
        transformer=False,
        evaluate=evaluate,
        reference=1.0,
        most_drop=0.01,
        progress=lambda _what, _share: None,
    )
    assert len(found.restored) == 1
    assert found.failed == ""
    assert set(found.tried) == {"mean-minmax", "minmax", "percentile-99.99", "mse"}
    assert len(quantized_layers(onnx.load(str(found.path)))) == 1


def test_int8_without_real_data_and_unknown_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--calibrate"):
        build(Model.of(_recipe(tmp_path, calibration=None)), Store(tmp_path / "s"), BuildOptions(("int8",)))
    with pytest.raises(CalibrationError, match="--labelled"):
        build(Model.of(_recipe(tmp_path, task=None)), Store(tmp_path / "s"), BuildOptions(("bf16",)))


def test_made_up_examples_serve_made_up_weights_alone(tmp_path: Path) -> None:
    changes = {"calibration": lambda: _calibration(random=True), "task": None, "seeded": True}
    options = BuildOptions(("fp32", "int8"), threads=1)
    bundle = build(Model.of(_recipe(tmp_path, **changes)), Store(tmp_path / "store"), options)
    assert bundle.manifest.seeded
    assert bundle.engine().gate is None
    assert {candidate.precision for candidate in bundle.engine().candidates} - {MIXED} == {"fp32", "int8"}
    with pytest.raises(CalibrationError, match="random"):
        build(
            Model.of(_recipe(tmp_path, **{**changes, "seeded": False, "task": _task})), Store(tmp_path / "s"), options
        )


def test_a_graph_that_the_recipe_wrote_itself_needs_no_calibration(tmp_path: Path) -> None:
    def own() -> Any:
        return quantize(_graph(), _calibration(), MINMAX, transformer=False)

    recipe = _recipe(tmp_path, calibration=None, written={"int8": own})
    bundle = build(Model.of(recipe), Store(tmp_path / "store"), BuildOptions(("fp32", "int8"), most_drop=0.05))
    made = bundle.engine().quantisation
    assert made is not None
    assert (made.method, made.source) == ("the recipe's own", "the weights alone")
