"""Write a graph in an older opset, by what the operators' schemas say.

The exporter writes opset 18 and newer. A node may stand in an older opset as it is where the older
schema has all of its inputs and attributes; where axes moved from an attribute to an input, they
are moved back. What changed its meaning on the way is refused, and so is what did not exist.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from ...errors import UsageError
from .initializers import constant

# The oldest opset that the exporter writes.
FIRST_WRITTEN = 18
# Opset 13 made these work on one axis; before, they worked on all axes from there on.
_OTHER_MEANING = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "Resize": 13}
_AXES_MOVED = {
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
            "ReduceMin", "ReduceProd", "ReduceSumSquare",
        ),
        18,
    ),
    "ReduceSum": 13,
    "Squeeze": 13,
    "Unsqueeze": 13,
}  # fmt: skip
SPLIT_SIZES_MOVED = 13
"""Before, the sizes of a Split were an attribute."""
_SHAPE_SLICED = 15
_ZERO_SIZES = 14
_OLDEST_IR = 4


def lower_opset(model: ir.Model, opset: int) -> None:
    """Turn `model` into one of an older `opset`, in place.

    Raises UsageError, with the operator and the oldest opset that does, where that is not possible.
    """
    for node in list(model.graph):
        if node.domain in ("", "ai.onnx"):
            _lower(model.graph, node, opset)
    model.graph.opset_imports[""] = opset
    least = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.ir_version = max(least, _OLDEST_IR)
    _drop_unused(model.graph)


def _lower(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    if opset < _AXES_MOVED.get(node.op_type, 0):
        _input_to_attribute(node, 1, "axes")
    if node.op_type == "Split" and opset < SPLIT_SIZES_MOVED:
        _input_to_attribute(node, 1, "split")
    if node.op_type == "Shape" and opset < _SHAPE_SLICED:
        _whole_shape(graph, node)
    if node.op_type == "Reshape" and opset < _ZERO_SIZES:
        _without_zero_sizes(node)
    _drop_defaults(node, opset)
    why = _misfit(node, opset)
    if why is not None:
        later = range(opset + 1, FIRST_WRITTEN + 1)
        oldest = next((v for v in later if _misfit(node, v) is None), FIRST_WRITTEN)
        raise UsageError(
            f"the model cannot be written in opset {opset}: {node.op_type} ({node.name}) {why}; "
            f"take opset {oldest} or newer"
        )


def _misfit(node: ir.Node, opset: int) -> str | None:
    """Why `node` cannot stand in `opset` as it is, None if it can."""
    if opset < _OTHER_MEANING.get(node.op_type, 0):
        return "means something else there"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return "does not exist there"
    unknown = [name for name in node.attributes if name not in schema.attributes]
    if unknown:
        return f"has no attribute {unknown[0]} there"
    if len([value for value in node.inputs if value is not None]) > schema.max_input:
        return f"takes at most {schema.max_input} inputs there"
    return None


def _drop_defaults(node: ir.Node, opset: int) -> None:
    """Remove attributes that are not there in `opset`, and say what their absence says."""
    try:
        older = onnx.defs.get_schema(node.op_type, opset, "").attributes
    except onnx.defs.SchemaError:
        return
    newer = onnx.defs.get_schema(node.op_type, FIRST_WRITTEN, "").attributes
    for name in [name for name in node.attributes if name not in older and name in newer]:
        default = newer[name].default_value
        if default.name and node.attributes[name].value == onnx.helper.get_attribute_value(default):
            node.attributes.pop(name)


def _input_to_attribute(node: ir.Node, position: int, name: str) -> None:
    """Move constant numbers from an input into an attribute; computed ones stay, and misfit."""
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.const_value is None:
        return
    numbers = [int(number) for number in value.const_value.numpy().reshape(-1)]
    node.attributes[name] = ir.AttrInt64s(name, numbers)
    node.resize_inputs(position)


def _without_zero_sizes(node: ir.Node) -> None:
    """`allowzero` says what a size of 0 means: nothing where none is written down.

    A computed size is 0 for a batch of 0 alone, which an older Reshape takes from the input: 0 too.
    """
    wanted = node.inputs[1]
    tensor = None if wanted is None else wanted.const_value
    if tensor is None or 0 not in tensor.numpy():
        node.attributes.pop("allowzero", None)


def _whole_shape(graph: ir.Graph, node: ir.Node) -> None:
    """A part of a shape as a slice of the whole one."""
    start = node.attributes.pop("start", None)
    end = node.attributes.pop("end", None)
    if start is None and end is None:
        return
    first = 0 if start is None else start.as_int()
    last = np.iinfo(np.int64).max if end is None else end.as_int()
    bounds = [
        constant(graph, f"{node.name}.{name}", np.array([bound], np.int64))
        for name, bound in (("start", first), ("end", last))
    ]
    result = node.outputs[0]
    users = list(result.uses())
    cut = ir.node("Slice", [result, *bounds], name=f"{node.name}.part")
    cut.metadata_props.update(node.metadata_props)
    cut.outputs[0].name = f"{result.name}.part"
    graph.insert_after(node, cut)
    for user in users:
        user.node.replace_input_with(user.idx, cut.outputs[0])


def _drop_unused(graph: ir.Graph) -> None:
    held = list(graph.initializers.items())
    for name, value in held:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
