"""Where a difference arises that no site explains: before which convolution, or behind the last.

Values of both sides are compared where they go into each convolution, in a run whose outputs
differ. They are held to the rule of the outputs: the candidate may be as far from float64 as the
original in the candidate's dtype is, by the same factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import kind_and_line
from ...merging.sites import noted_orders
from ...verify.yardstick import rms, rms_limit
from ..running.runtime import Session
from .onnx_sites import Region, candidate_regions
from .runs import Run
from .sides import OnnxSide, Side
from .site_functions import SiteFunction
from .torch_values import TorchValues, value_program

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Expected:
    """What goes into a site of the reference: in float64, and in the candidate's dtype."""

    wide: Array
    native: Array


def locate(
    reference: Side,
    functions: Sequence[SiteFunction],
    regions: Sequence[Region],
    found: Mapping[str, Array],
    run: Run,
    dtype: torch.dtype,
) -> str:
    """In words, where the values of the candidate leave those of the reference.

    `found` has the candidate's values at the ends of its `regions` in `run`, whose feeds are the
    reference's. Where that cannot be told, why; it never raises.
    """
    try:
        expected = _starts(reference, functions, run.feeds, dtype)
    except Exception as error:  # torch, numpy and ONNX Runtime have no error in common
        return f"at a place that cannot be told ({kind_and_line(error)})"
    right: list[str] = []
    for region in regions:
        if region.problem is not None or region.name not in expected:
            continue
        share = _too_far(expected[region.name], found[region.start], run, dtype)
        if share is not None:
            behind = f" and behind {right[-1]}" if right else ""
            return (
                f"in front of {region.name}{behind}: what goes in there is off by {share:.2g} of it"
            )
        right.append(region.name)
    if not right:
        return "at a place that cannot be told: no convolution is known on both sides"
    return f"behind the last convolution, {right[-1]}"


def _too_far(expected: Expected, found: Array, run: Run, dtype: torch.dtype) -> float | None:
    """The root-mean-square error by that of the value, where it is more than rounding."""
    if expected.wide.shape != found.shape:
        return float("inf")
    wide, native, value = (
        np.asarray(a, np.float64) for a in (expected.wide, expected.native, found)
    )
    with np.errstate(all="ignore"):
        usable = np.isfinite(wide) & np.isfinite(native)
        if not np.isfinite(value[usable]).all():
            return float("inf")
        off, own = rms((value - wide)[usable]), rms((native - wide)[usable])
        peak, size = float(np.abs(wide[usable]).max(initial=0.0)), rms(wide[usable])
    if off <= rms_limit(own, peak, dtype, ordinary=run.ordinary):
        return None
    return off / size if size > 0 else float("inf")


def _starts(
    reference: Side, functions: Sequence[SiteFunction], feeds: Feeds, dtype: torch.dtype
) -> Mapping[str, Expected]:
    """What goes into each site of the reference, by the site's name."""
    if not isinstance(reference, OnnxSide):
        values = TorchValues(reference.program, functions, noted_orders(reference.model))
        with reference.playing(feeds):
            wide = values.of(reference.given(feeds), wide=True)
        if dtype != reference.dtype:
            twin, example = reference.in_dtype(dtype), reference.example_in(dtype)
            values = TorchValues(value_program(twin, example), functions, noted_orders(twin))
        with reference.playing(feeds):
            native = values.of(reference.given_in(feeds, dtype))
        return {r.name: Expected(wide[r.start], native[r.start]) for _, r in values.pairs}
    regions, _ = candidate_regions(reference.model, functions)
    starts = {region.name: region.start for region in regions if region.problem is None}
    wanted = sorted(set(starts.values()) - set(reference.inputs))
    own = reference.own(feeds)
    session = Session(reference.model, "off", source=reference.source, also=wanted)
    plain = {**own, **session.run(own, wanted)}
    exact = {**own, **reference.inner(wanted, feeds)}
    return {name: Expected(exact[start], plain[start]) for name, start in starts.items()}
