"""Quantised operations: whole numbers, exact in any order, and one rounding to a whole number.

What is rounded must lie well off a tie (x.5), where float32 could fall to either side; the cases
are made so, and `Quantize` refuses to define anything else. Then there is one right answer, to the
bit, in float and in integer arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ...errors import InternalError
from .known import Array, Known
from .windows import Conv

_LEAST_MARGIN = 1 / 16


def _rows(values: Array, rank: int, axis: int) -> Array:
    """One number for all, or one for each position of an axis."""
    return (
        values
        if values.size == 1
        else values.reshape(*[-1 if i == axis else 1 for i in range(rank)])
    )


@dataclass(frozen=True)
class Quantize:
    """x, scale, zero point; the zero point has the type of the result."""

    axis: int = 1

    def define(self, x: Known, scale: Known, zero: Known) -> tuple[Known]:
        rank = x.value.ndim
        steps = x.value / _rows(scale.value, rank, self.axis) + _rows(zero.value, rank, self.axis)
        return (Known.exact(_whole(steps, zero.dtype)),)


@dataclass(frozen=True)
class Dequantize:
    """q, scale, zero point."""

    axis: int = 1

    def define(self, q: Known, scale: Known, zero: Known) -> tuple[Known]:
        rank = q.value.ndim
        value = (q.value - _rows(zero.value, rank, self.axis)) * _rows(scale.value, rank, self.axis)
        return (replace(Known.exact(value), terms=1, dtype=scale.dtype),)


@dataclass(frozen=True)
class QLinearConv:
    """x, its scale and zero point, weight and its, those of y, perhaps bias in int32."""

    conv: Conv

    def define(self, *given: Known) -> tuple[Known]:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = given
        sums = _integer_sums(self.conv, x, x_zero, w, w_zero, bias[0] if bias else None)
        rank = x.value.ndim
        scale = x_scale.value * _rows(w_scale.value, rank, 1) / y_scale.value
        return (Known.exact(_whole(sums.value * scale + y_zero.value, y_zero.dtype)),)


@dataclass(frozen=True)
class ConvInteger:
    """x, weight, the zero points of both; int32."""

    conv: Conv

    def define(self, x: Known, w: Known, x_zero: Known, w_zero: Known) -> tuple[Known]:
        return (
            Known.exact(
                _integer_sums(self.conv, x, x_zero, w, w_zero, None).value.astype(np.int32)
            ),
        )


@dataclass(frozen=True)
class ToFloat:
    """Whole numbers as floats."""

    dtype: str = "float32"

    def define(self, x: Known) -> tuple[Known]:
        return (replace(x, dtype=self.dtype),)


def _integer_sums(
    conv: Conv, x: Known, x_zero: Known, w: Known, w_zero: Known, bias: Known | None
) -> Known:
    centred = Known.exact(x.value - x_zero.value)
    weight = Known.exact(w.value - _rows(w_zero.value, w.value.ndim, 0))
    (sums,) = conv.define(centred, weight, bias) if bias else conv.define(centred, weight)
    return sums


def _whole(steps: Array, dtype: str) -> Array:
    info = np.iinfo(dtype)
    inside = steps[(steps > info.min - 1) & (steps < info.max + 1)]
    margin = float(np.abs(inside - np.floor(inside) - 0.5).min()) if inside.size else math.inf
    if margin < _LEAST_MARGIN:
        raise InternalError(f"a case of the kit quantises {margin:.3g} off a tie: draw another")
    return np.clip(np.round(steps), info.min, info.max).astype(dtype)
