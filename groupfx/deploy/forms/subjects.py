"""What a target is asked about in an ONNX graph: convolutions, and operations on channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ...targets import Subject, numbers_of
from ...targets.facts import Layout, OperationTopic, Scales
from ..graph.conv_nodes import CONVS, WHOLE, ConvNode, LeftNode, Shapes, constant_of, conv_nodes
from ..graph.node_names import site_name
from ..quantised.convs import quantised_conv
from .static_shapes import static_shapes


def subjects_of(model: ir.Model) -> tuple[Subject, ...]:
    """All that is judged of a model, in the order of its graph."""
    shapes = static_shapes(model)
    convs, left = conv_nodes(model, shapes, (*CONVS, *WHOLE))
    return (
        *map(_conv, convs),
        *map(_left, left),
        *_operations(model, shapes),
    )


def _conv(conv: ConvNode) -> Subject:
    layout, scales = _stored(conv)
    numbers = numbers_of(conv.spec)
    return Subject(
        conv.name,
        conv.branch_of or conv.name,
        conv.spec.describe(),
        numbers=numbers,
        layout=layout,
        scales=scales,
    )


def _left(node: LeftNode) -> Subject:
    groups = "groups unknown" if node.groups is None else f"groups {node.groups}"
    return Subject(node.name, node.name, f"{node.kind}, {groups}", unread=node.reason)


def _stored(conv: ConvNode) -> tuple[Layout, Scales | None]:
    """How the weight of a convolution is stored, and how it is scaled."""
    found = quantised_conv(conv)
    if found is None:
        return "float", None
    weight = found.weight
    return found.layout, "tensor" if weight.axis is None else "block" if weight.block else "channel"


def _operations(model: ir.Model, shapes: Shapes) -> Iterator[Subject]:
    for node in model.graph:
        read = _read(node, model.ir_version, shapes)
        if read is None:
            continue
        topic, rank, parts = read
        name = site_name(node)
        yield Subject(name, name, node.op_type, operation=topic, rank=rank, parts=parts)


def _read(node: ir.Node, ir_version: int, shapes: Shapes) -> tuple[OperationTopic, int, int] | None:
    """What a node does to channels, on how many dimensions, and how many values it joins."""
    given = _shape(node.inputs[0] if node.inputs else None, shapes)
    made = _shape(node.outputs[0] if node.outputs else None, shapes)
    if node.domain or len(given) < 3:
        return None
    axis = node.attributes.get_int("axis", 0) % len(given)
    kind = node.op_type
    if kind == "Reshape" and len(made) > len(given):
        return "reshape", len(made), 0
    if kind == "Gather" and axis == 1:
        return "gather", len(given), 0
    if kind == "Split" and axis == 1:
        return "slice", len(given), 0
    if kind == "Slice" and _slices_channels(node, ir_version, len(given)):
        return "slice", len(given), 0
    return ("concat", len(given), len(node.inputs)) if kind == "Concat" and axis == 1 else None


def _slices_channels(node: ir.Node, ir_version: int, rank: int) -> bool:
    axes = constant_of(node.inputs[3], ir_version) if len(node.inputs) > 3 else None
    return axes is not None and any(int(axis) % rank == 1 for axis in axes.numpy().reshape(-1))


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    return () if value is None else shapes.get(value.name or "", ())
