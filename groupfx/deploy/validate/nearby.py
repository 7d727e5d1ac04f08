"""What is one rounding away from a run of the reference: other inputs, or another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch

from .runs import Run, perturbed
from .sides import Side, TorchSide

MOVES = 5
"""how many of each kind"""


def neighbours(
    side: Side, run: Run, dtype: torch.dtype
) -> Iterator[tuple[Side, Mapping[str, npt.NDArray[Any]]]]:
    """Sides and feeds: inputs one rounding away, and models that are, where those move nothing.

    That is so of whole numbers, and of zeros and what is small beside the biases: what normalises
    them afterwards makes a rounding as large as the output, by luck.
    """
    moving = any(array.dtype.kind == "f" for array in run.feeds.values())
    if moving:
        yield from ((side, moved) for moved in perturbed(run.feeds, MOVES))
    if isinstance(side, TorchSide) and not (moving and run.ordinary):
        yield from ((side.moved(dtype, seed), run.feeds) for seed in range(MOVES))
