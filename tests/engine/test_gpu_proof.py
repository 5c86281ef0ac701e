"""What a plan on a device is compared with: which inputs, which rows, in which types, and what counts as wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aula.backends.session import Session, SessionOptions, StatePair, Tensors
from aula.backends.tensorrt_runtime import layer_precisions
from aula.core.errors import VerificationError
from aula.core.types import TensorSpec
from aula.engine.gpu_proof import cases, engine_error, engine_errors, inspection, run_case, usual_inputs
from aula.engine.gpu_trial import GpuProver, GpuTrial
from aula.engine.manifest import Inspection
from aula.engine.recipe import Arrays, Profile, Recipe, Size
from tests.engine.small_graphs import FLOAT, model_of, node, value
from tests.engine.toy import toy_recipe


class Answering(Session):
    """Answers what the test says, and notes what it was given."""

    keeps_states = True

    def __init__(self, answers: Mapping[str, Any], dtype: str = "float32", states: tuple[StatePair, ...] = ()) -> None:
        self.answers, self.given = answers, dict[str, NDArray[Any]]()
        self.states = {"memory": np.zeros(2, np.float16)}
        inputs = [TensorSpec("x", dtype, ("rows", 3)), *[TensorSpec(pair.input, "float16", (2,)) for pair in states]]
        outputs = [TensorSpec(pair.output, "float16", (2,)) for pair in states]
        super().__init__(inputs, outputs, SessionOptions(states=states))

    def read_state(self, name: str) -> NDArray[Any]:
        return self.states[name]

    def write_state(self, name: str, array: NDArray[Any]) -> None:
        self.states[name] = array

    def device_milliseconds(self, repetitions: int) -> list[float]:
        return [3.0, 1.0, 2.0]

    def layers(self) -> list[dict[str, Any]]:
        return []

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        self.given = dict(tensors)
        return {name: np.asarray(answer) for name, answer in self.answers.items()}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return toy_recipe(tmp_path)


def _error(recipe: Recipe, answers: Mapping[str, Any]) -> float:
    proven = cases(recipe, Profile("two", {"rows": Size(2, 2, 2)}), recipe.write_graph())
    return engine_error(Answering(answers), proven, recipe)


def test_each_corner_is_computed_once(recipe: Recipe) -> None:
    graph = recipe.write_graph()
    made = cases(recipe, Profile("some", {"rows": Size(1, 2, 4)}), graph)
    assert [len(case.inputs["x"]) for case in made] == [1, 2, 4]
    assert [len(case.inputs["x"]) for case in cases(recipe, Profile("one", {"rows": Size(3, 3, 3)}), graph)] == [3]
    again = cases(recipe, Profile("some", {"rows": Size(1, 2, 4)}), graph)
    assert all((a.inputs["x"] == b.inputs["x"]).all() for a, b in zip(made, again, strict=True)), "seeded"


def test_of_many_rows_the_first_few_are_computed_along_the_axis_that_has_them(tmp_path: Path) -> None:
    graph = model_of(
        [node("Transpose", "x", "y", perm=[1, 0]), node("ReduceSum", "x", "whole")],
        [value("x", FLOAT, "rows", 3)],
        [value("y", FLOAT, 3, "rows"), value("whole", FLOAT, 1, 1)],
    )
    seen: list[tuple[int, ...]] = []

    def reference(inputs: Arrays) -> Arrays:
        seen.append(inputs["x"].shape)
        return {"y": inputs["x"].T.astype(np.float64), "whole": np.ones((1, 1))}

    recipe = toy_recipe(tmp_path, rows="rows", reference=reference, write_graph=lambda: graph)
    proven = cases(recipe, Profile("many", {"rows": Size(64, 64, 64)}), graph)
    assert seen == [(4, 3)]
    (case,) = proven
    assert len(case.inputs["x"]) == 64, "the engine computes all of them"
    right = {"y": case.inputs["x"].T.copy(), "whole": np.ones((1, 1))}
    assert engine_error(Answering(right), proven, recipe) == 0.0
    right["y"][:, 3] += 1
    assert engine_error(Answering(right), proven, recipe) > 0.1
    right["y"] = case.inputs["x"].T.copy()
    right["y"][:, 4] += 1  # a row that the reference has not computed
    assert engine_error(Answering(right), proven, recipe) == 0.0


def test_the_error_is_relative_to_the_largest_value(recipe: Recipe) -> None:
    (case,) = cases(recipe, Profile("two", {"rows": Size(2, 2, 2)}), recipe.write_graph())
    right = case.wanted["y"]
    largest = float(np.abs(right).max())
    wrong = right.copy()
    wrong[0, 0] += largest / 4
    assert _error(recipe, {"y": wrong}) == pytest.approx(0.25)
    assert _error(recipe, {"y": right}) == 0.0


@pytest.mark.parametrize("rows", [4, 64, 320])
def test_the_same_arithmetic_errs_as_much_however_many_rows_there_are(tmp_path: Path, rows: int) -> None:
    """Each row errs by its own: the greatest of 320 is greater than the greatest of 4, and not what is told."""
    recipe = toy_recipe(tmp_path, rows="rows")
    proven = cases(recipe, Profile("many", {"rows": Size(rows, rows, rows)}), recipe.write_graph())
    exact = recipe.reference(proven[0].inputs)["y"]
    scale = float(np.abs(exact[:4]).max())
    errs = np.arange(rows)[:, None] * 1e-3 * scale
    assert engine_error(Answering({"y": exact + errs}), proven, recipe) == pytest.approx(3e-3)


def test_what_is_a_difference_of_larger_numbers_is_held_to_their_size(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    seen: list[Arrays] = []

    def scales(inputs: Arrays) -> dict[str, float]:
        seen.append(inputs)
        return {"y": 100.0}

    scaled = toy_recipe(tmp_path, scales=scales, least_scales={"y": 10.0})
    profile = Profile("two", {"rows": Size(2, 2, 2)})
    proven = cases(scaled, profile, scaled.write_graph())
    off = proven[0].wanted["y"] + 0.5
    assert engine_errors(Answering({"y": off}), proven, scaled) == {"y": pytest.approx(0.005)}
    assert engine_error(Answering({"y": off}), cases(recipe, profile, recipe.write_graph()), recipe) > 0.01
    assert [one["x"].shape for one in seen] == [(2, 3)], "once for each case"


def test_a_refusal_names_the_output_that_errs_most(tmp_path: Path) -> None:
    profile = Profile("two", {"rows": Size(2, 2, 2)})
    recipe = toy_recipe(tmp_path, profiles=(profile,))
    prover = GpuProver(recipe, judged=False)
    prover.prepare(lambda _share: None)
    trial = GpuTrial("fp16")
    (case,) = cases(recipe, profile, recipe.write_graph())
    wanted = case.wanted["y"]
    prover.prove(trial, profile, Answering({"y": wanted * 1.5}))
    assert prover.fault(trial) == "relative error 5.0e-01 (y at two) is over the tolerance 2e-02"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(recipe: Recipe, tmp_path: Path, bad: float) -> None:
    (case,) = cases(recipe, Profile("two", {"rows": Size(2, 2, 2)}), recipe.write_graph())
    wrong = case.wanted["y"].copy()
    wrong[1, 1] = bad
    assert _error(recipe, {"y": wrong}) == np.inf
    spoilt = toy_recipe(tmp_path, wrong=bad)  # a reference that knows nothing proves nothing
    assert _error(spoilt, {"y": np.zeros((2, 2))}) == np.inf


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "the reference gives y, the engine nothing"),
        ({"y": np.zeros((2, 2)), "z": 0}, "the engine y, z"),
        ({"y": np.zeros((2, 3))}, r"output y is \[2, 3\], the reference's is \[2, 2\]"),
    ],
)
def test_other_outputs_than_the_reference_s_are_refused(recipe: Recipe, answers: dict[str, Any], said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        _error(recipe, answers)


def test_an_output_that_the_recipe_leaves_out_is_left_out(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, unproven=("z",))
    (case,) = cases(recipe, Profile("two", {"rows": Size(2, 2, 2)}), recipe.write_graph())
    assert _error(recipe, {"y": case.wanted["y"], "z": np.nan}) == 0.0


def test_inputs_come_in_the_types_that_the_engine_takes(recipe: Recipe) -> None:
    x = np.ones((2, 3), np.float32)
    session = Answering({"y": np.zeros((2, 2))}, "float16")
    run_case(session, {"x": x}, recipe)
    assert session.given["x"].dtype == np.float16
    assert usual_inputs(session, recipe, recipe.profiles[0])["x"].dtype == np.float16


def test_states_are_written_before_and_read_after(tmp_path: Path) -> None:
    pair = StatePair("memory", "memory.next")
    recipe = toy_recipe(tmp_path, states=(pair,))
    session = Answering({"y": np.zeros((2, 2))}, states=(pair,))
    inputs = {"x": np.ones((2, 3), np.float32), "memory": np.array([1, 2], np.float32)}
    produced = run_case(session, inputs, recipe)
    assert session.states["memory"].dtype == np.float16
    assert produced.keys() == {"y", "memory.next"}
    np.testing.assert_array_equal(produced["memory.next"], [1, 2])
    assert session.given.keys() == {"x"}


def test_fused_layers_are_told_by_their_names() -> None:
    layers = [
        {"Name": "a", "LayerType": "Gemm", "Inputs": [{"Format/Datatype": "FP16"}]},
        {"Name": "a + b", "LayerType": "Gemm", "Inputs": [{"Format/Datatype": "FP16"}]},
        {"Name": "{ForeignNode[a...z]}", "LayerType": "Myelin", "Inputs": [{"Format/Datatype": "FP32"}]},
        {"Name": "PWN(c)", "LayerType": "PointWise", "Inputs": [{"Format/Datatype": "Int8"}]},
        {},
    ]
    told = inspection(layers, layer_precisions(layers), 12)
    assert (told.operators, told.layers, told.fused) == (12, 5, 3)
    assert told.precisions.get("fp16") == 2


def _trial(precision: str, error: float, layers: Mapping[str, int] | None = None) -> GpuTrial:
    trial = GpuTrial(precision, error=error)
    if layers is not None:
        trial.inspection = {"usual": Inspection(layers, 3, 2, 1)}
    return trial


@pytest.mark.parametrize(
    ("trial", "fault"),
    [
        (_trial("fp16", 0.01), None),
        (_trial("fp16", 0.03), "relative error 3.0e-02 is over the tolerance 2e-02"),
        (_trial("bf16", 0.03), "relative error 3.0e-02 is over the tolerance 2e-02"),
        (_trial("fp32", 0.01), "relative error 1.0e-02 is over the tolerance 1e-04"),
        (_trial("fp16", float("inf")), "the outputs are not finite"),
        (_trial("int8", float("inf")), "the outputs are not finite"),
        (_trial("int8", 0.5), "no metric was measured"),
        (_trial("fp16", 0.01, {"fp32": 3}), "no layer truly runs in fp16"),
        (_trial("fp16", 0.01, {"fp32": 3, "fp16": 1}), None),
        (_trial("fp16", 0.01, {}), None),
    ],
)
def test_numbers_alone_may_speak_against_it(recipe: Recipe, trial: GpuTrial, fault: str | None) -> None:
    assert GpuProver(recipe, judged=False).fault(trial) == fault


def test_int8_is_held_to_a_metric_unless_the_weights_are_made_up(tmp_path: Path) -> None:
    trial = _trial("int8", 0.5)
    assert GpuProver(toy_recipe(tmp_path), judged=True).fault(trial) is None
    assert GpuProver(toy_recipe(tmp_path, seeded=True), judged=False).fault(trial) is None


def test_every_profile_counts(recipe: Recipe) -> None:
    """The worst error of all, the median time of each."""
    prover = GpuProver(recipe, judged=False)
    prover.prepare(lambda _share: None)
    trial = GpuTrial("fp16", error=0.7)
    generator = np.random.default_rng(20)
    right = [recipe.reference(recipe.example({"rows": rows}, generator))["y"] for rows in (1, 2, 4)]
    answers = iter([*right, *[right[1]] * 10])

    class InTurn(Answering):
        def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
            return {"y": next(answers)}

    prover.prove(trial, recipe.profiles[0], InTurn({}))
    assert trial.error == 0.7
    assert trial.milliseconds == {"usual": 2.0}
    assert trial.candidate("10.12.0").relative_error == 0.7
    trial.error = float("inf")
    assert trial.candidate("10.12.0").relative_error is None, "no manifest holds infinity"
