"""INT8 around zero holds every range it replaces, and weights keep their bytes."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aula.engine.signed import signed_activations, weights_behind_pairs
from tests.engine.small_graphs import FLOAT, model_of, node, operators, run, value

INT8 = 3


def _pair(scale: Any, point: Any, *, bare: bool = False, opset: int = 17) -> Any:
    """x through one pair."""
    more = "" if bare else " point"
    nodes = [node("QuantizeLinear", f"x scale{more}", "q"), node("DequantizeLinear", f"q scale{more}", "y")]
    constants = {"scale": np.float32(scale), **({} if bare else {"point": point})}
    return model_of(nodes, [value("x", FLOAT, "n")], [value("y", FLOAT, "n")], constants, opset)


def _checked(change: Any, model: Any) -> Any:
    before = model.SerializeToString()
    result = change(model)
    assert model.SerializeToString() == before, "the graph that was given is not changed"
    onnx.checker.check_model(result, full_check=True)
    return result


def _constants(model: Any) -> dict[str, NDArray[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _through(model: Any, *values: float) -> NDArray[Any]:
    return run(model, {"x": np.array(values, dtype=np.float32)})["y"]


points = st.one_of(
    st.integers(0, 255).map(lambda number: np.uint8(number)), st.integers(-128, 127).map(lambda number: np.int8(number))
)


@given(scale=st.floats(2.0**-13, 10, width=32), point=points, place=st.floats(0, 1))
def test_the_new_range_holds_the_old_and_rounds_no_coarser_than_it_must(scale: float, point: Any, place: float) -> None:
    model = _pair(scale, point)
    ends = np.iinfo(point.dtype)
    least, greatest = (scale * (end - int(point)) for end in (ends.min, ends.max))
    signed = _checked(signed_activations, model)
    kept = _constants(signed)
    (wide,) = (array for array in kept.values() if array.dtype == np.float32)
    (zero,) = (array for array in kept.values() if array.dtype == np.int8)
    assert not zero.any()
    assert wide <= 2.02 * np.float32(scale)
    inside = least + place * (greatest - least)
    errors = np.abs(_through(signed, least, greatest, inside) - [least, greatest, inside])
    assert (errors <= 0.51 * wide).all()
    beyond = _through(signed, 1e3 * min(least, -scale), 1e3 * max(greatest, scale))
    assert beyond[0] >= -2.02 * max(-least, greatest) - wide
    assert beyond[1] <= 1.01 * max(-least, greatest) + wide, "and it is no wider than it must be"


def test_a_pair_that_is_signed_already_stays() -> None:
    model = _pair(0.1, np.int8(0))
    assert signed_activations(model).SerializeToString() == model.SerializeToString()


def test_a_pair_without_a_zero_point_was_unsigned() -> None:
    model = _pair(0.1, None, bare=True)
    signed = _checked(signed_activations, model)
    assert len(signed.graph.node[0].input) == len(signed.graph.node[1].input) == 3
    for each in (model, signed):
        np.testing.assert_allclose(_through(each, 25.5), 25.5, rtol=1e-6)
    said = _pair(0.1, None, bare=True, opset=21)
    said.graph.node[0].attribute.append(onnx.helper.make_attribute("output_dtype", INT8))
    assert signed_activations(said).SerializeToString() == said.SerializeToString(), "int8 by its own words"


def test_pairs_of_computed_scales_stay() -> None:
    model = _pair(0.1, np.uint8(7))
    model.graph.initializer.pop(0)
    model.graph.input.append(onnx.helper.make_tensor_value_info("scale", FLOAT, []))
    assert signed_activations(model).SerializeToString() == model.SerializeToString()


def test_an_operator_between_the_two_of_a_pair_reads_signed_bytes() -> None:
    nodes = [
        node("QuantizeLinear", "x scale point", "q"),
        node("Transpose", "q", "t", perm=[1, 0]),
        node("DequantizeLinear", "t scale point", "y"),
    ]
    constants = {"scale": np.float32(0.1), "point": np.uint8(3)}
    model = model_of(nodes, [value("x", FLOAT, 2, 3)], [value("y", FLOAT, 3, 2)], constants, opset=21)
    x = {"x": np.linspace(0, 20, 6, dtype=np.float32).reshape(2, 3)}
    signed = _checked(signed_activations, model)
    np.testing.assert_allclose(run(signed, x)["y"], x["x"].T, atol=0.15)


# Weights.


def _layer(weight: NDArray[Any], scale: NDArray[Any], point: NDArray[Any], axis: int = 1, opset: int = 17) -> Any:
    """x → uint8 pair → product with an int8 weight whose constants the pair shares where it can."""
    nodes = [
        node("QuantizeLinear", "x s p", "q"),
        node("DequantizeLinear", "q s p", "d"),
        node("DequantizeLinear", "w ws wp", "f", axis=axis),
        node("MatMul", "d f", "y"),
    ]
    constants = {"s": np.float32(0.05), "p": np.uint8(40), "w": weight, "ws": scale, "wp": point}
    rows, columns = weight.shape
    return model_of(nodes, [value("x", FLOAT, "n", rows)], [value("y", FLOAT, "n", columns)], constants, opset)


def _per_channel(axis: int = 1) -> Any:
    generator = np.random.default_rng(4)
    size = (4, 3)[axis]
    return _layer(
        generator.integers(-128, 127, (4, 3), dtype=np.int8),
        generator.uniform(0.001, 0.1, size).astype(np.float32),
        np.zeros(size, dtype=np.int8),
        axis,
    )


def test_weights_of_a_scale_each_stay_as_they_are() -> None:
    model = _per_channel()
    signed = _checked(signed_activations, model)
    before, after = _constants(model), _constants(signed)
    for name in ("w", "ws", "wp"):
        np.testing.assert_array_equal(after[name], before[name])
    x = np.random.default_rng(5).uniform(-2, 10, (50, 4)).astype(np.float32)
    got, wanted = run(signed, {"x": x})["y"], run(model, {"x": x})["y"]
    reach = np.abs(before["w"] * before["ws"]).sum(axis=0)
    assert (np.abs(got - wanted) <= reach * (0.05 / 2 + 0.05 * 215 / 127 / 2) + 1e-4).all(), "half a step of each"


def test_weights_behind_a_pair_of_their_own_stay_too() -> None:
    nodes = [
        node("QuantizeLinear", "w s p", "q"),
        node("DequantizeLinear", "q s p", "f"),
        node("Add", "x f", "y"),
    ]
    weight = np.linspace(-1, 5, 6, dtype=np.float32)
    constants = {"w": weight, "s": np.float32(0.03), "p": np.uint8(40)}
    model = model_of(nodes, [value("x", FLOAT, 6)], [value("y", FLOAT, 6)], constants)
    assert signed_activations(model).SerializeToString() == model.SerializeToString()


@given(data=st.data(), scale=st.floats(2.0**-14, 100, width=16), point=st.integers(-5, 5), half=st.booleans())
def test_weights_behind_pairs_keep_every_byte(data: st.DataObject, scale: float, point: int, half: bool) -> None:
    numbers = data.draw(st.lists(st.integers(-128, 127), min_size=1, max_size=40))
    kind = np.float16 if half else np.float32
    stored = {"w": np.array(numbers, dtype=np.int8), "s": np.array(scale, dtype=kind), "p": np.int8(point)}
    made = node("DequantizeLinear", "w s p", "y")
    model = model_of([made], [], [value("y", 10 if half else FLOAT, len(numbers))], stored, opset=19)
    behind = _checked(weights_behind_pairs, model)
    assert operators(behind) == ["QuantizeLinear", "DequantizeLinear"]
    behind.graph.output.append(onnx.helper.make_tensor_value_info("w/rounded", INT8, [len(numbers)]))
    got = run(behind, {})
    np.testing.assert_array_equal(got["w/rounded"], stored["w"])
    np.testing.assert_array_equal(got["y"], run(model, {})["y"])


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_of_a_scale_each_keep_every_byte(axis: int) -> None:
    model = _per_channel(axis)
    behind = _checked(weights_behind_pairs, model)
    assert _constants(behind)["w/float"].dtype == np.float32
    assert "w" not in _constants(behind)
    behind.graph.output.append(onnx.helper.make_tensor_value_info("w/rounded", INT8, [4, 3]))
    x = np.random.default_rng(5).uniform(-2, 10, (50, 4)).astype(np.float32)
    got = run(behind, {"x": x})
    np.testing.assert_array_equal(got["w/rounded"], _constants(model)["w"])
    np.testing.assert_array_equal(got["y"], run(model, {"x": x})["y"])


def test_a_weight_of_two_layers_is_stored_once_and_a_bare_one_stays_signed() -> None:
    nodes = [
        node("DequantizeLinear", "w s", "f"),
        node("DequantizeLinear", "w s", "g"),
        node("Add", "f g", "h"),
        node("Add", "x h", "y"),
    ]
    constants = {"w": np.array([-128, -1, 0, 127], dtype=np.int8), "s": np.float32(0.5)}
    model = model_of(nodes, [value("x", FLOAT, 4)], [value("y", FLOAT, 4)], constants)
    behind = _checked(weights_behind_pairs, model)
    assert operators(behind).count("QuantizeLinear") == 1
    x = {"x": np.zeros(4, np.float32)}
    np.testing.assert_array_equal(run(behind, x)["y"], run(model, x)["y"])


def test_activations_and_weights_in_blocks_are_left_alone() -> None:
    blocks = node("DequantizeLinear", "w s p", "f", axis=0, block_size=2)
    constants = {"w": np.ones((4, 3), np.int8), "s": np.ones((2, 3), np.float32), "p": np.zeros((2, 3), np.int8)}
    nodes = [blocks, node("MatMul", "x f", "y")]
    model = model_of(nodes, [value("x", FLOAT, 1, 4)], [value("y", FLOAT, 1, 3)], constants, opset=21)
    for untouched in (model, _pair(0.1, np.int8(0))):
        assert weights_behind_pairs(untouched).SerializeToString() == untouched.SerializeToString()
