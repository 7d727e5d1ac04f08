"""What becomes of each parameter when the orders are chosen: its rows and columns, reordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .orders import Order, group_order, identity
from .problem import GroupedWeight, Orders, Problem, axis_order

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
    each group of a convolution have columns of their own.
    """

    key: Hashable
    axes: dict[int, Order] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()

    def of(self, array: Array) -> Array:
        """The new tensor."""
        for dim, order in self.axes.items():
            array = np.take(array, order, axis=dim)
        if not self.blocks:
            return array
        return np.concatenate([array[b.rows][:, b.columns] for b in self.blocks])


def edits(problem: Problem, orders: Orders) -> list[Edit]:
    """Every parameter that changes, once."""
    axes: dict[Hashable, dict[int, Order]] = defaultdict(dict)
    for (key, dim), bound in problem.absorbed.items():
        order = axis_order(problem, bound.axis, orders)
        if not bool((order == identity(len(order))).all()):
            axes[key][dim] = order
    found = [Edit(key, dims) for key, dims in axes.items()]
    for weight in problem.grouped.values():
        blocks = _blocks(problem, weight, orders)
        if blocks:
            found.append(Edit(weight.key, blocks=blocks))
    return found


def _blocks(problem: Problem, weight: GroupedWeight, orders: Orders) -> tuple[Block, ...]:
    """The rows of each group in their new place, with its columns; nothing where all stay."""
    inputs = orders[problem.find(weight.inputs)]
    outputs = orders[problem.find(weight.outputs)]
    if _same(inputs) and _same(outputs):
        return ()
    rows, columns = (inputs, outputs) if weight.transposed else (outputs, inputs)
    groups = weight.groups
    moved = group_order(rows, groups)
    assert moved is not None
    size = len(columns) // groups
    return tuple(
        Block(part, own - int(group) * size)
        for part, own, group in zip(
            rows.reshape(groups, -1), columns.reshape(groups, -1), moved, strict=True
        )
    )


def _same(order: Order) -> bool:
    return bool((order == identity(len(order))).all())
