from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aula.backends.session import SessionOptions, open_session
from aula.engine.unsigned import unsigned_activations


def _graph() -> Any:
    """x → Q/DQ → MatMul with an int8 weight, whose DequantizeLinear shares its zero point with the activations."""
    generator = np.random.default_rng(3)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.int8(-7),
        "weight": generator.integers(-128, 127, (4, 3), dtype=np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info("q", TensorProto.INT8, ["n", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_same_numbers_are_computed_and_weights_stay_signed(backend: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).uniform(-4, 4, (50, 4)).astype(np.float32)
    results = []
    for name, graph in (("signed", _graph()), ("unsigned", unsigned_activations(_graph()))):
        onnx.checker.check_model(graph, full_check=True)
        path = tmp_path / f"{name}.onnx"
        onnx.save(graph, str(path))
        with open_session(backend, path, SessionOptions(threads=1)) as session:
            results.append(session.run({"x": x})["y"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-4)
    types = {tensor.name: tensor.data_type for tensor in unsigned_activations(_graph()).graph.initializer}
    assert types == {
        "scale": TensorProto.FLOAT,
        "zero": TensorProto.INT8,
        "weight": TensorProto.INT8,
        "zero/unsigned": TensorProto.UINT8,
    }
