"""Whether whole numbers, at their scale and zero point, are those of a float weight.

A channel belongs where each real number is less than a step off, by the root mean square of the
channel. Where it is not, the explanation that fits all such channels of the site is named: another
zero point, another scale (whose?), the weight of another channel or site.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .rows import Array, FloatRows, Rows

Kind = Literal["scale", "zero point", "shape", "weight", "bias", "not finite", "range", "noise"]

MOST_STEPS = 1.0
"""The root-mean-square error of a channel, in steps: a quantiser takes one of two neighbours."""

_MOST_SATURATED = 0.25
"""The share of a channel's numbers that may be cut off at a limit of their type."""
_SAME_SCALE = 0.02
_SHOWN = 4


@dataclass(frozen=True)
class Fault:
    """What of a site does not belong to the float one: of which `kind`, and in words.

    `stated` says that it is in the numbers of the file, so that no other fault explains it.
    """

    kind: Kind
    text: str
    channels: tuple[int, ...] = ()
    stated: bool = True


@dataclass(frozen=True)
class WeightCheck:
    """A weight against the float one: `steps` is the worst channel's error, in steps.

    `saturated` is the share of numbers that are cut off at a limit of their type.
    """

    steps: float
    saturated: float
    fault: Fault | None


def check_weight(rows: Rows, own: FloatRows, others: Sequence[FloatRows]) -> WeightCheck:
    """Whether `rows` are the weight of `own`; `others` are all sites of the float network."""
    if not (np.isfinite(rows.steps).all() and np.isfinite(own.weight).all()):
        broken = np.flatnonzero(~np.isfinite(rows.steps).all(axis=1))
        return WeightCheck(
            np.inf, 0.0, Fault("not finite", f"the scale of {listed(broken)} is not finite")
        )
    cut = rows.saturated(own.weight)
    off = _off(rows.reals - own.weight, rows.steps, cut)
    much = cut.mean(axis=1) > _MOST_SATURATED
    wrong = np.flatnonzero((off >= MOST_STEPS) | (much & (cut.sum(axis=1) > 1)))
    steps, share = float(off.max(initial=0.0)), float(cut.mean())
    if not len(wrong):
        return WeightCheck(steps, share, None)
    fault = next(_explanations(rows, own, others, wrong))
    return WeightCheck(steps, share, fault)


