"""The reals that whole numbers stand for, and those that a quantised convolution rounds to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of, input_of
from .tensors import QuantisedTensor


@dataclass(frozen=True)
class Grid:
    """Reals at equal steps between two bounds, in float64: each `[]`, or `[channels]`.

    real = scale * (stored - zero_point),   low <= real <= high
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def reals(self, stored: Tensor) -> Tensor:
        """What numbers `[batch, channels, ...]` stand for."""
        return (stored - _over(self.zero_point, stored)) * _over(self.scale, stored)

    def half_step(self, like: Tensor) -> Tensor:
        """How far rounding takes a real within the bounds, to broadcast with `like`."""
        return _over(self.scale, like) / 2

    def within(self, reals: Tensor) -> Tensor:
        """The nearest reals within the bounds."""
        return reals.clamp(_over(self.low, reals), _over(self.high, reals))

    def nearest(self, reals: Tensor) -> Tensor:
        """The nearest reals of the grid; NaN stays."""
        scale, within = _over(self.scale, reals), self.within(reals)
        return (within / scale).round() * scale


def grid_of(found: QuantisedTensor | None, between: tuple[ir.Node, ...] = ()) -> Grid | None:
    """The grid of a value, of what goes through the activations `between` before.

    Without a scale of its own it is the numbers less their zero point. None where scale, zero point
    or type are not known, or not one for all channels or one a channel.
    """
    kind = None if found is None else found.kind
    if found is None or kind is None or not kind.is_integer() or found.axis not in (None, 1):
        return None
    if any(constant_of(value, FIRST_IR_WITH_DEFAULTS) is None for value in found.parameters):
        return None
    scale, zero_point = (
        _vector(default if held is None else held, found.axis)
        for held, default in ((found.scales, np.ones(())), (found.zero_points, np.zeros(())))
    )
    least, most = (float(bound) for bound in (kind.min, kind.max))
    low, high = ((bound - zero_point) * scale for bound in (least, most))
    for node in between:
        below, above = _bounds(node)
        low, high = low.clamp(min=below), high.clamp(max=above)
    return Grid(scale, zero_point, low, high)


def _vector(numbers: np.ndarray[tuple[int, ...], np.dtype[np.generic]], axis: int | None) -> Tensor:
    wide = torch.from_numpy(numbers.astype(np.float64))
    return wide.reshape(()) if axis is None else wide.reshape(-1)


def _bounds(node: ir.Node) -> tuple[float, float]:
    """Between which reals an activation leaves a value."""
    if node.op_type == "Relu":
        return 0.0, torch.inf
    given = [constant_of(input_of(node, place), FIRST_IR_WITH_DEFAULTS) for place in (1, 2)]
    low, high = (
        default if tensor is None else float(tensor.numpy())
        for tensor, default in zip(given, (-torch.inf, torch.inf), strict=True)
    )
    return low, high


def _over(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers of channels, to broadcast with `[batch, channels, ...]`."""
    return numbers if numbers.dim() == 0 else numbers.reshape(1, -1, *(1,) * (like.dim() - 2))
