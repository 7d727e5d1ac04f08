"""Where a difference arises that no site explains: before which convolution, or behind the last.

Values of both sides are compared where they go into each convolution. They are not expected to
agree to rounding, which grows on the way, but to a share that no rounding reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import GroupfxError
from ...tracing import CannotTrace
from ...verify.yardstick import rms
from ..running.runtime import Session
from .onnx_sites import Region, candidate_regions
from .sides import OnnxSide, Side
from .site_functions import SiteFunction
from .torch_values import TorchValues

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_SHARE = {torch.float32: 1e-3, torch.float16: 0.1}


def locate(
    reference: Side,
    functions: Sequence[SiteFunction],
    regions: Sequence[Region],
    found: Mapping[str, Array],
    feeds: Feeds,
    dtype: torch.dtype,
) -> str | None:
    """In words, where the values of the candidate leave those of the reference.

    `found` has the candidate's values at the ends of its `regions`, `feeds` are the reference's
    inputs of the same run. None where the reference does not show its inner values.
    """
    try:
        expected = _starts(reference, functions, feeds)
    except (CannotTrace, GroupfxError):
        return None
    right: list[str] = []
    for region in regions:
        if region.problem is not None or region.name not in expected:
            continue
        share = _distance(expected[region.name], found[region.start])
        if share > _SHARE.get(dtype, _SHARE[torch.float32]):
            behind = f" and behind {right[-1]}" if right else ""
            return f"in front of {region.name}{behind}: what goes in there is off by {share:.1%}"
        right.append(region.name)
    return f"behind the last convolution, {right[-1]}" if right else None


def _starts(
    reference: Side, functions: Sequence[SiteFunction], feeds: Feeds
) -> Mapping[str, Array]:
    """What goes into each site of the reference, by the site's name."""
    if not isinstance(reference, OnnxSide):
        values = TorchValues(reference.model, reference.example, functions)
        taken = values.of(reference.given(feeds))
        return {region.name: taken[region.start] for _, region in values.pairs}
    regions, _ = candidate_regions(reference.model, functions)
    wanted = sorted({r.start for r in regions if r.problem is None} - set(reference.inputs))
    session = Session(reference.model, "off", source=reference.source, also=wanted)
    taken = {**feeds, **session.run(feeds, wanted)}
    return {region.name: taken[region.start] for region in regions if region.problem is None}


def _distance(expected: Array, found: Array) -> float:
    """Root mean square of the difference by that of the value; infinite for another shape."""
    if expected.shape != found.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    size, off = rms(wide), rms(found.astype(np.float64) - wide)
    if off == 0:
        return 0.0
    return off / size if size > 0 else float("inf")
