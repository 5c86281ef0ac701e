"""Tiny ONNX graphs for the backends' tests."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def saved(path: Path, *nodes: onnx.NodeProto, shape: tuple[int | str, ...], domain: str = "") -> Path:
    """A graph from x to y, both float32 of `shape`, in a file."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(list(nodes), "tiny", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def doubling(path: Path, *shape: int | str) -> Path:
    """y = x + x"""
    return saved(path, helper.make_node("Add", ["x", "x"], ["y"], name="sum"), shape=shape)


def dense(path: Path) -> Path:
    """y = x W for x [batch, 64]: a matrix product that counts in `precisions`, and weights to cut off."""
    shapes = {"x": ("batch", 64), "y": ("batch", 64)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    weights = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "weights"], ["y"], name="product")
    constants = [onnx.numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph([node], "dense", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def counting(path: Path) -> Path:
    """total_next = total + x, y = x + total, where the state's size is free."""
    names = {"x": ("n",), "total": ("n",), "y": ("n",), "total_next": ("n",)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names.items()]
    nodes = [helper.make_node("Add", ["x", "total"], [name], name=name) for name in ("y", "total_next")]
    graph = helper.make_graph(nodes, "counting", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def passing(path: Path) -> Path:
    """Outputs that no operator computes: the input itself, a constant, and one tensor under two names."""
    names: dict[str, tuple[int, ...]] = {"x": (3,), "same": (3,), "constant": (3,), "first": (3,), "second": (3,)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names.items()]
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["ones"], ["constant"]),
        helper.make_node("Neg", ["x"], ["first"]),
        helper.make_node("Identity", ["first"], ["second"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.ones(3, dtype=np.float32), "ones")]
    graph = helper.make_graph(nodes, "passing", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path
