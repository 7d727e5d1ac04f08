"""Where a convolution of dynamically quantised values is made reals.

    q, s, o = DynamicQuantizeLinear(x)
    z       = Cast(ConvInteger(q, W, o, W_zero)) * (s * W_scale) + bias

ConvInteger knows no scale: that of its weight is a factor behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of, input_of
from ...quantised.convs import QuantisedConv


@dataclass(frozen=True)
class DynamicEnd:
    """What stands behind a ConvInteger: the scale of its weight, the bias, the value in reals.

    `numbers`, `step` and `zero` are the values that DynamicQuantizeLinear gives.
    """

    scale: npt.NDArray[Any]
    bias: npt.NDArray[np.float64] | None
    value: ir.Value
    numbers: ir.Value
    step: ir.Value
    zero: ir.Value


def dynamic_end(conv: QuantisedConv) -> DynamicEnd | None:
    """What is behind a ConvInteger; None where it is anything else."""
    node = conv.conv.node
    source = node.inputs[0]
    made = None if source is None else source.producer()
    if made is None or made.op_type != "DynamicQuantizeLinear":
        return None
    cast = _only_user(node.outputs[0], "Cast")
    product = None if cast is None else _only_user(cast.outputs[0], "Mul")
    if cast is None or product is None:
        return None
    factor = next(value for value in product.inputs if value is not cast.outputs[0])
    scale = _scale(factor, made.outputs[1])
    if scale is None:
        return None
    end, bias = product.outputs[0], None
    added = _only_user(end, "Add")
    if added is not None:
        other = next((value for value in added.inputs if value is not end), None)
        bias = _constant(other)
        end = end if bias is None else added.outputs[0]
    flat = None if bias is None else np.ravel(bias).astype(np.float64)
    if flat is not None and flat.size != conv.conv.spec.out_channels:
        return None
    return DynamicEnd(scale, flat, end, *made.outputs[:1], *made.outputs[1:3])


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != kind:
        return None
    return uses[0].node


def _scale(factor: ir.Value | None, step: ir.Value) -> npt.NDArray[Any] | None:
    """The constant that the step of the values is multiplied with."""
    node = None if factor is None else factor.producer()
    if node is None or node.op_type != "Mul" or step not in node.inputs:
        return None
    other = next((value for value in node.inputs if value is not step), None)
    found = _constant(other)
    return None if found is None else np.ravel(found)


def _constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """A constant, or a Reshape of one."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Reshape":
        value = input_of(node, 0)
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    return None if tensor is None else tensor.numpy()
