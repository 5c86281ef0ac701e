"""Which int8 layers go back into fp16 together: few builds, and no more given up than need be."""

from typing import Any

import numpy as np
import onnx
import pytest

from aula.engine.restoring import PATIENCE, Restoring, layer_kinds

NONE = "Could not find any implementation for node {}.)"
BLOCKS = 6


def _network() -> onnx.ModelProto:
    """Blocks of a mobile network, quantised: expand, depthwise, a gate, project, and the sum with what came in."""
    arrays: dict[str, Any] = {
        "scale": np.asarray(0.05, np.float32),
        "zero": np.asarray(0, np.int8),
        "wide": np.zeros((8, 4, 1, 1), np.float32),
        "deep": np.zeros((8, 1, 3, 3), np.float32),
        "narrow": np.zeros((4, 8, 1, 1), np.float32),
        "gate": np.zeros((1, 8, 1, 1), np.float32),
    }
    nodes: list[onnx.NodeProto] = []

    def paired(name: str) -> str:
        nodes.append(onnx.helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}/q{len(nodes)}"]))
        back = onnx.helper.make_node("DequantizeLinear", [nodes[-1].output[0], "scale", "zero"], [f"{len(nodes)}/dq"])
        nodes.append(back)
        return str(back.output[0])

    def layer(kind: str, name: str, *inputs: str, **said: Any) -> str:
        given = [paired(one) for one in inputs]
        nodes.append(onnx.helper.make_node(kind, given, [f"{name}/out"], name=name, **said))
        return f"{name}/out"

    x = "x"
    for block in range(BLOCKS):
        inner = layer("Conv", f"b{block}.expand", x, "wide", kernel_shape=[1, 1])
        nodes.append(onnx.helper.make_node("Sigmoid", [inner], [f"{inner}/bent"]))
        inner = layer("Conv", f"b{block}.depthwise", f"{inner}/bent", "deep", kernel_shape=[3, 3], group=8)
        inner = layer("Mul", f"b{block}.excite/Mul", inner, "gate")
        inner = layer("Conv", f"b{block}.project", inner, "narrow", kernel_shape=[1, 1])
        x = layer("Add", f"b{block}.sum", inner, x)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [info("x", 1, [1, 4, 8, 8])],
        [info(x, 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return onnx.helper.make_model(graph)


def _all(part: str) -> tuple[str, ...]:
    return tuple(f"b{block}.{part}" for block in range(BLOCKS))


def test_kinds_are_told_by_what_a_kernel_is_made_for() -> None:
    kinds = layer_kinds(_network())
    assert kinds["b0.depthwise"] == "depthwise Conv"
    assert kinds["b0.excite/Mul"] == "Mul"
    assert kinds["b0.sum"] == "Add"
    assert kinds["b0.expand"] != kinds["b0.project"], "one is fused with an activation"
    assert len(set(kinds.values())) == 5


@pytest.mark.parametrize("part", ["depthwise", "excite/Mul", "sum"])
def test_what_is_no_dense_product_goes_back_as_a_kind_at_once(part: str) -> None:
    back = Restoring(_network()).after(NONE.format(f"b2.{part} + PWN(PWN(b2.bend), b2.mul)"), ())
    assert back == _all(part)


def test_dense_products_go_back_one_by_one_and_in_the_end_together() -> None:
    restoring = Restoring(_network())
    back: tuple[str, ...] = ()
    for block in range(PATIENCE - 1):
        named = restoring.after(NONE.format(f"b{block}.expand"), back)
        assert named == (f"b{block}.expand",)
        back += named
    assert restoring.after(NONE.format(f"b{PATIENCE}.expand"), back) == _all("expand")[PATIENCE - 1 :]
    assert restoring.after(NONE.format("b1.project"), _all("expand")) == ("b1.project",), "of another kind"


def test_a_network_of_which_little_can_be_int8_ends_within_a_few_builds() -> None:
    """As TensorRT does it: the first layer in the graph's order that has no kernel ends the build."""
    network = _network()
    missing = {*_all("expand"), *_all("depthwise"), *_all("excite/Mul"), *_all("sum")}
    restoring, builds = Restoring(network), 1
    back: tuple[str, ...] = ()
    while left := [name for name in layer_kinds(network) if name in missing and name not in back]:
        back += restoring.after(NONE.format(left[0]), back)
        builds += 1
    assert builds == 1 + PATIENCE + 3
    assert [name for name in layer_kinds(network) if name not in back] == list(_all("project"))


def test_a_complaint_that_names_nothing_quantised_puts_nothing_back() -> None:
    restoring = Restoring(_network())
    assert restoring.after(NONE.format("stem"), ()) == ()
    assert restoring.after(NONE.format("b1.sum"), _all("sum")) == ()
    assert restoring.after("b1.project_clone_0", ()) == ("b1.project",), "TensorRT gives names endings of its own"
