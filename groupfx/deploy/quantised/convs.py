"""Quantised convolutions of an ONNX graph, however they are written.

    qdq            y = QuantizeLinear([Relu](Conv(DequantizeLinear(x), DequantizeLinear(W), ...)))
    weight only    the same, of a weight alone: x is in floating point
    QLinearConv    the operator on whole numbers, scales are inputs of its own
    ConvInteger    sums of products of whole numbers, scales are somebody else's

In a qdq one the bias may be in whole numbers (int32, at the scale of x times that of W) or not, and
what stands behind may not be quantised. Only the main graph is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..graph.conv_nodes import CONVS, OPERANDS, WHOLE, ConvNode, Shapes, conv_nodes, input_of
from .tensors import Array, QuantisedTensor, dequantised, operand, quantised

Layout = Literal["qdq", "weight only", "QLinearConv", "ConvInteger"]

SPLIT = (*CONVS, *WHOLE)
"""The operators that are split and merged, in floating point or in whole numbers."""

# The weight, its scale and its zero point.
_WEIGHTS: Mapping[str, tuple[int, int | None, int]] = {
    "ConvInteger": (1, None, 3),
    "QLinearConv": (3, 4, 5),
}
_ACTIVATIONS = frozenset({"Clip", "Relu"})
"""What a runtime takes into a convolution's kernel: bounds of what it gives."""


@dataclass(frozen=True)
class QuantisedConv:
    """A convolution whose weight is in whole numbers.

    `data`, `weight` and `bias` are its operands, None where one is absent or in floating point.
    `behind` are the activations between it and `result`, the quantised value that it ends in; that
    is None, and there are none, where no QuantizeLinear takes the only value that leaves it.
    """

    conv: ConvNode
    layout: Layout
    data: QuantisedTensor | None
    weight: QuantisedTensor
    bias: QuantisedTensor | None
    behind: tuple[ir.Node, ...] = ()
    result: QuantisedTensor | None = None

    @property
    def name(self) -> str:
        """The name of its site."""
        return self.conv.name

    @property
    def bias_reals(self) -> Array | None:
        """A quantised bias in float64, `[out]`; None where something of it is not constant."""
        if self.bias is None or self.bias.scale is not None:
            return None if self.bias is None else self.bias.reals
        numbers, weight = self.bias.numbers, self.weight.scales
        data = None if self.data is None else self.data.scales
        if numbers is None or data is None or weight is None:
            return None
        scale = data.astype(np.float64).reshape(()) * weight.astype(np.float64).reshape(-1)
        return numbers.astype(np.float64) * scale


@dataclass(frozen=True)
class Pairs:
    """What is quantised in front of a convolution, and behind the activations `between`.

    A runtime makes one kernel on whole numbers of all of it.
    """

    data: QuantisedTensor
    between: tuple[ir.Node, ...]
    result: QuantisedTensor


def pairs_around(conv: ConvNode, last: ir.Node) -> Pairs | None:
    """The pairs around a convolution, of which `last` is the end; None where one is missing."""
    data = dequantised(conv.node.inputs[0])
    if data is None or data.kind is None or dequantised(conv.weight) is None:
        return None
    between, result = result_behind(last)
    return None if result is None else Pairs(data, between, result)


def quantised_convs(model: ir.Model, shapes: Shapes | None = None) -> Iterator[QuantisedConv]:
    """The quantised convolutions of the main graph, in order."""
    found = map(quantised_conv, conv_nodes(model, shapes, SPLIT)[0])
    return (conv for conv in found if conv is not None)


def quantised_conv(conv: ConvNode) -> QuantisedConv | None:
    """A convolution as a quantised one; None where its weight is in floating point."""
    node = conv.node
    weight, bias = weight_of(node), bias_of(node)
    if weight is None:
        return None
    if node.op_type == "QLinearConv":
        result = QuantisedTensor(node.outputs[0], input_of(node, 6), input_of(node, 7))
        return QuantisedConv(conv, "QLinearConv", operand(node, 0, 1, 2), weight, bias, (), result)
    if node.op_type == "ConvInteger":
        return QuantisedConv(conv, "ConvInteger", operand(node, 0, None, 2), weight, bias)
    data = dequantised(node.inputs[0])
    layout: Layout = "weight only" if data is None else "qdq"
    return QuantisedConv(conv, layout, data, weight, bias, *result_behind(node))


def weight_of(node: ir.Node) -> QuantisedTensor | None:
    """The weight of a convolution of `SPLIT`; None where it is in floating point."""
    if node.op_type in WHOLE:
        return operand(node, *_WEIGHTS[node.op_type])
    return dequantised(input_of(node, OPERANDS[node.op_type][0]))


def bias_of(node: ir.Node) -> QuantisedTensor | None:
    """The bias of a convolution of `SPLIT`; None without one in whole numbers."""
    bias = input_of(node, OPERANDS[node.op_type][1])
    if bias is None or node.op_type not in WHOLE:
        return dequantised(bias)
    return QuantisedTensor(bias, None, None)


def result_behind(last: ir.Node) -> tuple[tuple[ir.Node, ...], QuantisedTensor | None]:
    """Activations behind a node, and the quantised value that they end in; nothing and None."""
    between: list[ir.Node] = []
    value = last.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        if use.idx != 0 or use.node.graph is not last.graph:
            break
        result = quantised(use.node)
        if result is not None:
            return tuple(between), result
        if use.node.domain or use.node.op_type not in _ACTIVATIONS:
            break
        between.append(use.node)
        value = use.node.outputs[0]
    return (), None
