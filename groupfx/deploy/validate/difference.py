"""What is kept of two sides that differ, so that the difference can be looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from .onnx_sites import Region
from .operator_checks import Apart
from .output_checks import OutputCheck
from .sides import Side
from .site_checks import SiteCheck
from .site_functions import SiteFunction

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Difference:
    """Two sides that differ, in `dtype`.

    `inputs` and `outputs` pair the reference's names with the candidate's. `runs` are the feeds of
    wrong runs, by the reference's names. `site` is the first wrong one, with what it should compute
    and where it is, `apart` a piece around a wrong operator, and `output` the worst output.
    """

    reference: Side
    candidate: Side
    dtype: torch.dtype
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    runs: Mapping[str, Feeds]
    site: tuple[SiteCheck, SiteFunction, Region] | None = None
    apart: Apart | None = None
    output: OutputCheck | None = None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A verdict that is copied or sent elsewhere leaves models and sessions behind."""
        return type(None), ()

    def own(self, feeds: Feeds) -> dict[str, Array]:
        """The feeds by the names of the candidate; what both draw has one name."""
        known = {name: other for name, other in self.inputs.items() if name in feeds}
        rest = {name: array for name, array in feeds.items() if name not in known}
        return {**{other: feeds[name] for name, other in known.items()}, **rest}
