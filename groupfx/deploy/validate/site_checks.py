"""Each site of a candidate on its own: recomputed in float64 from the candidate's own input.

The end of a network can be blind to a wrong convolution, and a wrong one makes everything behind
it look wrong. So what goes into a site in the candidate is put into the site of the reference, and
the two results are compared; the next site is judged from the candidate's value again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import first_line
from ...verify.bounds import rounding_bound
from ...verify.measures import plain_number
from ...verify.yardstick import in_range, underflow
from ..graph.channel_order import Arranged, arranged
from .onnx_sites import Region
from .site_functions import SiteFunction

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SiteCheck:
    """What was found at one site, over all runs.

    `ratio` is the worst error by what is allowed, of the root-mean-square error of a channel or of
    a single element; above 1 it fails. `expected` and `found` are the two values at the worst
    element, `index` (batch, channel, position) of run `run`. `seen` says whether anything but zeros
    went in.
    """

    name: str
    ok: bool
    ratio: float
    error: float = 0.0
    limit: float = 0.0
    index: tuple[int, ...] = ()
    expected: float | None = None
    found: float | None = None
    run: str | None = None
    seen: bool = False
    reason: str | None = None

    def worse(self, other: SiteCheck) -> SiteCheck:
        """The worse of two runs of one site."""
        chosen = other if (other.ratio, not other.ok) > (self.ratio, not self.ok) else self
        return replace(chosen, seen=self.seen or other.seen, ok=self.ok and other.ok)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        numbers = ("ratio", "error", "limit", "expected", "found")
        plain = {name: plain_number(getattr(self, name)) for name in numbers}
        return {**vars(self), "index": list(self.index), **plain}


def check_site(
    function: SiteFunction,
    region: Region,
    values: Mapping[str, Array],
    dtype: torch.dtype,
    run: str,
) -> SiteCheck:
    """Judge one site by the `values` of one run, computed in `dtype`."""
    if region.problem is not None:
        return SiteCheck(region.name, False, math.inf, reason=region.problem)
    ends = [region.end] if region.behind_norm is None else [region.end, region.behind_norm]
    spec, (have, want) = function.spec, (region.orders, function.orders)
    # What a fold left out of an input must be read by nothing, whatever stands there.
    start = arranged(values[region.start], have.input, want.input, spec.in_channels).array

    def checked(value: Array, *, rounded: bool = False) -> SiteCheck:
        end = arranged(value, have.output, want.output, spec.out_channels)
        return _of_run(function, region.name, start, end, dtype, run, rounded)

    joined = [values[name] for name in region.joined]
    if region.activated:
        return checked(np.concatenate(joined, axis=1))
    if joined or region.whole:
        last = checked(values[region.end], rounded=True)
        # A step is much more than what rounding explains in front of it.
        return checked(np.concatenate(joined, axis=1)) if joined and last.ok else last
    return min((checked(values[end]) for end in ends), key=_ratio)


def _ratio(check: SiteCheck) -> float:
    return check.ratio


def _of_run(
    function: SiteFunction,
    name: str,
    start: Array,
    end: Arranged,
    dtype: torch.dtype,
    run: str,
    rounded: bool,
) -> SiteCheck:
    x, y = wide_tensor(start), wide_tensor(end.array)
    if function.data is not None:
        x = function.data.reals(x)
        y = y if function.result is None else function.result.reals(y)
    if x.dim() != function.weight.dim():
        reason = f"an input of shape {list(x.shape)} does not fit a {function.spec.describe()}"
        return SiteCheck(name, False, math.inf, run=run, seen=True, reason=reason)
    try:
        expected, magnitudes = function.value(x), function.magnitudes(x, dtype)
    except RuntimeError as error:
        reason = f"an input of shape {list(x.shape)} does not fit it: {first_line(error)}"
        return SiteCheck(name, False, math.inf, run=run, seen=True, reason=reason)
    if expected.shape != y.shape:
        reason = f"its output has the shape {list(y.shape)} instead of {list(expected.shape)}"
        return SiteCheck(name, False, math.inf, run=run, seen=True, reason=reason)
    step = torch.zeros(())
    if rounded and function.result is not None:
        expected, step = function.result.within(expected), function.result.half_step(expected)
    y[:, ~end.there] = expected[:, ~end.there]
    if not y.numel():
        return SiteCheck(name, True, 0.0, run=run)
    return _compared(function, name, expected, y, magnitudes, step, dtype, run, bool(x.any()))


def _compared(
    function: SiteFunction,
    name: str,
    expected: Tensor,
    found: Tensor,
    magnitudes: Tensor,
    step: Tensor,
    dtype: torch.dtype,
    run: str,
    seen: bool,
) -> SiteCheck:
    error = (found - expected).abs_()
    if not _is_plain(magnitudes, found, dtype):
        inside = torch.from_numpy(in_range(magnitudes.numpy(), dtype))
        finite = torch.isfinite(found)
        broken = inside & ~finite
        if bool(broken.any()):
            place = _place(broken.double())
            reason = f"{int(broken.sum())} values are not finite where the reference is"
            return SiteCheck(
                name, False, math.inf, math.inf, 0.0, place, float(expected[place]),
                float(found[place]), run, seen, reason,
            )  # fmt: skip
        usable = inside & finite
        error = torch.where(usable, error, 0.0)
        magnitudes = torch.where(usable, magnitudes, 0.0)
    unit = torch.finfo(dtype).eps / 2
    least = step.double() + underflow(dtype)
    elements = rounding_bound(magnitudes, function.terms, dtype).add_(least)
    channels = function.factor() * unit * _rms(magnitudes) + least.reshape(-1)
    by_element, of_channels = error / elements, _rms(error)
    by_channel = of_channels / channels
    worst, channel = float(by_element.max()), int(by_channel.argmax())
    ratio = max(worst, float(by_channel[channel]))
    if worst > float(by_channel[channel]):
        place = _place(by_element)
        size, limit = float(error[place]), float(elements[place])
    else:
        batch, *position = _place(error.select(1, channel))
        place = (batch, channel, *position)
        size, limit = float(of_channels[channel]), float(channels[channel])
    ok = ratio <= 1
    wrong = None if ok else f"its output is off by {ratio:.3g} x what rounding explains"
    return SiteCheck(
        name, ok, ratio, size, limit, place, float(expected[place]), float(found[place]), run, seen,
        wrong,
    )  # fmt: skip


def _rms(value: Tensor) -> Tensor:
    """Root mean square of each channel, `[channels]`."""
    axes = [axis for axis in range(value.dim()) if axis != 1]
    return value.square().mean(dim=axes).sqrt()


def _is_plain(magnitudes: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is finite and in range, as sums and maxima tell in no time.

    What is not a number, or infinite, makes a sum and a maximum so.
    """
    if not math.isfinite(float(found.sum())):
        return False
    return bool(in_range(magnitudes.max().numpy(), dtype))


def _place(value: Tensor) -> tuple[int, ...]:
    """Index of the largest element."""
    return tuple(int(k) for k in np.unravel_index(int(value.argmax()), tuple(value.shape)))


def wide_tensor(array: Array) -> Tensor:
    """An array in float64."""
    return torch.from_numpy(np.array(array, dtype=np.float64))


def first_and_worst(
    checks: Sequence[SiteCheck],
) -> tuple[SiteCheck | None, SiteCheck | None]:
    """The first site that is not ok, and the one with the largest ratio."""
    first = next((check for check in checks if not check.ok), None)
    return first, max(checks, key=lambda check: check.ratio, default=None)
