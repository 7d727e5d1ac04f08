"""Orders of channels: arrays of channel numbers, and how an order on one side wants the other.

An order `s` of a tensor x says how it is laid out: `x[:, s]`. Position i holds channel `s[i]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.intp]


def identity(channels: int) -> Order:
    """The order in which the channels were."""
    return np.arange(channels, dtype=np.intp)


def is_identity(order: Order, channels: int) -> bool:
    """Whether that is every one of so many channels, where it was."""
    return len(order) == channels and bool((order == identity(channels)).all())


def inverse(order: Order) -> Order:
    """Position of each channel: `inverse(s)[s[i]] = i`."""
    found = np.empty_like(order)
    found[order] = identity(len(order))
    return found


def expanded(order: Order, outer: int, inner: int, units: int | None = None) -> Order:
    """The order of an axis whose positions are `(outer, unit, inner)`, in the order of its units.

    Flattening [C, H, W] repeats each channel H*W times inside; flattening [H, W, C] outside. An
    order may leave some of the `units` out; without that number it has them all.
    """
    if outer == inner == 1:
        return order
    count = len(order) if units is None else units
    rows = np.arange(outer, dtype=np.intp)[:, None, None] * (count * inner)
    columns = np.arange(inner, dtype=np.intp)[None, None, :]
    return np.asarray(rows + order[None, :, None] * inner + columns, dtype=np.intp).ravel()


def first_appearance(sequence: Order, count: int) -> Order:
    """0 ... count - 1 in the order in which they appear first; those that do not, behind."""
    found, first = np.unique(sequence, return_index=True)
    seen = found[np.argsort(first, kind="stable")]
    if len(seen) == count:
        return seen
    absent = np.ones(count, dtype=bool)
    absent[seen] = False
    return np.concatenate([seen, np.flatnonzero(absent)])


def group_order(order: Order, groups: int) -> Order | None:
    """The order of the groups if each group is whole in `order`, else None."""
    blocks = (order // (len(order) // groups)).reshape(groups, -1)
    return blocks[:, 0] if bool((blocks == blocks[:, :1]).all()) else None


def in_groups(order: Order, groups: Sequence[int] | Order) -> Order:
    """The channels group by group, groups in the order given, each in the order that it has."""
    count = len(groups)
    rank = inverse(np.asarray(groups, dtype=np.intp))
    return order[np.argsort(rank[order // (len(order) // count)], kind="stable")]


def whole_groups(order: Order, groups: int) -> Order:
    """The order nearest to `order` in which groups are whole: by where each begins in it."""
    return in_groups(order, first_appearance(order // (len(order) // groups), groups))


def runs(positions: Order) -> list[tuple[int, int]]:
    """`positions` as slices `(start, stop)`, as few as there can be."""
    if not len(positions):
        return []
    cuts = np.flatnonzero(np.diff(positions) != 1) + 1
    pieces = np.split(positions, cuts)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
