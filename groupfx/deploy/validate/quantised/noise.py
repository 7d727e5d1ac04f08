"""What one convolution of a quantised file makes of its own input, against the float network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from ...graph.conv_nodes import FIRST_IR_WITH_DEFAULTS, constant_of, input_of
from ...quantised.tensors import QuantisedTensor
from .rows import limits, with_rows
from .sites import SitePart

Values = Mapping[str, npt.NDArray[Any]]
Wide = npt.NDArray[np.float64]

FACTOR = 12.0
"""The power of an error by that of what the steps explain: one whole step in place of rounding."""

_FLOAT32 = 1e-6
"""Of the size of a value: rounding of sums in float32, which a file computes in between."""


@dataclass(frozen=True)
class Noise:
    """What a convolution was found to do in one run. Powers are sums over all values.

    `signal`, `error` and `explained` are of the `count` values that do not saturate, `cut` is the
    power of the error of those that do, `varying` that of how all values vary within their channel.
    `above` and `below` are the shares of values beyond the ends of the range, `used` is the part of
    the range that they take up (1 where there is none), `not_finite` says how many values are not
    finite, `lowest` is the least number of the type.
    """

    signal: float
    error: float
    explained: float
    cut: float
    varying: float
    above: float
    below: float
    used: float
    not_finite: int
    count: int
    lowest: float

    @property
    def ratio(self) -> float:
        """The error by what is allowed; above 1 it fails."""
        if self.not_finite:
            return math.inf
        allowed = FACTOR * self.explained
        return math.sqrt(self.error / allowed) if allowed > 0 else math.inf * (self.error > 0)

    @property
    def snr(self) -> float:
        """Signal to noise in dB, infinite where nothing differs."""
        return decibels(self.signal, self.error)

    @property
    def least_snr(self) -> float:
        """The least that is allowed, in dB."""
        return decibels(self.signal, FACTOR * self.explained)

    @property
    def saturated(self) -> float:
        """The share of values beyond the range."""
        return self.above + self.below

    @property
    def typical(self) -> float:
        """The root mean square of what the steps explain."""
        return math.sqrt(self.explained / max(self.count, 1))

    @property
    def relative_cut(self) -> float:
        """The error of what saturates, by the power of how the values vary."""
        return self.cut / self.varying if self.varying > 0 else 0.0


def decibels(signal: float, noise: float) -> float:
    """10 log10 of the powers' ratio."""
    if math.isnan(noise) or math.isnan(signal):
        return -math.inf
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def names_of(part: SitePart) -> tuple[str, ...]:
    """The values that are looked at: what goes in, and what comes out."""
    conv = part.conv
    if part.end is not None:
        found = [part.end.numbers, part.end.step, part.end.zero, part.end.value]
    elif conv.layout == "QLinearConv":
        assert conv.data is not None
        assert conv.result is not None
        found = [conv.data.stored, conv.result.stored]
    else:
        source = conv.conv.node.inputs[0]
        assert source is not None
        result = conv.conv.node.outputs[0] if conv.result is None else conv.result.stored
        found = [source, result]
    return tuple(value.name or "" for value in found)


