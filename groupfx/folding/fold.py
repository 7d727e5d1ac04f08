"""The fold of a whole graph: what each link becomes, what each parameter becomes, what it saves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan.channel_order import PADDING
from .edits import Edit, edits
from .liveness import everything, live_units, with_all_numbers, without_dead
from .orders import Order, identity, is_identity
from .padding import padded
from .problem import Axis, Link, Orders, Problem, Reader, Untaken, axis_order, positions
from .solving import moved_bytes, solve
from .spelling import Spelling, spell

_REASONS = 2
_SHOWN = 3


@dataclass(frozen=True)
class FoldedLink:
    """A link, what it is now, and whether it is just what it was."""

    link: Link
    spelling: Spelling
    untouched: bool


@dataclass(frozen=True)
class Kept:
    """A permutation that stays: where, how, what it moves, and why."""

    name: str
    how: str
    moved: int
    reason: str

    def __str__(self) -> str:
        return f"kept at `{self.name}` ({self.how}, {in_bytes(self.moved)}) because {self.reason}"


@dataclass(frozen=True)
class Totals:
    """Permutations at run time, and the bytes that they move, a sample."""

    count: int
    moved: int


@dataclass(frozen=True)
class Dead:
    """Channels that nothing reads and that are gone: rows of weights, and columns of others."""

    filters: int = 0
    inputs: int = 0

    def __str__(self) -> str:
        return f"dead channels: {self.filters} filters and {self.inputs} inputs are gone"


@dataclass(frozen=True)
class Count:
    """What a node has to say now: the size at `dim` of a shape, or without it, its groups."""

    node: Hashable
    dim: int | None
    value: int


@dataclass(frozen=True)
class Fold:
    """What is to be done to a graph: links in the order of the graph, parameters, and counts.

    An order leaves out the channels that are gone.
    """

    problem: Problem
    orders: Orders
    links: tuple[FoldedLink, ...]
    edits: tuple[Edit, ...]
    counts: tuple[Count, ...]
    dead: Dead
    padding: int
    before: Totals
    after: Totals
    kept: tuple[Kept, ...]
    exact: bool

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.edits) or any(not folded.untouched for folded in self.links)

    def order(self, axis: Axis) -> Order:
        """The order of an axis now."""
        return axis_order(self.problem, axis, self.orders)

    def sides(self, weight: Hashable, transposed: bool) -> tuple[Order | None, Order | None] | None:
        """The orders of the input and the output of a convolution; None if no rule knows it.

        None for a side that is as it was.
        """
        grouped = self.problem.grouped.get(weight)
        if grouped is not None:
            return self._changed(Axis(grouped.inputs)), self._changed(Axis(grouped.outputs))
        rows, columns = (self.problem.bound(weight, dim) for dim in (0, 1))
        if rows is None:
            return None
        # A depthwise one has one axis for both.
        both = self._changed(rows), self._changed(rows if columns is None else columns)
        return both if transposed else both[::-1]

    def _changed(self, axis: Axis) -> Order | None:
        order = self.order(axis)
        return None if is_identity(order, self.problem.length(axis)) else order

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON report."""
        return {
            "before": vars(self.before),
            "after": vars(self.after),
            "dead": vars(self.dead),
            "padding": self.padding,
            "kept": [vars(kept) for kept in self.kept],
            "exact": self.exact,
        }

    def describe(self) -> str:
        """Such as `permutations: 34 -> 10 (2.1 MB -> 0.2 MB a sample)`."""
        before, after = self.before, self.after
        sizes = f"{in_bytes(before.moved)} -> {in_bytes(after.moved)} a sample"
        gone = f"; {self.dead}" if self.dead != Dead() else ""
        zeros = f"; padding: {self.padding} filters of zeros between blocks" if self.padding else ""
        return f"permutations: {before.count} -> {after.count} ({sizes}){gone}{zeros}"


