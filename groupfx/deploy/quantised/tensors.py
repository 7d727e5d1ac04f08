"""Tensors of whole numbers, and the reals that they stand for.

    real = scale * (stored - zero_point)

Scale and zero point are one number for the whole tensor, or one for each position along one
dimension, such as the output channels of a weight, or one for each block of that many positions
along it. A zero point that is left out is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of, input_of

Array = np.ndarray[Any, np.dtype[Any]]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# ONNX Runtime has operators of these names for types that older opsets have none for.
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_DEFAULT_AXIS = 1


@dataclass(frozen=True)
class QuantisedTensor:
    """A value of whole numbers.

    `node` is the DequantizeLinear that reads it, or the QuantizeLinear that makes it; None where an
    operator works on the numbers themselves. Then `scale` may be None: ConvInteger knows none, and
    that of a QLinearConv's bias is the product of the two others. `axis`, at least 0, is the
    dimension that scales go along, None where one is for all; `block` is how many positions along
    it have one together, 0 where each has its own.
    """

    stored: ir.Value
    scale: ir.Value | None
    zero_point: ir.Value | None
    axis: int | None = None
    block: int = 0
    node: ir.Node | None = None

    @property
    def tensor(self) -> ir.TensorProtocol | None:
        """What is stored; None where the graph computes it, or a user may replace it."""
        return constant_of(self.stored, FIRST_IR_WITH_DEFAULTS)

    @property
    def numbers(self) -> Array | None:
        """The whole numbers in their own type; None where they are not constant."""
        return _array(self.stored)

    @property
    def scales(self) -> Array | None:
        """`[]` or `[1]` for one scale, `[positions]` for one each; None where not constant."""
        return _array(self.scale)

    @property
    def zero_points(self) -> Array | None:
        """In the type of the numbers, shaped as the scales are; None if none, or not constant."""
        return _array(self.zero_point)

    @property
    def zeros(self) -> Array | None:
        """The same, with 0 where there is none."""
        return np.zeros(()) if self.zero_point is None else self.zero_points

    @property
    def reals(self) -> Array | None:
        """What the numbers stand for, in float64; None where something is not constant.

        Without a scale they are the numbers, less their zero point.
        """
        numbers, scales, zeros = self.numbers, self.scales, self.zero_points
        known = (scales, self.scale), (zeros, self.zero_point)
        if numbers is None or any(a is None and b is not None for a, b in known):
            return None
        wide = numbers.astype(np.float64)
        if zeros is not None:
            wide -= self.spread(zeros, numbers.shape)
        return wide if scales is None else wide * self.spread(scales, numbers.shape)

    @property
    def kind(self) -> ir.DataType | None:
        """The type of the numbers; None where the file does not say it."""
        return kind_of(self.zero_point) or kind_of(self.stored)

    @property
    def by_row(self) -> tuple[ir.Value, ...]:
        """Those of the scale and the zero point that have a number for each of its rows."""
        return tuple(v for v in self.parameters if self.axis == 0 and _size(v) > 1)

    @property
    def parameters(self) -> tuple[ir.Value, ...]:
        """The scale and the zero point, where there are such."""
        return tuple(value for value in (self.scale, self.zero_point) if value is not None)

    def spread(self, each: Array, shape: tuple[int, ...]) -> Array:
        """Scales or zero points in float64, so that they broadcast with the numbers."""
        wide = each.astype(np.float64)
        if self.axis is None:
            return wide.reshape(())
        if self.block:
            whole = np.repeat(wide, self.block, axis=self.axis)
            return whole.take(range(shape[self.axis]), axis=self.axis)
        return wide.reshape(-1, *(1,) * (len(shape) - 1 - self.axis))


def dequantised(value: ir.Value | None) -> QuantisedTensor | None:
    """What a DequantizeLinear makes `value` of; None where none does."""
    node = None if value is None else value.producer()
    if node is None or not is_dequantize(node) or node.inputs[0] is None:
        return None
    return _read(node, node.inputs[0])


def quantised(node: ir.Node) -> QuantisedTensor | None:
    """What a QuantizeLinear makes; None for any other node."""
    return _read(node, node.outputs[0]) if is_quantize(node) else None


def scaling(node: ir.Node) -> QuantisedTensor | None:
    """What a QuantizeLinear makes or a DequantizeLinear reads; None for any other node."""
    return dequantised(node.outputs[0]) if is_dequantize(node) else quantised(node)


def is_stored(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or one that was quantised or dequantised by constants."""
    if constant_of(value, FIRST_IR_WITH_DEFAULTS) is not None:
        return True
    node = None if value is None else value.producer()
    if node is None or not (is_quantize(node) or is_dequantize(node)):
        return False
    return all(is_stored(held) for held in node.inputs if held is not None)


def is_dequantize(node: ir.Node) -> bool:
    """Whether a node makes reals of whole numbers."""
    return node.op_type == DEQUANTIZE and node.domain in _DOMAINS


def is_quantize(node: ir.Node) -> bool:
    """Whether a node makes whole numbers of reals."""
    return node.op_type == QUANTIZE and node.domain in _DOMAINS


def operand(node: ir.Node, stored: int, scale: int | None, zero_point: int) -> QuantisedTensor:
    """Inputs of an operator on whole numbers, whose scales go along the first dimension.

    The positions are those of the numbers, of their scale and of their zero point.
    """
    numbers = input_of(node, stored)
    assert numbers is not None
    scales = None if scale is None else input_of(node, scale)
    zeros = input_of(node, zero_point)
    along = 0 if any(_size(value) > 1 for value in (scales, zeros)) else None
    return QuantisedTensor(numbers, scales, zeros, along)


def kind_of(value: ir.Value | None) -> ir.DataType | None:
    """The type of the numbers of a value; None where the file does not say it."""
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    if value is None or tensor is not None:
        return None if tensor is None else tensor.dtype
    maker = value.producer()
    if value.dtype is not None or maker is None or not is_quantize(maker):
        return value.dtype
    zero = input_of(maker, 2)
    wanted = maker.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8
    return ir.DataType(wanted) if zero is None else kind_of(zero)


def axis_of(node: ir.Node) -> int:
    """The axis that a quantization names, or the default."""
    return node.attributes.get_int("axis", _DEFAULT_AXIS)


def _read(node: ir.Node, stored: ir.Value) -> QuantisedTensor:
    scale, zero_point = input_of(node, 1), input_of(node, 2)
    block = node.attributes.get_int("block_size", 0)
    axis = axis_of(node)
    if not block and _size(scale) == 1:
        return QuantisedTensor(stored, scale, zero_point, node=node)
    rank = _rank(stored)
    along = axis if axis >= 0 or rank is None else axis + rank
    return QuantisedTensor(stored, scale, zero_point, along, block, node)


def _array(value: ir.Value | None) -> Array | None:
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    return None if tensor is None else tensor.numpy()


def _size(value: ir.Value | None) -> int:
    """How many numbers a scale or a zero point has; 1 where nobody knows."""
    sizes = sizes_of(value)
    return 1 if sizes is None else math.prod(n if isinstance(n, int) else 1 for n in sizes)


def _rank(value: ir.Value) -> int | None:
    sizes = sizes_of(value)
    return None if sizes is None else len(sizes)


def sizes_of(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...] | None:
    """The shape of a value, where the file says it."""
    tensor = constant_of(value, FIRST_IR_WITH_DEFAULTS)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    return None if value is None or value.shape is None else tuple(value.shape)