def noise_of(
    part: SitePart, values: Values, bounds: tuple[float, float] | None, *, folded: bool
) -> Noise:
    """What a convolution does, against the float one on the same input.

    `bounds` are those of the activations right behind the float one, None where nobody knows: then
    a range that begins at 0 is taken for a Relu. `folded` says that the BatchNorms behind it are in
    the weight of the quantised one.
    """
    source, step_in = _source(part, values)
    x = torch.from_numpy(source)
    function = part.function if folded else replace(part.function, norms=())
    expected = function.value(x).numpy()
    found, step, low, high, lowest = _result(part, values)
    if part.conv.result is not None and part.conv.layout != "QLinearConv":
        expected = _activated(part, expected)
    if bounds is not None and part.conv.result is not None and not part.leaves_activation:
        # The range of the numbers is what is left of the activation.
        expected = np.clip(expected, *bounds)
    assert part.rows is not None
    rows = part.rows.steps**2 / FACTOR
    steps = part.rows.steps.mean(axis=1)
    explained = with_rows(part.function, rows, (steps * step_in) ** 2 / FACTOR).value(x**2).numpy()
    explained = explained + step**2 / FACTOR + (_FLOAT32 * expected) ** 2
    if bounds is None:
        bounds = (0.0 if low == 0 else -math.inf), math.inf
    inside = np.clip(expected, *bounds)
    above = (found >= high) & (expected >= high - step)
    below = (found <= low) & (expected <= low + step)
    kept = ~(above | below)
    error = (found - expected) ** 2
    finite = np.isfinite(found)
    ends = inside > high + step, inside < low - step
    beyond = ends[0] | ends[1]
    axes = (0, *range(2, expected.ndim))
    varying = (expected - expected.mean(axis=axes, keepdims=True)) ** 2
    span = high - low
    used = 1.0
    if math.isfinite(span) and span > 0:
        taken = np.clip(np.append(expected, 0.0), low, high)
        used = float(taken.max() - taken.min()) / span
    return Noise(
        signal=float((expected**2)[kept & finite].sum()),
        error=float(error[kept & finite].sum()),
        explained=float(explained[kept & finite].sum()),
        cut=float(((inside - np.clip(inside, low, high)) ** 2)[beyond].sum()),
        varying=float(varying.sum()),
        above=float(ends[0].mean()),
        below=float(ends[1].mean()),
        used=used,
        not_finite=int((~finite).sum()),
        count=int((kept & finite).sum()),
        lowest=lowest,
    )


def _source(part: SitePart, values: Values) -> tuple[Wide, float]:
    """What goes in, in float64, and its step (0 where there is none)."""
    named = [values[name] for name in names_of(part)]
    if part.end is not None:
        numbers, step, zero = (np.asarray(a, np.float64) for a in named[:3])
        return (numbers - zero) * step, float(step)
    data = part.conv.data
    if part.conv.layout == "QLinearConv":
        assert data is not None
        return _reals(data, named[0]), _step(data)
    return named[0].astype(np.float64), 0.0 if data is None else _step(data)


def _result(part: SitePart, values: Values) -> tuple[Wide, float, float, float, float]:
    """What comes out, its step, the least and the greatest value that it can be, and the least
    number.
    """
    found = values[names_of(part)[-1]]
    result = part.conv.result
    if result is None:
        return found.astype(np.float64), 0.0, -math.inf, math.inf, -math.inf
    step, zero = _step(result), zero_of(result)
    ends = limits_of(result, found)
    low, high = ((limit - zero) * step for limit in ends)
    return _reals(result, found), step, low, high, ends[0]


def limits_of(tensor: QuantisedTensor, found: npt.NDArray[Any]) -> tuple[float, float]:
    """The limits of a type, of a value that was seen where the file does not say."""
    low, high = limits(tensor)
    if math.isfinite(low) or found.dtype.kind not in "iu":
        return low, high
    info = np.iinfo(found.dtype)
    return float(info.min), float(info.max)


def _reals(tensor: QuantisedTensor, numbers: npt.NDArray[Any]) -> Wide:
    found: Wide = (numbers.astype(np.float64) - zero_of(tensor)) * _step(tensor)
    return found


def _step(tensor: QuantisedTensor) -> float:
    scales = tensor.scales
    return 0.0 if scales is None else float(np.ravel(scales).astype(np.float64)[0])


def zero_of(tensor: QuantisedTensor) -> float:
    """The zero point of a tensor that has one for all."""
    zeros = tensor.zero_points
    return 0.0 if zeros is None else float(np.ravel(zeros).astype(np.float64)[0])


def _activated(part: SitePart, value: Wide) -> Wide:
    """Through the activations between a convolution and its result."""
    for node in part.conv.behind:
        low, high = activation_bounds(node)
        value = np.clip(value, low, high)
    return value


def activation_bounds(node: ir.Node) -> tuple[float, float]:
    """The least and the greatest value that a Relu or a Clip gives."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    found = []
    for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        tensor = constant_of(input_of(node, place), FIRST_IR_WITH_DEFAULTS)
        held = node.attributes.get_float(name, default) if tensor is None else tensor.numpy()
        found.append(float(np.ravel(held)[0]))
    return found[0], found[1]