def fold(problem: Problem, *, drop_dead: bool = True, align: int = 1) -> Fold:
    """Choose the orders, and say what follows from them.

    Without what nobody reads, if `drop_dead`; blocks begin at multiples of `align` where that takes
    no more than zeros in the weights around them.
    """
    live = live_units(problem) if drop_dead else everything(problem)
    small = without_dead(problem, live)
    solution = solve(small)
    start = {root: identity(len(order)) for root, order in solution.orders.items()}
    chosen = solution.orders
    if moved_bytes(small, chosen) >= moved_bytes(small, start) and _nothing_gone(
        small, start, chosen
    ):
        chosen = start
    orders = with_all_numbers(chosen, live)
    spelled = [_spelled(small, link, chosen) for link in small.links]
    if align > 1:
        blocks = padded(problem, spelled, orders, align)
        orders = blocks.orders
        spelled = [blocks.spellings.get(k, spelling) for k, spelling in enumerate(spelled)]
    links = tuple(
        _folded(problem, link, spelling, orders)
        for link, spelling in zip(problem.links, spelled, strict=True)
    )
    as_it_was = {root: identity(problem.units(root)) for root in problem.roots()}
    return Fold(
        problem,
        orders,
        links,
        tuple(edits(problem, orders)),
        tuple(_counts(problem, orders)),
        _dead(problem, orders),
        _padding(problem, orders),
        _totals(problem, as_it_was),
        _totals(small, chosen),
        (*_kept(problem, links), *map(_untaken, problem.untaken)),
        solution.exact,
    )


def _nothing_gone(problem: Problem, start: Orders, orders: Orders) -> bool:
    return _totals(problem, orders).count >= _totals(problem, start).count


def _spelled(problem: Problem, link: Link, orders: Orders) -> Spelling:
    lengths = [problem.length(axis) for axis in link.sources]
    return spell(positions(problem, link, orders), lengths)


def _folded(problem: Problem, link: Link, spelling: Spelling, orders: Orders) -> FoldedLink:
    axes = (link.target, *link.sources)
    alike = all(_as_it_was(problem, axis, orders) for axis in axes)
    untouched = (spelling.nothing and not link.given) or (alike and not spelling.nothing)
    return FoldedLink(link, spelling, untouched)


def _as_it_was(problem: Problem, axis: Axis, orders: Orders) -> bool:
    return is_identity(axis_order(problem, axis, orders), problem.length(axis))


