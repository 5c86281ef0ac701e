"""The builder's view of a graph: what it holds, what it costs, and whether its states can go round."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from aula.backends.session import StatePair
from aula.core.errors import EngineError
from aula.engine.graph import bind_weights, check_states, prune, report
from tests.engine.small_graphs import BOOL, FLOAT, INT64, model_of, node, scalar, value


def _product(rows: Any = "rows") -> Any:
    import spox
    import spox.opset.ai.onnx.v20 as op

    x = spox.argument(spox.Tensor(np.float32, (rows, 16)))
    weight = spox.argument(spox.Tensor(np.float32, (16, 4)))
    bound = {"weight": np.ones((16, 4), dtype=np.float32)}
    return bind_weights(spox.build({"x": x, "weight": weight}, {"y": op.relu(op.matmul(x, weight))}), bound)


def test_weights_become_initialisers() -> None:
    graph = _product().graph
    assert [value.name for value in graph.input] == ["x"]
    assert [tensor.name for tensor in graph.initializer] == ["weight"]


def test_a_report_counts_what_there_is_and_what_a_run_costs() -> None:
    held = report(_product())
    assert (held.operators, held.parameters, held.weight_bytes) == ({"MatMul": 1, "Relu": 1, "Identity": 1}, 64, 256)
    assert held.flops is None
    assert str(held) == "3 operators (1 MatMul, 1 Relu, 1 Identity), 0.0 M parameters, 0.0 MB"
    costs = report(_product(), {"rows": 8})
    assert costs.flops == 2 * 8 * 16 * 4
    assert costs.read_bytes == 256
    assert costs.activation_bytes == 4 * (8 * 16 + 8 * 4 + 8 * 4 + 8 * 4)
    assert costs.uncounted == ()
    assert "at rows 8: 0.00 GFLOP" in str(costs)
    assert json.loads(json.dumps(dataclasses.asdict(costs)))["sizes"] == {"rows": 8}
    assert report(_product(3), {}).flops == 2 * 3 * 16 * 4


def test_a_report_wants_a_size_for_every_free_dimension() -> None:
    with pytest.raises(EngineError, match="input x has the free dimension rows"):
        report(_product(), {"batch": 8})


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "flops"),
    [
        ("Conv", [(1, 6, 10, 10), (8, 3, 3, 3)], {"group": 2, "pads": [1, 1, 1, 1]}, 2 * 8 * 100 * 27),
        ("ConvTranspose", [(1, 6, 5, 5), (6, 4, 3, 3)], {}, 2 * 6 * 25 * 4 * 9),
        ("Gemm", [(7, 5), (7, 3)], {"transA": 1}, 2 * 5 * 3 * 7),
        ("Einsum", [(2, 3, 4), (2, 4, 5)], {"equation": "bij,bjk->bik"}, 2 * 2 * 3 * 4 * 5),
        ("Add", [(7, 5), (7, 5)], {}, 0),
    ],
)
def test_arithmetic_of_products(operator: str, shapes: list[Any], attributes: Any, flops: int) -> None:
    weight = np.zeros(shapes[1], dtype=np.float32)
    model = model_of(
        [node(operator, "x w", "y", **attributes)], [value("x", FLOAT, *shapes[0])], [value("y", FLOAT)], {"w": weight}
    )
    assert report(model, {}).flops == flops


def test_dequantised_weights_count_as_stored_and_tables_by_their_rows() -> None:
    model = model_of(
        [
            node("Gather", "table ids", "row"),
            node("DequantizeLinear", "weight scale", "w"),
            node("MatMul", "row w", "y"),
        ],
        [value("ids", INT64, "n")],
        [value("y", FLOAT, "n", 5)],
        {
            "table": np.zeros((1000, 16), dtype=np.float32),
            "weight": np.zeros((16, 5), dtype=np.int8),
            "scale": np.float32(1),
        },
    )
    costs = report(model, {"n": 3})
    assert costs.flops == 2 * 3 * 16 * 5
    assert costs.read_bytes == 3 * 16 * 4 + 16 * 5 + 4


def test_shapes_that_the_graph_computes_are_known_at_given_sizes() -> None:
    model = model_of(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "rows"),
            node("Concat", "rows rest", "target", axis=0),
            node("Reshape", "x target", "flat"),
            node("MatMul", "flat w", "y"),
        ],
        [value("x", FLOAT, "n", 2, 8)],
        [value("y", FLOAT, "n", 3)],
        {"zero": np.array([0]), "rest": np.array([16]), "w": np.zeros((16, 3), dtype=np.float32)},
    )
    costs = report(model, {"n": 4})
    assert costs.flops == 2 * 4 * 16 * 3
    assert costs.uncounted == ()


def test_other_domains_and_loops_are_told_as_not_counted() -> None:
    model = model_of([node("Gelu", "x", "y", domain="com.microsoft")], [value("x", FLOAT, 2)], [value("y", FLOAT, 2)])
    costs = report(model, {})
    assert len(costs.uncounted) == 1
    assert str(costs).endswith("1 nodes not counted")


def test_what_no_output_needs_goes_and_what_a_nested_body_needs_stays() -> None:
    import onnx

    inner = onnx.helper.make_graph([node("Add", "x deep", "a")], "inner", [], [value("a", FLOAT, 2)])
    outer = onnx.helper.make_graph(
        [node("If", "c", "b", then_branch=inner, else_branch=inner)], "outer", [], [value("b", FLOAT, 2)]
    )
    model = model_of(
        [node("If", "c", "y", then_branch=outer, else_branch=outer), node("Neg", "x", "dead")],
        [value("x", FLOAT, 2), scalar("c", BOOL)],
        [value("y", FLOAT, 2)],
        {"deep": np.ones(2, dtype=np.float32), "unused": np.ones(2, dtype=np.float32)},
    )
    graph = prune(model).graph
    assert [n.op_type for n in graph.node] == ["If"]
    assert [tensor.name for tensor in graph.initializer] == ["deep"]


def _cell(out: Any = FLOAT, *shape: Any) -> Any:
    return model_of(
        [node("Add", "x h", "sum"), node("Cast", "sum", "next", to=out)],
        [value("x", FLOAT, 1, "n"), value("h", FLOAT, 1, "n")],
        [value("next", out, *(shape or (1, "n")))],
    )


def test_states_that_go_round_are_accepted() -> None:
    check_states(_cell(), [StatePair("h", "next")])
    check_states(_cell(), [])


@pytest.mark.parametrize(
    ("model", "pairs", "fault"),
    [
        (_cell, [StatePair("g", "next")], "names the input 'g'"),
        (_cell, [StatePair("h", "last")], "names the output 'last'"),
        (_cell, [StatePair("h", "next"), StatePair("x", "next")], "2 state pairs name the output 'next'"),
        (lambda: _cell(INT64), [StatePair("h", "next")], r"float\[1, n\] but next, which becomes it, is int64\[1, n\]"),
        (lambda: _cell(FLOAT, 1, "m"), [StatePair("h", "next")], r"is float\[1, m\]"),
    ],
)
def test_states_that_cannot_go_round_are_named(model: Any, pairs: list[StatePair], fault: str) -> None:
    with pytest.raises(EngineError, match=fault):
        check_states(model(), pairs)
