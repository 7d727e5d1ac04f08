"""Groups of equal size: the best for each channel by itself, and the nearest to unequal ones.

Unequal groups are what a layer learns, and what costs: ONNX Runtime and PyTorch run groups of one
size as one convolution. To give each group as many channels as any other is a transportation
problem, which is solved here as an assignment of channels to places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .blocks import Block, BlockStructure

Worth = npt.NDArray[Any]
Homes = npt.NDArray[np.int64]


def best_equal_groups(worth: Worth) -> Homes:
    """The group of each channel, all groups of one size, with the largest sum of `worth`.

    `worth` is `[channels, groups]`; what is not a number in it counts as 0. Raises UsageError where
    `groups` does not divide `channels`.
    """
    channels, groups = worth.shape
    if channels % groups:
        raise UsageError(
            f"{channels} channels cannot be shared equally among {groups} groups; "
            "take a number of groups that divides them"
        )
    # Imported here: every import of groupfx would take it in, for layers that few models have.
    from scipy.optimize import linear_sum_assignment

    size = channels // groups
    places = np.repeat(np.nan_to_num(worth.astype(np.float64)), size, axis=1)
    # Rows come back in their order.
    found: Homes = linear_sum_assignment(places, maximize=True)[1] // size
    return found


def equal_group_num(most: int, multiple: int, *channels: int) -> int:
    """The most equal groups, up to `most`, whose sizes are multiples of `multiple`.

    Each of `channels` is shared among them. 1 where there are no two such groups.
    """
    fits = (
        number
        for number in range(most, 1, -1)
        if not any(count % (number * multiple) for count in channels)
    )
    return next(fits, 1)


@dataclass(frozen=True)
class Balanced:
    """Equal groups, and what they keep: a share of the sum of `energy`, from 0 to 1."""

    structure: BlockStructure
    kept: float


def balance(energy: Worth, groups: int) -> Balanced:
    """Equal groups of filters and inputs that keep as much as they can of a masked weight.

    Filters and inputs take turns: the best groups of the one side for those of the other, until
    nothing is gained. Each turn is optimal, so that the share kept never falls; the end is a
    local optimum, the better one of those from two starts.

    Args:
        energy: `[filters, inputs]`, at least 0: what is lost with each entry, such as the sum over
            the taps of the weight's square. Entries outside the unequal groups are 0.
        groups: how many; it divides filters and inputs (UsageError).
    """
    ends = [_settle(energy, groups, start) for start in _starts(energy, groups)]
    kept, outputs, inputs = max(ends, key=lambda end: end[0])
    blocks = tuple(
        Block(_members(inputs, number), _members(outputs, number)) for number in range(groups)
    )
    total = float(energy.sum())
    structure = BlockStructure(energy.shape[1], energy.shape[0], blocks)
    return Balanced(structure, kept / total if total else 1.0)


def _starts(energy: Worth, groups: int) -> list[Homes]:
    """Homes of the filters to begin with: filters that read alike together, and apart.

    Filters in the order of what they read most are cut into equal runs. Sorting by a whole block's
    energy first keeps strong blocks whole.
    """
    filters = energy.shape[0]
    strongest = energy.argmax(axis=1)
    by_block = np.lexsort((strongest, -_block_energy(energy)))
    homes = np.arange(filters) * groups // filters
    found = []
    for order in (by_block, np.lexsort((strongest,))):
        start = np.empty(filters, dtype=np.int64)
        start[order] = homes
        found.append(start)
    return found


def _block_energy(energy: Worth) -> Worth:
    """For each filter, the energy of all filters that read the very same inputs."""
    _, label = np.unique(energy != 0, axis=0, return_inverse=True)
    label = label.reshape(-1)
    found: Worth = np.bincount(label, weights=energy.sum(axis=1))[label]
    return found


def _settle(energy: Worth, groups: int, outputs: Homes) -> tuple[float, Homes, Homes]:
    kept = -1.0
    while True:
        inputs = best_equal_groups(energy.T @ _one_hot(outputs, groups))
        outputs = best_equal_groups(energy @ _one_hot(inputs, groups))
        now = float(energy[outputs[:, None] == inputs[None, :]].sum())
        # Not `now > kept`: sums in another order differ in the last bits, and must not go on so.
        if now <= kept * (1 + 1e-9):
            return kept, outputs, inputs
        kept = now


def _one_hot(homes: Homes, groups: int) -> npt.NDArray[np.float64]:
    return np.eye(groups)[homes]


def _members(homes: Homes, number: int) -> tuple[int, ...]:
    return tuple(np.flatnonzero(homes == number).tolist())
