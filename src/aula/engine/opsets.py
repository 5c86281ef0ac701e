"""Operator sets: raising a graph to a newer one where that merely adds types."""

from typing import TYPE_CHECKING, Any

from aula.engine.walk import opset, subgraphs

if TYPE_CHECKING:
    import onnx

RAISED = 22
"""The first operator set whose convolutions know BF16."""

_LEAST_RAISED = 13


def raise_opset(model: "onnx.ModelProto", type_name: str) -> None:
    """To RAISED, if some operator knows the low type only there and none of the graph's changed its meaning."""
    import onnx

    version = opset(model)
    if not _LEAST_RAISED <= version < RAISED:
        return
    gains = False
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            old, new = (onnx.defs.get_schema(node.op_type, number, "") for number in (version, RAISED))
        except onnx.defs.SchemaError:
            return
        if old.since_version == new.since_version:
            continue
        if not _only_extended(node, old, new) or any(True for _ in subgraphs(node)):
            return
        gains = gains or (_knows(new, type_name) and not _knows(old, type_name))
    for entry in model.opset_import:
        if gains and entry.domain in ("", "ai.onnx"):
            entry.version = RAISED


def _knows(schema: Any, type_name: str) -> bool:
    return any(type_name in constraint.allowed_type_strs for constraint in schema.type_constraints)


def _only_extended(node: "onnx.NodeProto", old: Any, new: Any) -> bool:
    """Whether a node means the same under a newer schema: no attribute or input was lost or has another default."""
    if node.op_type == "GroupNormalization" or (node.op_type == "Split" and len(node.input) < 2):
        return False  # these changed behind the same signature, in 21 and in 18
    inputs = [parameter.name for parameter in old.inputs]
    attributes = {name: attribute.default_value for name, attribute in old.attributes.items()}
    return inputs == [parameter.name for parameter in new.inputs][: len(inputs)] and all(
        name in new.attributes and new.attributes[name].default_value == default for name, default in attributes.items()
    )