def _off(
    error: Array, steps: Array, left_out: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """The root-mean-square error of each channel in steps; of what is not left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(error == 0, 0.0, error / np.abs(steps))
    kept = np.ones(error.shape, bool) if left_out is None else ~left_out
    count = np.maximum(kept.sum(axis=1), 1)
    found: npt.NDArray[np.float64] = np.sqrt((relative**2 * kept).sum(axis=1) / count)
    return found


def _explanations(
    rows: Rows, own: FloatRows, others: Sequence[FloatRows], wrong: npt.NDArray[np.intp]
) -> Iterator[Fault]:
    """What would explain all wrong channels, the likeliest first; the last one is always there."""
    yield from _other_zero_point(rows, own, wrong)
    yield from _other_scale(rows, own, wrong)
    yield from _other_weight(rows, own, others, wrong)
    off = _off(rows.reals - own.weight, rows.steps)[wrong].max()
    yield Fault(
        "weight",
        f"{listed(wrong)}: the numbers are not those of the float weight (off by {off:.3g} "
        "steps, at least one is too many), and of no other channel either",
        tuple(wrong.tolist()),
    )


def _other_zero_point(rows: Rows, own: FloatRows, wrong: npt.NDArray[np.intp]) -> Iterator[Fault]:
    """The same shift of all numbers of a channel makes them fit."""
    steps = rows.steps[wrong]
    if not (steps != 0).all():
        return
    kept = ~_at_limit(rows)[wrong]
    shift = (rows.reals[wrong] - own.weight[wrong]) / steps
    count = np.maximum(kept.sum(axis=1), 1)
    each = np.round((shift * kept).sum(axis=1) / count)
    left = _off((shift - each[:, None]) * steps, steps, ~kept)
    if rows.numbers.shape[1] < _ENOUGH or (each == 0).any() or (left >= MOST_STEPS).any():
        return
    found = rows.zeros[wrong][:, 0]
    wanted = found + each
    yield Fault(
        "zero point",
        f"{listed(wrong)}: the zero point is {_number(found)}, and {_number(wanted)} fits the "
        f"float weight{' (it was lost)' if not found.any() else ''}",
        tuple(wrong.tolist()),
    )


_ENOUGH = 2
"""A channel of one number is explained by any scale and any zero point."""


def best_scales(rows: Rows, own: FloatRows) -> npt.NDArray[np.float64]:
    """The scale of each channel at which its numbers are nearest to the float weight."""
    shifted = rows.numbers - rows.zeros
    power = (shifted**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: npt.NDArray[np.float64] = (shifted * own.weight).sum(axis=1) / power
    return np.where(power > 0, found, np.nan)


def _other_scale(rows: Rows, own: FloatRows, wrong: npt.NDArray[np.intp]) -> Iterator[Fault]:
    """Other scales make the numbers fit: whose are those that are there?"""
    scales = best_scales(rows, own)
    fits = scales[wrong]
    if not (np.isfinite(fits) & (fits > 0)).all():
        return
    # In units of the step that fits: what a wrong one was multiplied with does not count.
    error = (rows.numbers - rows.zeros) * scales[:, None] - own.weight
    if (_off(error[wrong], np.broadcast_to(fits[:, None], error[wrong].shape)) >= MOST_STEPS).any():
        return
    found = rows.steps[:, 0]
    yield Fault(
        "scale",
        f"{listed(wrong)}: the scale is {found[wrong[0]]:.4g}, and {fits[0]:.4g} fits the float "
        f"weight{_whose(found, scales, wrong)}",
        tuple(wrong.tolist()),
    )


def _whose(
    found: npt.NDArray[np.float64], scales: npt.NDArray[np.float64], wrong: npt.NDArray[np.intp]
) -> str:
    """Which other channels the scales of the wrong ones belong to, in words."""
    for shift in sorted(range(-len(scales) + 1, len(scales)), key=abs):
        places = wrong + shift
        if shift and places.min() >= 0 and places.max() < len(scales):
            with np.errstate(invalid="ignore"):
                near = np.abs(found[wrong] / scales[places] - 1) < _SAME_SCALE
            if near.all():
                which = listed(places)
                cut = ": scales that were not cut along" if len(wrong) > 1 else ""
                return f"; that there belongs to {which}{cut}"
    factor = found[wrong] / scales[wrong]
    if len(wrong) > 1 and np.ptp(factor) < _SAME_SCALE * factor.mean():
        return f"; all are {factor.mean():.3g} times what fits"
    return ""


def _other_weight(
    rows: Rows, own: FloatRows, others: Sequence[FloatRows], wrong: npt.NDArray[np.intp]
) -> Iterator[Fault]:
    """The numbers are those of another channel, here or at another site."""
    told = []
    for channel in wrong:
        place = _place_of(rows, int(channel), own, others)
        if place is None:
            return
        told.append(place)
    shown = [f"channel {c} holds that of {place}" for c, place in zip(wrong, told, strict=True)]
    yield Fault(
        "weight",
        ", ".join(shown[:_SHOWN]) + (" and so on" if len(shown) > _SHOWN else ""),
        tuple(wrong.tolist()),
    )


def _place_of(rows: Rows, channel: int, own: FloatRows, others: Sequence[FloatRows]) -> str | None:
    """The channel whose float weight is nearest, up to a scale, where it is near enough."""
    numbers = rows.numbers[channel] - rows.zeros[channel]
    power = float(numbers @ numbers)
    if not power or len(numbers) < _ENOUGH:
        return None
    best: tuple[float, str] | None = None
    for site in others:
        if site.weight.shape[1] != len(numbers):
            continue
        scales = site.weight @ numbers / power
        off = np.sqrt(np.mean((site.weight - scales[:, None] * numbers) ** 2, axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(scales > 0, off / scales, np.inf)
        place = int(np.argmin(steps))
        name = f"channel {place}" + ("" if site.site == own.site else f" of {site.site}")
        if steps[place] < MOST_STEPS and (best is None or steps[place] < best[0]):
            best = float(steps[place]), name
    return None if best is None else best[1]


def _at_limit(rows: Rows) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (rows.numbers <= rows.low) | (rows.numbers >= rows.high)
    return found


def listed(which: npt.NDArray[Any]) -> str:
    """`channel 3`, `channels 0 to 3`, `channels 1, 5, 6 and 3 more`."""
    numbers = [int(number) for number in which]
    if len(numbers) == 1:
        return f"channel {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"channels {numbers[0]} to {numbers[-1]}"
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"channels {', '.join(map(str, numbers[:_SHOWN]))}{more}"


def _number(values: npt.NDArray[np.float64]) -> str:
    """One number where all are the same, else the first two."""
    distinct = list(dict.fromkeys(values.tolist()))
    return ", ".join(f"{value:g}" for value in distinct[:2]) + (" ..." if distinct[2:] else "")