def _counts(problem: Problem, orders: Orders) -> Iterator[Count]:
    for counted in problem.counted:
        order = axis_order(problem, counted.axis, orders)
        units = problem.length(counted.axis)
        if len(order) == units:
            continue
        value = len(order)
        if counted.groups is not None:
            value = len(np.unique(order // (units // counted.groups)))
        yield Count(counted.node, counted.dim, value)


def _dead(problem: Problem, orders: Orders) -> Dead:
    """Rows and columns that are gone; a depthwise convolution has no columns of its own."""
    sides, depthwise = _weights(problem)
    gone = [[_gone(problem, axis, orders) for axis in axes] for axes in sides]
    filters = sum(_gone(problem, axis, orders) for axis in depthwise)
    return Dead(filters + sum(rows for rows, _ in gone), sum(columns for _, columns in gone))


def _padding(problem: Problem, orders: Orders) -> int:
    """Filters of zeros that are there now."""
    sides, depthwise = _weights(problem)
    axes = [*(rows for rows, _ in sides), *depthwise]
    return sum(int((axis_order(problem, axis, orders) == PADDING).sum()) for axis in axes)


def _weights(problem: Problem) -> tuple[list[tuple[Axis, Axis]], list[Axis]]:
    """Rows and columns of each weight, and the one axis of each depthwise one."""
    sides = {f.key: (f.outputs, f.inputs) for f in problem.flows if isinstance(f, Reader)}
    sides |= {w.key: (Axis(w.outputs), Axis(w.inputs)) for w in problem.grouped.values()}
    depthwise = {c.node: c.axis for c in problem.counted if c.dim is None and c.groups is None}
    return list(sides.values()), list(depthwise.values())


def _gone(problem: Problem, axis: Axis, orders: Orders) -> int:
    return problem.length(axis) - int((axis_order(problem, axis, orders) != PADDING).sum())


def _totals(problem: Problem, orders: Orders) -> Totals:
    moving = [link for link in problem.links if _spelled(problem, link, orders).moves]
    every = [*(link.moved for link in moving), *(gather.moved for gather in problem.untaken)]
    return Totals(len(every), sum(every))


def permutations(problem: Problem) -> tuple[Link, ...]:
    """What the graph has that moves channels, in its order."""
    as_it_was = {root: identity(problem.units(root)) for root in problem.roots()}
    given = (link for link in problem.links if link.given)
    return tuple(link for link in given if _spelled(problem, link, as_it_was).moves)


def leave(problem: Problem, link: Link, reason: str) -> None:
    """Keep a gather, and what it reads and gives, as they are."""
    for axis in (link.target, *link.sources):
        problem.fix(axis.variable, reason)


def _untaken(gather: Untaken) -> Kept:
    return Kept(gather.name, "a gather", gather.moved, gather.reason)


def _kept(problem: Problem, links: Sequence[FoldedLink]) -> list[Kept]:
    moving = [folded.link for folded in links if folded.spelling.moves]
    near: dict[int, list[Link]] = defaultdict(list)
    for link in problem.links if moving else ():
        for end in dict.fromkeys(_ends(problem, link)):
            near[end].append(link)
    return [
        Kept(
            folded.link.place.name,
            folded.spelling.describe(),
            folded.link.moved,
            _reason(problem, folded.link, near),
        )
        for folded in links
        if folded.spelling.moves
    ]


def _ends(problem: Problem, link: Link) -> list[int]:
    """The roots of what a link reads and, last, of what it gives."""
    return [problem.find(axis.variable) for axis in (*link.sources, link.target)]


def _reason(problem: Problem, link: Link, near: Mapping[int, Sequence[Link]]) -> str:
    """Why no order suits both sides of a link: what decides there, or at their neighbours."""
    ends = _ends(problem, link)
    named = problem.fixed(ends[-1])
    meeting = [other for other in near[ends[-1]] if _ends(problem, other)[-1] == ends[-1]]
    others = [other for other in meeting if other is not link and other.given]
    if named is None and others:
        told = next((f" ({wish})" for end in ends[:-1] for wish in _wishes(problem, end)), "")
        return f"{_names(others)} and it write into one stream, each in an order of its own{told}"
    if len(np.unique(link.reads)) < len(link.reads):
        return "it repeats channels"
    wishes: list[str] = []
    for end in ends:
        around = (neighbour for other in near[end] for neighbour in _ends(problem, other))
        own = _wishes(problem, end)
        wishes += own or [wish for other in around for wish in _wishes(problem, other)]
    said = list(dict.fromkeys(wishes))
    if said:
        more = f" and {len(said) - _REASONS} more" if len(said) > _REASONS else ""
        return " and ".join(said[:_REASONS]) + more
    readers = [other for end in ends[:-1] for other in near[end] if other is not link]
    if not readers:
        return "what makes its channels and what reads them take orders that do not agree"
    return f"{_names([link, *readers])} read the same channels in orders that do not agree"


def _names(links: Sequence[Link]) -> str:
    names = list(dict.fromkeys(link.place.name for link in links))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _wishes(problem: Problem, variable: int) -> list[str]:
    fixed = problem.fixed(variable)
    return [fixed] if fixed is not None else list(problem.groups(variable).values())


def in_bytes(count: int) -> str:
    """A number of bytes in the largest unit that leaves at least 0.1."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size // 10:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
