"""The one rule for results in lower precision or of another runtime: how far off they may be.

    rms(candidate - y) <= max(4 rms(original - y), u max|y|)        y in float64

`original` is the original run in the candidate's dtype, u that dtype's unit roundoff. What made the
original wrong by chance makes a right candidate wrong by about as much; a mistake does not stay
within 4 times that. On inputs that are made to hurt, rounding is amplified (a variance near 0, a
sum that cancels), and the factor is 32.

A value that is not finite fails where float64 is finite and well inside the range of the dtype, and
the original in that dtype finite too. Elsewhere both must agree in kind: finite, NaN, plus or minus
infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

FACTOR = 4.0
ADVERSARIAL_FACTOR = 32.0

_KINDS = ("finite", "NaN", "infinity", "-infinity")


def rms_limit(original_rms: float, peak: float, dtype: torch.dtype, *, ordinary: bool) -> float:
    """The largest root-mean-square error that a candidate in `dtype` may have.

    `original_rms` is the original's error in that dtype, `peak` max|y| in float64. `ordinary` says
    that the inputs were not made to hurt.
    """
    factor = FACTOR if ordinary else ADVERSARIAL_FACTOR
    floor = max(torch.finfo(dtype).eps / 2 * peak, underflow(dtype))
    return max(factor * original_rms, floor)


def underflow(dtype: torch.dtype) -> float:
    """An error that is never a mistake, for rounding is no longer relative there.

    A runtime may flush numbers below the normal range to 0; float16 is computed in float32.
    """
    info = torch.finfo(dtype)
    least = info.smallest_normal if dtype == torch.float32 else 4 * info.smallest_normal * info.eps
    return float(least)


def rms(values: Array) -> float:
    """Root mean square, 0 of nothing."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.square(values).mean())) if values.size else 0.0


def in_range(values: Array, dtype: torch.dtype) -> Array:
    """Which values are finite and so far inside the range of `dtype` that rounding keeps them."""
    inside: Array = np.abs(values) <= torch.finfo(dtype).max / 2
    return inside


def kind_mismatch(wide: Array, original: Array, candidate: Array, dtype: torch.dtype) -> str | None:
    """What is wrong with values that are not finite, as a sentence without a subject; or None.

    `wide` is the float64 result, `original` and `candidate` are results in `dtype`; all three are
    arrays of float64.
    """
    inside = in_range(wide, dtype)
    broken = inside & np.isfinite(original) & ~np.isfinite(candidate)
    if broken.any():
        kind = _KINDS[int(_kind(candidate)[broken][0])]
        return f"has {kind} in {int(broken.sum())} of {broken.size} values that are finite"
    differing = ~inside & (_kind(original) != _kind(candidate))
    if not differing.any():
        return None
    before = _KINDS[int(_kind(original)[differing][0])]
    after = _KINDS[int(_kind(candidate)[differing][0])]
    return f"has {after} instead of {before} in {int(differing.sum())} of {differing.size} values"


def _kind(values: Array) -> Array:
    """0 finite, 1 NaN, 2 plus infinity, 3 minus infinity."""
    found: Array = np.isnan(values) + 2 * np.isposinf(values) + 3 * np.isneginf(values)
    return found
