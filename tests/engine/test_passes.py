"""Passes keep what a graph computes: every simplified graph is run beside the one it came from."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.core.errors import EngineError
from aula.engine.passes import fold_constants, simplify
from aula.engine.walk import copied, infer_shapes, without_weights
from tests.engine.small_graphs import BOOL, FLOAT, INT64, model_of, node, operators, run, scalar, value

X = np.arange(12, dtype=np.float32).reshape(2, 6)


def _same(model: Any, inputs: dict[str, Any]) -> Any:
    """The simplified graph, after its results were compared."""
    import onnx

    before = model.SerializeToString()
    simple = simplify(model)
    assert model.SerializeToString() == before, "the graph that was given is not changed"
    onnx.checker.check_model(simple, full_check=True)
    assert [v.name for v in simple.graph.input] == [v.name for v in model.graph.input]
    assert [v.name for v in simple.graph.output] == [v.name for v in model.graph.output]
    for name, wanted in run(model, inputs).items():
        np.testing.assert_allclose(run(simple, inputs)[name], wanted, rtol=1e-6, err_msg=name)
    return simple


def test_shape_arithmetic_is_folded_as_far_as_shapes_are_known() -> None:
    model = model_of(
        [
            node("Shape", "table", "shape"),
            node("Gather", "shape one", "width"),
            node("Concat", "minus width", "target", axis=0),
            node("Reshape", "x target", "rows"),
            node("Transpose", "table", "turned", perm=[1, 0]),
            node("MatMul", "rows turned", "y"),
        ],
        [value("x", FLOAT, "n", 6)],
        [value("y", FLOAT, "m", 5)],
        {"table": np.ones((5, 3), dtype=np.float32), "one": np.array([1]), "minus": np.array([-1])},
    )
    assert operators(_same(model, {"x": X})) == ["Reshape", "MatMul"]


def test_a_large_constant_is_never_made_from_a_small_one() -> None:
    model = model_of(
        [node("Expand", "one size", "large"), node("ReduceSum", "large", "sum", keepdims=0), node("Add", "x sum", "y")],
        [value("x", FLOAT, 2)],
        [value("y", FLOAT, 2)],
        {"one": np.ones(1, dtype=np.float32), "size": np.array([300_000])},
    )
    assert operators(fold_constants(model)) == ["Expand", "ReduceSum", "Add"]


def test_a_hostile_size_is_not_computed() -> None:
    model = model_of(
        [node("ConstantOfShape", "size", "huge"), node("Size", "huge", "y")],
        [],
        [value("y", INT64)],
        {"size": np.array([2**40, 2**20])},
    )
    assert operators(simplify(model)) == ["ConstantOfShape", "Size"]


def test_large_weights_stay_where_they_are_and_noise_is_not_frozen() -> None:
    weight = np.ones((600, 600), dtype=np.float32)
    model = model_of(
        [
            node("Transpose", "w", "turned"),
            node("RandomNormal", "-", "noise", shape=[2, 600], dtype=1),
            node("Add", "x noise", "noisy"),
            node("MatMul", "noisy turned", "y"),
        ],
        [value("x", FLOAT, 2, 600)],
        [value("y", FLOAT, 2, 600)],
        {"w": weight},
    )
    model.graph.node[1].ClearField("input")
    assert sorted(operators(fold_constants(model))) == ["Add", "MatMul", "RandomNormal", "Transpose"]


def test_nodes_that_do_nothing_go_and_outputs_keep_their_names() -> None:
    model = model_of(
        [
            node("Identity", "x", "a"),
            node("Dropout", "a ratio", "b mask"),
            node("Cast", "b", "c", to=FLOAT),
            node("Neg", "c", "d"),
            node("Identity", "d", "y"),
            node("Identity", "d", "z"),
            node("Identity", "x", "w"),
        ],
        [value("x", FLOAT, "n", 6)],
        [value(name, FLOAT, "n", 6) for name in "yzw"],
        {"ratio": np.float32(0.5)},
    )
    assert operators(_same(model, {"x": X})) == ["Neg", "Identity", "Identity"]


def test_a_long_chain_of_nothing_is_gone_at_once() -> None:
    count = 3000
    nodes = [node("Identity", f"v{place}", f"v{place + 1}") for place in range(count)]
    nodes += [node("Neg", f"v{count}", "y"), node("Identity", "y", "z")]
    model = model_of(nodes, [value("v0", FLOAT, "n", 6)], [value("y", FLOAT, "n", 6), value("z", FLOAT, "n", 6)])
    simple = _same(model, {"v0": X})
    assert operators(simple) == ["Neg", "Identity"]
    assert simple.graph.node[0].input[0] == "v0"


def test_dropout_that_trains_stays() -> None:
    model = model_of(
        [node("Dropout", "x ratio training", "y")],
        [value("x", FLOAT, 2), scalar("training", BOOL)],
        [value("y", FLOAT, 2)],
        {"ratio": np.float32(0.5)},
    )
    assert operators(simplify(model)) == ["Dropout"]


def test_equal_constants_are_stored_once() -> None:
    table = np.arange(6, dtype=np.float32)
    model = model_of(
        [
            node("Constant", "", "c", value_floats=table.tolist()),
            node("Add", "x a", "s"),
            node("Add", "s b", "t"),
            node("Add", "t c", "u"),
            node("Add", "u d", "y"),
        ],
        [value("x", FLOAT, "n", 6)],
        [value("y", FLOAT, "n", 6)],
        {"a": table, "b": table.copy(), "d": table.reshape(1, 6)},
    )
    simple = _same(model, {"x": X})
    assert [tensor.name for tensor in simple.graph.initializer] == ["a", "d"]


def test_optional_outputs_that_nobody_reads_go() -> None:
    ones = np.ones(6, dtype=np.float32)
    model = model_of(
        [node("LayerNormalization", "x one one", "y mean deviation")],
        [value("x", FLOAT, "n", 6)],
        [value("y", FLOAT, "n", 6)],
        {"one": ones},
    )
    assert list(_same(model, {"x": X}).graph.node[0].output) == ["y"]


def test_bodies_keep_what_they_take_from_outside() -> None:
    import onnx

    def branch(constant: str) -> Any:
        nodes = [node("Mul", f"same {constant}", f"out_{constant}")]
        return onnx.helper.make_graph(nodes, constant, [], [value(f"out_{constant}", FLOAT, "n", 6)])

    model = model_of(
        [node("Identity", "x", "same"), node("If", "c", "y", then_branch=branch("p"), else_branch=branch("q"))],
        [value("x", FLOAT, "n", 6), scalar("c", BOOL)],
        [value("y", FLOAT, "n", 6)],
        {"p": np.float32(2), "q": np.float32(2)},
    )
    for chosen in (True, False):
        simple = _same(model, {"x": X, "c": np.array(chosen)})
    assert operators(simple) == ["If"]
    assert len(simple.graph.initializer) == 1


_STEPS = st.lists(
    st.sampled_from(
        ["Identity", "Neg", "Abs", "Dropout", "Cast", "Add a", "Add b", "Mul a", "Unsqueeze", "Sub folded"]
    ),
    max_size=12,
)


@given(_STEPS)
def test_any_chain_computes_the_same_when_simplified(steps: list[str]) -> None:
    nodes = [node("Add", "a b", "half"), node("Mul", "half b", "folded")]
    last = "x"
    for place, step in enumerate(steps):
        operator, _, other = step.partition(" ")
        made = f"v{place}"
        attributes = {"to": FLOAT} if operator == "Cast" else {}
        if operator == "Unsqueeze":
            nodes += [node("Unsqueeze", f"{last} zero", f"{made}u"), node("Squeeze", f"{made}u zero", made)]
        else:
            nodes.append(node(operator, f"{last} {other}", made, **attributes))
        last = made
    nodes.append(node("Identity", last, "y"))
    constants = {"a": np.full(6, 3, np.float32), "b": np.full(6, 3, np.float32), "zero": np.array([0])}
    model = model_of(nodes, [value("x", FLOAT, "n", 6)], [value("y", FLOAT, "n", 6)], constants)
    simple = _same(model, {"x": X})
    assert not {"Dropout", "Cast"} & set(operators(simple))


def test_shapes_are_inferred_without_looking_at_the_weights() -> None:
    weight = np.ones((6, 40_000), dtype=np.float32)
    model = model_of(
        [node("MatMul", "x w", "h"), node("Relu", "h", "y")],
        [value("x", FLOAT, "n", 6)],
        [value("y", FLOAT)],
        {"w": weight},
    )
    light = without_weights(model)
    assert len(light.SerializeToString()) < 1000
    inferred = infer_shapes(copied(model), strict=True)
    (hidden,) = inferred.graph.value_info
    assert [size.dim_param or size.dim_value for size in hidden.type.tensor_type.shape.dim] == ["n", 40_000]
    assert inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 40_000
    assert inferred.graph.initializer[0].raw_data == weight.tobytes()


def test_contradictions_are_told() -> None:
    model = model_of(
        [node("MatMul", "x w", "y")],
        [value("x", FLOAT, 2, 6)],
        [value("y", FLOAT)],
        {"w": np.ones((5, 5), dtype=np.float32)},
    )
    with pytest.raises(EngineError, match="contradict"):
        infer_shapes(model, strict=True)
    mixed = model_of([node("Add", "x k", "y")], [value("x", FLOAT, 2)], [value("y", FLOAT, 2)], {"k": np.array([1, 2])})
    with pytest.raises(EngineError, match="contradict"):
        simplify(mixed)
