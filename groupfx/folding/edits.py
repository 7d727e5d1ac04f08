"""What becomes of each parameter when the orders are chosen: its rows and columns, reordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..plan.channel_order import PADDING
from .orders import Order, identity, is_identity
from .problem import GroupedWeight, Orders, Problem, Reader, axis_order

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the new tensor that have the same columns of the old one."""

    rows: Order
    columns: Order


@dataclass(frozen=True)
class Edit:
    """A parameter whose elements are put in another order.

    `axes` gives the order of whole dimensions; `blocks` that of the first two, where the rows of
    each group of a convolution have columns of their own. `leaves_out` says that some are gone, or
    padding is there; those that rows which stay are left without were zero, and are `zeros`.
    """

    key: Hashable
    axes: dict[int, Order] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    leaves_out: bool = False
    zeros: tuple[Block, ...] = ()
    fill: float = 0.0

    def of(self, array: Array) -> Array:
        """The new tensor; `fill` where an order has padding."""
        for dim, order in self.axes.items():
            array = np.take(array, order, axis=dim)
            if PADDING in order:
                np.moveaxis(array, dim, 0)[order == PADDING] = self.fill
        if not self.blocks:
            return array
        return np.concatenate([array[b.rows][:, b.columns] for b in self.blocks])


def edits(problem: Problem, orders: Orders) -> list[Edit]:
    """Every parameter that changes, once."""
    axes: dict[Hashable, dict[int, Order]] = defaultdict(dict)
    lengths: dict[Hashable, dict[int, int]] = defaultdict(dict)
    for (key, dim), bound in problem.absorbed.items():
        order, length = axis_order(problem, bound.axis, orders), problem.length(bound.axis)
        lengths[key][dim] = length
        if not is_identity(order, length):
            axes[key][dim] = order
    inputs = {flow.key: flow.columns for flow in problem.flows if isinstance(flow, Reader)}
    found = []
    for key, dims in axes.items():
        others = any(len(order) != lengths[key][dim] for dim, order in dims.items())
        zeros = _zeros(dims, lengths[key], inputs[key]) if key in inputs else ()
        fill = 1.0 if key in problem.variances else 0.0
        found.append(Edit(key, dims, leaves_out=others, zeros=zeros, fill=fill))
    grouped = (_grouped(problem, weight, orders) for weight in problem.grouped.values())
    return [*found, *(edit for edit in grouped if edit is not None)]


def _zeros(dims: Mapping[int, Order], lengths: Mapping[int, int], inputs: int) -> tuple[Block, ...]:
    """Inputs that are gone, by the outputs that stay."""
    outputs = 1 - inputs
    gone = np.setdiff1d(identity(lengths[inputs]), dims.get(inputs, identity(lengths[inputs])))
    if not len(gone):
        return ()
    kept = dims.get(outputs, identity(lengths[outputs]))
    kept = kept[kept != PADDING]
    return (Block(kept, gone) if inputs == 1 else Block(gone, kept),)


def _grouped(problem: Problem, weight: GroupedWeight, orders: Orders) -> Edit | None:
    """The rows of each group in their new place, with its columns; nothing where all stay."""
    sides = [problem.find(v) for v in (weight.inputs, weight.outputs)]
    units = [problem.units(side) for side in sides]
    if all(is_identity(orders[side], count) for side, count in zip(sides, units, strict=True)):
        return None
    rows, columns = sides if weight.transposed else sides[::-1]
    height, width = problem.units(rows) // weight.groups, problem.units(columns) // weight.groups
    groups = orders[rows] // height
    # Whole groups may be gone: those that are left follow each other.
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    blocks, zeros = [], []
    for group, own, read in zip(
        groups[starts],
        np.split(orders[rows], starts[1:]),
        np.split(orders[columns], len(starts)),
        strict=True,
    ):
        kept = read - group * width
        blocks.append(Block(own, kept))
        if weight.transposed:
            zeros.append(Block(np.setdiff1d(group * height + identity(height), own), kept))
        else:
            zeros.append(Block(own, np.setdiff1d(identity(width), kept)))
    fewer = any(len(orders[side]) < count for side, count in zip(sides, units, strict=True))
    left = tuple(zero for zero in zeros if len(zero.rows) and len(zero.columns))
    return Edit(weight.key, blocks=tuple(blocks), leaves_out=fewer, zeros=left)
