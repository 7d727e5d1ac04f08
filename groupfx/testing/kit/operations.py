"""Operations on single numbers and on the order of numbers, by their definition.

What rounds says how often; what moves numbers does not round. A function that steps (a relu, a
clip) cannot enlarge an error, so it keeps the magnitude that was there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .known import Array, Known

# Subtract, multiply, add; and the factor, a quotient of a root, is itself rounded three times.
_NORM_ROUNDINGS = 6


@dataclass(frozen=True)
class Norm:
    """BatchNormalization in eval mode: x [N, C, ...], then scale, bias, mean and variance [C]."""

    epsilon: float = 2.0**-10  # a float32, and so large that leaving it out shows

    def define(self, x: Known, *given: Known) -> tuple[Known]:
        row = (-1, *[1] * (x.value.ndim - 2))
        scale, bias, mean, variance = (each.value.reshape(row) for each in given)
        factor = scale / np.sqrt(variance + self.epsilon)
        value = (x.value - mean) * factor + bias
        magnitude = (x.magnitude + np.abs(mean)) * np.abs(factor) + np.abs(bias)
        return (x.rounded(value, magnitude, _NORM_ROUNDINGS),)


@dataclass(frozen=True)
class Activation:
    """A function that steps: relu, relu6 or leaky_relu with slope 1/8."""

    kind: Literal["relu", "relu6", "leaky_relu"] = "relu"

    def define(self, x: Known) -> tuple[Known]:
        functions: dict[str, Callable[[Array], Array]] = {
            "relu": lambda v: np.maximum(v, 0),
            "relu6": lambda v: np.clip(v, 0, 6),
            "leaky_relu": lambda v: np.where(v > 0, v, v / 8),
        }
        return (x.rounded(functions[self.kind](x.value), x.magnitude, 0),)


@dataclass(frozen=True)
class PRelu:
    """x, or x times a slope where it is negative: x [N, C, ...], slope [C, 1, ...]."""

    def define(self, x: Known, slope: Known) -> tuple[Known]:
        value = np.where(x.value > 0, x.value, x.value * slope.value)
        return (x.rounded(value, x.magnitude * np.maximum(slope.magnitude, 1), 1),)


@dataclass(frozen=True)
class Binary:
    """Sum, difference or product of two values that numpy's rules broadcast."""

    kind: Literal["Add", "Sub", "Mul"]

    def define(self, left: Known, right: Known) -> tuple[Known]:
        if self.kind == "Mul":
            roundings = 1 + min(left.terms, right.terms)
            value, magnitude = left.value * right.value, left.magnitude * right.magnitude
            return (left.rounded(value, magnitude, roundings, right),)
        sign = 1 if self.kind == "Add" else -1
        value = left.value + sign * right.value
        return (left.rounded(value, left.magnitude + right.magnitude, 1, right),)


@dataclass(frozen=True)
class Concat:
    """Values one after another along an axis."""

    axis: int = 1

    def define(self, *given: Known) -> tuple[Known]:
        first = given[0]
        value = np.concatenate([each.value for each in given], self.axis)
        magnitude = np.concatenate([each.magnitude for each in given], self.axis)
        return (first.rounded(value, magnitude, 0, *given),)


@dataclass(frozen=True)
class Split:
    """Parts of these sizes along an axis."""

    sizes: tuple[int, ...]
    axis: int = 1

    def define(self, x: Known) -> tuple[Known, ...]:
        cuts = np.cumsum(self.sizes)[:-1]
        return tuple(
            x.moved(lambda v, i=i: np.split(v, cuts, self.axis)[i])  # type: ignore[misc]
            for i in range(len(self.sizes))
        )


@dataclass(frozen=True)
class Slice:
    """Every `step`-th position of an axis from `start` to before `stop`; -1 goes backwards."""

    start: int
    stop: int
    step: int = 1
    axis: int = 1

    def define(self, x: Known) -> tuple[Known]:
        part = (*[slice(None)] * self.axis, slice(self.start, self.stop, self.step))
        return (x.moved(lambda v: v[part]),)


@dataclass(frozen=True)
class Gather:
    """These positions of an axis; in ONNX a constant of its own."""

    indices: tuple[int, ...]
    axis: int = 1

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(lambda v: np.take(v, self.indices, self.axis)),)


@dataclass(frozen=True)
class Transpose:
    """The axes in another order."""

    axes: tuple[int, ...]

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(lambda v: v.transpose(self.axes)),)


@dataclass(frozen=True)
class Reshape:
    """To other sizes; 0 keeps that of the same axis, -1 is what is left."""

    sizes: tuple[int, ...]

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(lambda v: v.reshape(self.of(v.shape))),)

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes for x of this shape; one may still be -1."""
        return tuple(size or shape[axis] for axis, size in enumerate(self.sizes))


@dataclass(frozen=True)
class DepthToSpace:
    """Channels as squares of `block` positions: in DCR order, or in CRD as a PixelShuffle of torch.

    DCR   y[n, c, h * b + i, w * b + j] = x[n, (i * b + j) * C + c, h, w]
    CRD   y[n, c, h * b + i, w * b + j] = x[n, c * b * b + i * b + j, h, w]
    """

    block: int
    mode: Literal["DCR", "CRD"] = "CRD"

    def define(self, x: Known) -> tuple[Known]:
        return (x.moved(self._spread),)

    def _spread(self, values: Array) -> Array:
        batch, channels, height, width = values.shape
        block = self.block
        depth = channels // block**2
        if self.mode == "DCR":
            apart = values.reshape(batch, block, block, depth, height, width)
            spread = apart.transpose(0, 3, 4, 1, 5, 2)
        else:
            apart = values.reshape(batch, depth, block, block, height, width)
            spread = apart.transpose(0, 1, 4, 2, 5, 3)
        return spread.reshape(batch, depth, height * block, width * block)


@dataclass(frozen=True)
class Mean:
    """The mean over all spatial axes, which stay with size 1."""

    def define(self, x: Known) -> tuple[Known]:
        axes = tuple(range(2, x.value.ndim))
        found = [each.mean(axes, keepdims=True) for each in (x.value, x.magnitude)]
        return (x.rounded(found[0], found[1], x.value.size // found[0].size + 1),)


@dataclass(frozen=True)
class MatMul:
    """A product of matrices: x [..., K], weight [K, M]."""

    def define(self, x: Known, weight: Known) -> tuple[Known]:
        value, magnitude = x.value @ weight.value, x.magnitude @ weight.magnitude
        return (x.rounded(value, magnitude, x.shape[-1] + weight.terms),)


@dataclass(frozen=True)
class SameGroup:
    """1 where filter and input belong to one group, else 0: rows [M, 1], columns [1, C]."""

    dtype: str = "float32"

    def define(self, rows: Known, columns: Known) -> tuple[Known]:
        return (Known.exact((rows.value == columns.value).astype(self.dtype)),)


@dataclass(frozen=True)
class Identity:
    """x itself: an Identity, or a Dropout that is off."""

    kind: Literal["Identity", "Dropout"] = "Identity"

    def define(self, x: Known) -> tuple[Known]:
        return (x,)
