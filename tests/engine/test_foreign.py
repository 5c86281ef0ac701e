"""What is known of a foreign graph before any backend sees it."""

from typing import Any

import numpy as np
import pytest

from aula.core.errors import BackendError, EngineError
from aula.core.types import TensorSpec
from aula.engine.foreign import (
    check_operators,
    drop_default_inputs,
    free_dimensions,
    input_specs,
    name_free_dimensions,
    output_specs,
    table_sizes,
)
from tests.engine.small_graphs import FLOAT, INT64, model_of, node, value


def _chain(*nodes: Any, **options: Any) -> Any:
    return model_of(nodes, [value("x", FLOAT, "n", 4)], [value("y", FLOAT, "n", 4)], **options)


def test_known_operators_pass_and_runtimes_own_are_told() -> None:
    assert check_operators(_chain(node("Relu", "x", "y"))) == []
    (only,) = check_operators(_chain(node("FastGelu", "x", "y", name="layer.3", domain="com.microsoft")))
    assert only == "layer.3 (FastGelu, domain com.microsoft, operator set 1)"
    scaler = node("Scaler", "x", "y", domain="ai.onnx.ml")
    assert len(check_operators(_chain(scaler, domains={"ai.onnx.ml": 3}))) == 1


@pytest.mark.parametrize(
    ("made", "options", "named"),
    [
        (node("FancyNorm", "x", "y", name="block.1"), {}, r"block\.1 \(FancyNorm, domain ai\.onnx, operator set 20\)"),
        (node("Gelu", "x", "y"), {"opset": 17}, r"the node that computes y \(Gelu, domain ai\.onnx, operator set 17\)"),
        (node("Upsample", "x", "y"), {"opset": 12}, "Upsample"),
        (node("Roi", "x", "y", domain="my.company"), {}, "domain my.company, operator set 0"),
        (node("Nothing", "x", "y", domain="ai.onnx.ml"), {"domains": {"ai.onnx.ml": 3}}, "Nothing"),
    ],
)
def test_unknown_operators_are_named_with_node_domain_and_set(made: Any, options: Any, named: str) -> None:
    with pytest.raises(BackendError, match=named):
        check_operators(_chain(made, **options))


def test_unknown_operators_are_found_in_bodies_and_long_lists_are_cut() -> None:
    import onnx

    odd = [node("Odd", "x", f"v{place}", name=f"odd.{place}", domain="odd") for place in range(11)]
    body = onnx.helper.make_graph(odd, "body", [], [value("v0", FLOAT, "n", 4)])
    other = onnx.helper.make_graph([], "other", [], [])
    with pytest.raises(BackendError, match=r"odd\.7 .* and 3 more"):
        check_operators(_chain(node("If", "c", "y", then_branch=body, else_branch=other)))


def test_functions_of_the_model_itself_are_known() -> None:
    import onnx

    model = _chain(node("Twice", "x", "y", domain="mine"))
    sets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], sets))
    assert check_operators(model) == []


def test_weights_listed_as_inputs_become_constants() -> None:
    model = _chain(node("Add", "x w", "y"), constants={"w": np.ones(4, np.float32)})
    model.graph.input.append(value("w", FLOAT, 4))
    model.ir_version = 3
    dropped = drop_default_inputs(model)
    assert [spec.name for spec in input_specs(dropped)] == ["x"]
    assert dropped.ir_version == 4


def test_free_dimensions_get_names_that_a_profile_can_bear() -> None:
    model = model_of(
        [node("Identity", "x", "y")],
        [value("x", FLOAT, "s0 + 1", None, "time", 4), value("ids", INT64, "s0 + 1", -1), value("1", FLOAT, "2x", 0)],
        [value("y", FLOAT, "s0 + 1", None, "time", 4)],
    )
    specs = input_specs(name_free_dimensions(model))
    assert specs[0] == TensorSpec("x", "float32", ("s0_1", "x_1", "time", 4))
    assert specs[1].shape == ("s0_1", "ids_1")
    assert specs[2].shape == ("size_2x", "size_1_1")
    assert free_dimensions(specs) == ["s0_1", "x_1", "time", "ids_1", "size_2x", "size_1_1"]
    assert output_specs(model)[0].shape[0] == "s0_1"


def test_a_name_that_is_taken_is_not_given_again() -> None:
    model = model_of([node("Identity", "x", "y")], [value("x", FLOAT, None, "x_0")], [value("y", FLOAT)])
    assert input_specs(name_free_dimensions(model))[0].shape == ("x_0_1", "x_0")


def test_inputs_that_are_no_arrays_are_refused() -> None:
    import onnx

    model = _chain(node("Relu", "x", "y"))
    model.graph.input.append(onnx.helper.make_tensor_sequence_value_info("list", FLOAT, None))
    with pytest.raises(EngineError, match="list is no tensor"):
        name_free_dimensions(model)
    model.graph.input[1].CopyFrom(value("text", onnx.TensorProto.STRING, 1))
    with pytest.raises(EngineError, match="text is of"):
        input_specs(model)
    model.graph.input[1].CopyFrom(value("shapeless", FLOAT))
    with pytest.raises(EngineError, match="shapeless"):
        name_free_dimensions(model)


def test_tables_tell_how_large_an_index_may_be() -> None:
    model = model_of(
        [
            node("Cast", "ids", "whole", to=INT64),
            node("Gather", "words whole", "a"),
            node("Gather", "few whole", "b"),
            node("Gather", "x other", "c"),
        ],
        [value("ids", INT64, "n"), value("other", INT64, "n"), value("x", FLOAT, 3)],
        [value("a", FLOAT), value("b", FLOAT), value("c", FLOAT)],
        {"words": np.zeros((50, 4), np.float32), "few": np.zeros((9, 4), np.float32)},
    )
    assert table_sizes(model) == {"ids": 9}
