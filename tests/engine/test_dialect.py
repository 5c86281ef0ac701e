"""Graphs in the words of opset 17 compute what they computed before."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.core.errors import EngineError
from aula.engine.dialect import OPSET, for_tensorrt, specialise
from tests.engine.small_graphs import DOUBLE, FLOAT, INT64, model_of, node, operators, run, value

FP16 = 10


def _rewritten(model: Any) -> Any:
    """The graph in opset 17, after it was checked strictly."""
    before = model.SerializeToString()
    result = for_tensorrt(model)
    assert model.SerializeToString() == before, "the graph that was given is not changed"
    assert [entry.version for entry in result.opset_import if entry.domain == ""] == [OPSET]
    assert result.ir_version <= 8
    onnx.checker.check_model(result, full_check=True)
    for side in ("input", "output"):
        mine, theirs = getattr(result.graph, side), getattr(model.graph, side)
        assert [(v.name, v.type.tensor_type.elem_type) for v in mine] == [
            (v.name, v.type.tensor_type.elem_type) for v in theirs
        ]
    return result


def _same(model: Any, inputs: dict[str, NDArray[Any]], tolerance: float = 0.0) -> Any:
    result = _rewritten(model)
    got, wanted = run(result, inputs), run(model, inputs)
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance)
    return result


def _floats(*shape: int) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(1).normal(0, 3, shape).astype(np.float32)}


def _unary(operator: str, constants: Any = None, more: str = "", opset: int = 20, **attributes: Any) -> Any:
    made = node(operator, f"x {more}".strip(), "y", name="it", **attributes)
    return model_of([made], [value("x", FLOAT, "n", 4, 6)], [value("y", FLOAT)], constants, opset=opset)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("kind", [FLOAT, FP16])
def test_gelu_becomes_the_operators_that_define_it(approximate: str, kind: int) -> None:
    made = node("Gelu", "x", "y", approximate=approximate, name="gelu")
    model = model_of([made], [value("x", kind, "n", 64)], [value("y", kind, "n", 64)])
    x = np.linspace(-9, 9, 640).reshape(10, 64).astype(np.float32 if kind == FLOAT else np.float16)
    result = _same(model, {"x": x}, 1e-6 if kind == FLOAT else 1e-2)
    assert "Gelu" not in operators(result)
    assert ("Tanh" if approximate == "tanh" else "Erf") in operators(result)
    assert all(made.name.startswith("gelu/") for made in result.graph.node)


def test_gelus_without_names_do_not_mix() -> None:
    nodes = [node("Gelu", "x", "a", name="first"), node("Gelu", "a", "b"), node("Gelu", "b", "y")]
    _same(model_of(nodes, [value("x", FLOAT, 2, 3)], [value("y", FLOAT, 2, 3)]), _floats(2, 3), 1e-6)


@given(size=st.integers(2, 30), count=st.integers(2, 5), axis=st.sampled_from([1, -1, -2]))
def test_split_into_a_number_of_parts(size: int, count: int, axis: int) -> None:
    """The last part is the smallest; sizes that leave it nothing are not tried, since runtimes differ there."""
    if -(-size // count) * (count - 1) >= size:
        return
    parts = [f"y{place}" for place in range(count)]
    shape = (2, size, 3) if axis in (1, -2) else (2, 3, size)
    made = node("Split", "x", " ".join(parts), axis=axis, num_outputs=count)
    model = model_of([made], [value("x", FLOAT, *shape)], [value(part, FLOAT) for part in parts])
    result = _same(model, _floats(*shape))
    assert len(result.graph.node[0].input) == (1 if size % count == 0 else 2)


def test_split_by_sizes_stays() -> None:
    made = node("Split", "x sizes", "y z", axis=1)
    outputs = [value("y", FLOAT, 2, 1), value("z", FLOAT, 2, 4)]
    model = model_of([made], [value("x", FLOAT, 2, 5)], outputs, {"sizes": np.array([1, 4])})
    _same(model, _floats(2, 5))


REDUCTIONS = ["Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare", "Sum"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [[1], [-1, 0], [], None])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_take_their_axes_as_they_did(name: str, axes: list[int] | None, keep: int) -> None:
    constants = None if axes is None else {"axes": np.array(axes, dtype=np.int64)}
    model = _unary(f"Reduce{name}", constants, "" if axes is None else "axes", keepdims=keep)
    inputs = {"x": np.abs(_floats(3, 4, 6)["x"]) + 0.5}
    result = _same(model, inputs, 1e-6)
    assert len(result.graph.node[0].input) == (2 if name == "Sum" and axes is not None else 1)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("more", ["", "axes"])
def test_a_reduction_of_nothing_hands_on(more: str, keep: int) -> None:
    constants = {"axes": np.array([], dtype=np.int64)}
    model = _unary("ReduceMax", constants if more else None, more, noop_with_empty_axes=1, keepdims=keep)
    assert operators(_same(model, _floats(3, 4, 6))) == ["Identity"]


def test_axes_from_a_constant_node_are_constant_and_computed_ones_are_refused() -> None:
    inner = onnx.numpy_helper.from_array(np.array([1]), "value")
    nodes = [node("Constant", "", "axes", value=inner), node("ReduceMean", "x axes", "y", name="mean")]
    inputs, outputs = [value("x", FLOAT, 2, 3)], [value("y", FLOAT)]
    _same(model_of(nodes, inputs, outputs), _floats(2, 3), 1e-6)
    given = model_of(nodes[1:], [*inputs, value("axes", INT64, 1)], outputs)
    with pytest.raises(EngineError, match=r"ReduceMean 'mean' computes its axes.*constant axes"):
        for_tensorrt(given)


def test_what_later_sets_say_by_habit_is_left_out() -> None:
    nodes = [
        node("Cast", "x", "d", to=DOUBLE, saturate=1),
        node("Cast", "d", "f", to=FLOAT, saturate=1),
        node("Reshape", "f shape", "r", allowzero=0),
        node("QuantizeLinear", "r scale zero", "q", block_size=0, saturate=1, output_dtype=3),
        node("DequantizeLinear", "q scale zero", "p", block_size=0),
        node("AveragePool", "p", "y", kernel_shape=[2, 2], dilations=[1, 1]),
    ]
    constants = {"shape": np.array([1, 1, 4, 6]), "scale": np.float32(0.05), "zero": np.int8(0)}
    model = model_of(nodes, [value("x", FLOAT, 4, 6)], [value("y", FLOAT, 1, 1, 3, 5)], constants, opset=21)
    assert operators(_same(model, _floats(4, 6), 1e-6)) == operators(model)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (node("Mish", "x", "y", name="m"), r"Mish \('m'\) came after opset 17.*export the model with opset 17"),
        (node("GroupNormalization", "x s s", "y", num_groups=2, name="g"), r"GroupNormalization \('g'\) came"),
        (node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[2, 2], name="a"), r"\('a'\) learnt dilations"),
        (node("Resize", "x - r", "y", antialias=1, mode="linear", name="r"), r"Resize \('r'\) learnt antialias"),
        (node("Pad", "x p - a", "y", name="p"), r"Pad \('p'\) learnt 4 inputs"),
        (node("GridSample", "x g", "y", mode="linear", name="s"), r"GridSample \('s'\) says mode linear"),
    ],
)
def test_what_is_newer_than_opset_17_is_refused_by_name(made: Any, said: str) -> None:
    constants = {
        "s": np.ones(4, np.float32),
        "r": np.array([1, 1, 2, 2], np.float32),
        "p": np.array([1, 1]),
        "a": np.array([3]),
        "g": np.zeros((1, 3, 3, 2), np.float32),
    }
    used = {name: array for name, array in constants.items() if name in made.input}
    model = model_of([made], [value("x", FLOAT, 1, 4, 6, 6)], [value("y", FLOAT)], used)
    with pytest.raises(EngineError, match=said):
        for_tensorrt(model)


def test_a_newer_operator_inside_a_body_is_refused_too() -> None:
    body = onnx.helper.make_graph([node("Mish", "x", "b", name="inside")], "body", [], [value("b", FLOAT, 2)])
    made = node("If", "c", "y", then_branch=body, else_branch=body)
    model = model_of([made], [value("x", FLOAT, 2), value("c", 9)], [value("y", FLOAT, 2)])
    with pytest.raises(EngineError, match=r"Mish \('inside'\)"):
        for_tensorrt(model)


def test_an_older_graph_stays_as_old_as_it_is() -> None:
    model = model_of([node("Neg", "x", "y")], [value("x", FLOAT, 2)], [value("y", FLOAT, 2)], opset=13)
    assert for_tensorrt(model).opset_import[0].version == 13


# Sizes.


def _sized() -> Any:
    """y = x, reshaped to two heads by a computed shape."""
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s zero two", "lead"),
        node("Concat", "lead heads", "target", axis=0),
        node("Reshape", "x target", "y"),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "heads": np.array([2, 3])}
    shape = ("batch", "length")
    return model_of(nodes, [value("x", FLOAT, *shape, 6)], [value("y", FLOAT, *shape, 2, 3)], constants)


def _shape(of: Any) -> list[Any]:
    return [axis.dim_value or axis.dim_param for axis in of.type.tensor_type.shape.dim]


def test_sizes_that_are_fixed_leave_no_arithmetic_of_shapes() -> None:
    model = _sized()
    fixed = specialise(model, {"batch": 2, "length": 5, "another": 9})
    assert operators(fixed) == ["Reshape"]
    assert (_shape(fixed.graph.input[0]), _shape(fixed.graph.output[0])) == ([2, 5, 6], [2, 5, 2, 3])
    inputs = _floats(2, 5, 6)
    np.testing.assert_array_equal(run(fixed, inputs)["y"], run(model, inputs)["y"])
    assert _shape(model.graph.input[0]) == ["batch", "length", 6]


def test_sizes_that_are_not_named_stay_free() -> None:
    model = _sized()
    partly = specialise(model, {"batch": 2})
    assert _shape(partly.graph.input[0]) == [2, "length", 6]
    assert _shape(partly.graph.output[0])[0] == 2
    for length in (1, 7):
        inputs = _floats(2, length, 6)
        np.testing.assert_array_equal(run(partly, inputs)["y"], run(model, inputs)["y"])
    assert operators(specialise(model, {})) == operators(model)


def test_a_split_of_a_free_axis_is_settled_once_it_is_fixed() -> None:
    made = node("Split", "x", "y z", axis=0, num_outputs=2)
    model = model_of([made], [value("x", FLOAT, "n", 2)], [value("y", FLOAT), value("z", FLOAT)])
    result = _same(specialise(model, {"n": 5}), _floats(5, 2))
    assert len(result.graph.node[0].input) == 2


# Networks that keep the graph's types.


@pytest.mark.parametrize("opset", [17, 19, 20])
def test_a_typed_network_is_written_in_opset_19_or_newer(opset: int) -> None:
    model = _unary("Relu", opset=opset)
    made = for_tensorrt(model, typed=True)
    assert [entry.version for entry in made.opset_import if entry.domain == ""] == [max(opset, 19)]
    onnx.checker.check_model(made, full_check=True)
    given = _floats(2, 4, 6)
    np.testing.assert_array_equal(run(made, given)["y"], run(model, given)["y"])


def test_a_typed_network_keeps_the_words_of_its_set() -> None:
    assert operators(for_tensorrt(_unary("Gelu"), typed=True)) == ["Gelu"]


def test_what_no_tensorrt_knows_yet_is_refused() -> None:
    model = _unary("Relu")
    model.opset_import[0].version = 23
    with pytest.raises(EngineError, match=r"opset 23, and TensorRT 10\.12 knows 22"):
        for_tensorrt(model, typed=True)
