"""Zeros in front of a max pool, written so that ONNX Runtime leaves them zeros.

    y = MaxPool(Pad(x, 0))        is not        y = MaxPool(x, pads)

for a pool pads with minus infinity: where all of a border window is negative, the first gives 0.
ONNX Runtime's optimiser fuses them all the same (seen in 1.31.1, `pad_fusion.cc`), but for a Pad
that names its axes, which means the same. That form is of opset 18; in an older one the file stays
as it is, and its validation says that the optimiser is to blame.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.initializers import constant

_FIRST_WITH_AXES = 18
_PADS, _AXES = 1, 3


def keep_pads_of_pools(model: ir.Model, opset: int) -> None:
    """Name the axes of each constant Pad that a MaxPool reads."""
    if opset < _FIRST_WITH_AXES:
        return
    for node in model.graph:
        if node.op_type == "Pad" and not node.domain and _is_fused(node):
            _name_axes(model.graph, node)


def _is_fused(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    readers = node.outputs[0].consumers()
    return (
        (mode is None or mode.as_string() == "constant")
        and not (len(node.inputs) > _AXES and node.inputs[_AXES] is not None)
        and any(reader.op_type == "MaxPool" for reader in readers)
    )


def _name_axes(graph: ir.Graph, node: ir.Node) -> None:
    value = node.inputs[_PADS]
    if value is None or value.const_value is None:
        return
    begins, ends = np.reshape(value.const_value.numpy(), (2, -1))
    axes = np.flatnonzero(begins | ends)
    pads = np.concatenate([begins[axes], ends[axes]])
    named = (("pads", _PADS, pads), ("axes", _AXES, axes))
    node.resize_inputs(_AXES + 1)
    for name, place, array in named:
        node.replace_input_with(place, constant(graph, f"{node.outputs[0].name}.{name}", array))
