"""Blocks of channels that begin and end at multiples of a number, with channels of zeros between.

    y = conv_1(x)[:, :24],  blocks [0, 11) and [11, 24)
    y = [ block 0 | 5 zeros | block 1 | 3 zeros ]       blocks [0, 16) and [16, 32), align = 16

Whoever makes the channels gets rows of zeros (a filter, a BatchNorm with weight and bias 0, mean 0
and variance 1, a depthwise filter), and whoever reads a block columns of zeros. What lies between
may make another number of a zero, such as a sigmoid does, as long as it is finite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..plan.channel_order import PADDING
from ..plan.channels import Slice
from .orders import Order
from .problem import Link, Orders, Problem
from .spelling import Piece, Spelling


@dataclass(frozen=True)
class Padded:
    """Orders with `PADDING` in them, by root, and how links are spelled that read a block."""

    orders: Orders
    spellings: Mapping[int, Spelling]
    """by the number of the link"""


def padded(problem: Problem, spellings: Sequence[Spelling], orders: Orders, align: int) -> Padded:
    """`orders` with the blocks of each free tensor padded to multiples of `align`.

    A tensor has blocks where links read slices of it. It is left as it is where something else is
    read of it, where its order is not free, or where a zero could become infinite on the way.
    """
    found, spelled = dict(orders), dict[int, Spelling]()
    work = _Streams(problem, spellings)
    for members, links in work.streams():
        cuts = _cuts(spellings, links, len(orders[members[0]]))
        if not all(map(work.free, members)) or len(links) < len(_PAIR):
            continue
        places, total = _places(cuts, align)
        if total == len(orders[members[0]]):
            continue
        for root in members:
            found[root] = _spread(orders[root], places, total)
        stream = found[members[0]]
        for number in links:
            part = spellings[number].pieces[0].part
            assert part is not None
            start, own = (
                int(places[part.start]),
                problem.find(problem.links[number].target.variable),
            )
            stop = int(places[part.stop - 1]) + 1
            if work.alone(own):
                stop = start + _next(cuts, places, part.stop, total) - start
                kept = orders[own]
                found[own] = _like(stream[start:stop], kept)
            spelled[number] = Spelling((Piece(0, Slice(start, stop)),), None, moves=False)
    return Padded(found, spelled)


_PAIR = (0, 1)


def _cuts(spellings: Sequence[Spelling], links: Sequence[int], length: int) -> list[int]:
    """Where blocks begin and end."""
    parts = [spellings[number].pieces[0].part for number in links]
    ends = {end for part in parts if part is not None for end in (part.start, part.stop)}
    return sorted({0, length, *ends})


def _places(cuts: Sequence[int], align: int) -> tuple[Order, int]:
    """The new position of each channel, and how many positions there are."""
    places, start = [], 0
    for first, last in pairwise(cuts):
        places.append(np.arange(last - first, dtype=np.intp) + start)
        start += -(-(last - first) // align) * align
    return np.concatenate(places), start


def _spread(order: Order, places: Order, total: int) -> Order:
    made = np.full(total, PADDING, dtype=np.intp)
    made[places] = order
    return made


def _next(cuts: Sequence[int], places: Order, stop: int, total: int) -> int:
    """Where the block behind position `stop` begins now."""
    return total if stop == cuts[-1] else int(places[stop])


def _like(stream: Order, order: Order) -> Order:
    """`order` with padding where `stream` has it."""
    made = stream.copy()
    made[stream != PADDING] = order
    return made


class _Streams:
    """Tensors with the same channels in the same order, and the slices that are read of them."""

    def __init__(self, problem: Problem, spellings: Sequence[Spelling]) -> None:
        self.problem = problem
        self._parents = {root: root for root in problem.roots()}
        self._slices: dict[int, list[int]] = defaultdict(list)
        self._other: set[int] = set()
        self._touched: dict[int, int] = defaultdict(int)
        for number, link in enumerate(problem.links):
            self._note(number, link, spellings[number])
        for bound in problem.absorbed.values():
            if (bound.axis.outer, bound.axis.inner) != (1, 1):
                self._other.add(problem.find(bound.axis.variable))

    def _note(self, number: int, link: Link, spelling: Spelling) -> None:
        ends = [self.problem.find(axis.variable) for axis in (link.target, *link.sources)]
        for end in ends:
            self._touched[end] += 1
        plain = all((axis.outer, axis.inner) == (1, 1) for axis in (link.target, *link.sources))
        if spelling.nothing and plain:
            self._parents[self._top(ends[0])] = self._top(ends[1])
        elif plain and len(ends) == len(_PAIR) and not spelling.moves and spelling.gather is None:
            self._slices[ends[1]].append(number)
        else:
            self._other.update(ends)

    def _top(self, root: int) -> int:
        while self._parents[root] != root:
            root = self._parents[root]
        return root

    def streams(self) -> list[tuple[list[int], list[int]]]:
        """The roots of each, and the numbers of the links that read slices of it."""
        members: dict[int, list[int]] = defaultdict(list)
        for root in self._parents:
            members[self._top(root)].append(root)
        found = []
        for roots in members.values():
            links = [number for root in roots for number in self._slices.get(root, ())]
            found.append((roots, links))
        return found

    def free(self, root: int) -> bool:
        """Whether channels of zeros may stand among those of a tensor that is made here."""
        return self._takes_zeros(root) and root not in self._sliced

    def alone(self, root: int) -> bool:
        """Whether what a slice gives goes into weights alone, which can have columns of zeros."""
        return self._takes_zeros(root) and self._touched[root] == 1

    def _takes_zeros(self, root: int) -> bool:
        problem = self.problem
        bad = root in self._other or problem.whole(root) or problem.unpadded(root)
        return not bad and not problem.groups(root)

    @property
    def _sliced(self) -> set[int]:
        numbers = (number for found in self._slices.values() for number in found)
        return {self.problem.find(self.problem.links[n].target.variable) for n in numbers}
