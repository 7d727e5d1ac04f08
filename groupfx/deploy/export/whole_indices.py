"""Indices in the type that ONNX wants them in.

A tensor of torch's is indexed by int32 as by int64, and its exporter hands such an index on as it
is; ONNX defines GatherND and ScatterND for int64 alone, and its checker refuses the file.
"""

from __future__ import annotations

import onnx_ir as ir

_INDICES = {"GatherND": 1, "ScatterND": 1}
"""Which input of an operator holds them."""

_MOVING = frozenset(
    {"Concat", "Expand", "Gather", "GatherND", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
"""Operators that give the type of their first input."""


def widen_indices(model: ir.Model) -> None:
    """Put a Cast in front of each index of `model` that is no int64."""
    for node in [*model.graph.all_nodes()]:
        if node.domain or node.op_type not in _INDICES:
            continue
        place = _INDICES[node.op_type]
        indices = node.inputs[place]
        if indices is None or _type_of(indices) == ir.DataType.INT64:
            continue
        cast = ir.node("Cast", [indices], {"to": ir.DataType.INT64})
        cast.outputs[0].dtype = ir.DataType.INT64
        cast.outputs[0].shape = indices.shape
        assert node.graph is not None
        node.graph.insert_before(node, cast)
        node.replace_input_with(place, cast.outputs[0])


def _type_of(value: ir.Value) -> ir.DataType | None:
    """The type of a value, which what the exporter inlines does not write; None where unknown."""
    node = value.producer()
    if value.dtype is not None or node is None or node.domain:
        return value.dtype
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().dtype
    if node.op_type not in _MOVING or node.inputs[0] is None:
        return None
    return _type_of(node.inputs[0])
