"""One Reshape in place of two, and a Transpose in place of one between two.

    reshape(reshape(x, a), b)      becomes      reshape(x, b)

Attention of heads puts batch and heads together, swaps the two last axes, and takes them apart:

    reshape(transpose(reshape(x, (bh, n, d)), (0, 2, 1)), (b, h, d, n))    becomes
    transpose(x, (0, 1, 3, 2))

ONNX Runtime does both where it knows the batch (1.31.1), and the product behind takes the Transpose
along; with an open batch the keys of every head were copied.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from .constant_sizes import reshape_to, sizes_of

_JOINED_AXES = 3


def join_reshapes(model: ir.Model) -> None:
    """Join each Reshape of `model` with what is in front of it; drop what nothing reads then."""
    joined = [
        node
        for node in model.graph
        if _is(node, "Reshape") and (_swaps(node) or _joins(model, node))
    ]
    if joined:
        common.RemoveUnusedNodesPass()(model)


def _joins(model: ir.Model, node: ir.Node) -> bool:
    inner = _maker(node, "Reshape")
    if inner is None:
        return False
    before, after = sizes_of(inner.inputs[0]), sizes_of(node.outputs[0])
    if before is None or after is None or not reshape_to(model, node, before, after):
        return False
    node.replace_input_with(0, inner.inputs[0])
    return True


def _swaps(node: ir.Node) -> bool:
    """Make it a Transpose of the two last axes, where it is that."""
    moved = _maker(node, "Transpose")
    inner = None if moved is None else _maker(moved, "Reshape")
    if moved is None or inner is None:
        return False
    sides = (inner.inputs[0], inner.outputs[0], node.outputs[0])
    before, between, after = map(sizes_of, sides)
    if before is None or between is None or after is None or len(between) != _JOINED_AXES:
        return False
    *leading, height, width = before
    if len(before) < _JOINED_AXES or between[1:] != (height, width):
        return False
    perm = moved.attributes.get_ints("perm", [])
    if list(perm) != [0, 2, 1] or after != (*leading, width, height):
        return False
    axes = range(len(before))
    node.replace_input_with(0, inner.inputs[0])
    node.resize_inputs(1)
    node.op_type = "Transpose"
    node.attributes.clear()
    node.attributes["perm"] = ir.AttrInt64s("perm", [*axes[:-2], axes[-1], axes[-2]])
    return True


def _maker(node: ir.Node, kind: str) -> ir.Node | None:
    """The node that makes the first input of another, if it is of a `kind`."""
    value = node.inputs[0]
    made = None if value is None else value.producer()
    return made if made is not None and _is(made, kind) else None


def _is(node: ir.Node, kind: str) -> bool:
    return node.op_type == kind and not node.domain
