"""The fold of a whole graph: what each link becomes, what each parameter becomes, what it saves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .edits import Edit, edits
from .orders import Order, identity
from .problem import Axis, Link, Orders, Problem, axis_order, positions
from .solving import moved_bytes, solve
from .spelling import Spelling, spell

_REASONS = 2


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
class Fold:
    """What is to be done to a graph: links in the order of the graph, and parameters."""

    problem: Problem
    orders: Orders
    links: tuple[FoldedLink, ...]
    edits: tuple[Edit, ...]
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

    def sides(self, weight: Hashable, transposed: bool) -> tuple[Order, Order] | None:
        """The orders of the input and the output of a convolution; None if no rule knows it."""
        grouped = self.problem.grouped.get(weight)
        if grouped is not None:
            return self.order(Axis(grouped.inputs)), self.order(Axis(grouped.outputs))
        rows, columns = (self.problem.bound(weight, dim) for dim in (0, 1))
        if rows is None:
            return None
        # A depthwise one has one axis for both.
        both = self.order(rows), self.order(rows if columns is None else columns)
        return both if transposed else both[::-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON report."""
        return {
            "before": vars(self.before),
            "after": vars(self.after),
            "kept": [vars(kept) for kept in self.kept],
            "exact": self.exact,
        }

    def describe(self) -> str:
        """Such as `permutations: 34 -> 10 (2.1 MB -> 0.2 MB a sample)`."""
        before, after = self.before, self.after
        sizes = f"{in_bytes(before.moved)} -> {in_bytes(after.moved)} a sample"
        return f"permutations: {before.count} -> {after.count} ({sizes})"


def fold(problem: Problem) -> Fold:
    """Choose the orders, and say what follows from them."""
    solution = solve(problem)
    start = {root: identity(len(order)) for root, order in solution.orders.items()}
    orders = solution.orders
    if moved_bytes(problem, orders) >= moved_bytes(problem, start) and _nothing_gone(
        problem, start, orders
    ):
        orders = start
    links = tuple(_folded(problem, link, start, orders) for link in problem.links)
    return Fold(
        problem,
        orders,
        links,
        tuple(edits(problem, orders)),
        _totals(problem, start),
        _totals(problem, orders),
        tuple(_kept(problem, links)),
        solution.exact,
    )


def _nothing_gone(problem: Problem, start: Orders, orders: Orders) -> bool:
    return _totals(problem, orders).count >= _totals(problem, start).count


def _spelled(problem: Problem, link: Link, orders: Orders) -> Spelling:
    lengths = [problem.length(axis) for axis in link.sources]
    return spell(positions(problem, link, orders), lengths)


def _folded(problem: Problem, link: Link, start: Orders, orders: Orders) -> FoldedLink:
    spelling = _spelled(problem, link, orders)
    axes = (link.target, *link.sources)
    alike = all(_is(axis_order(problem, a, orders), axis_order(problem, a, start)) for a in axes)
    untouched = (spelling.nothing and not link.given) or (alike and not spelling.nothing)
    return FoldedLink(link, spelling, untouched)


def _is(first: Order, second: Order) -> bool:
    return bool((first == second).all())


def _totals(problem: Problem, orders: Orders) -> Totals:
    moving = [link for link in problem.links if _spelled(problem, link, orders).moves]
    return Totals(len(moving), sum(link.moved for link in moving))


def _kept(problem: Problem, links: Sequence[FoldedLink]) -> list[Kept]:
    moving = [folded.link for folded in links if folded.spelling.moves]
    meeting = Counter(problem.find(link.target.variable) for link in problem.links)
    near: dict[int, list[int]] = defaultdict(list)
    for link in problem.links if moving else ():
        ends = [problem.find(axis.variable) for axis in (link.target, *link.sources)]
        for end in ends:
            near[end] += ends
    return [
        Kept(
            folded.link.place.name,
            folded.spelling.describe(),
            folded.link.moved,
            _reason(problem, folded.link, meeting, near),
        )
        for folded in links
        if folded.spelling.moves
    ]


def _reason(
    problem: Problem, link: Link, meeting: Mapping[int, int], near: Mapping[int, Sequence[int]]
) -> str:
    """Why no order suits both sides of a link: what decides there, or at their neighbours."""
    ends = [problem.find(axis.variable) for axis in (*link.sources, link.target)]
    count = meeting[ends[-1]]
    if count > 1:
        return f"{count} tensors meet there, each in an order of its own"
    wishes: list[str] = []
    for end in ends:
        own = _wishes(problem, end)
        wishes += own or [wish for other in near[end] for wish in _wishes(problem, other)]
    said = list(dict.fromkeys(wishes))
    if not said:
        return "its channels meet others in another order"
    more = f" and {len(said) - _REASONS} more" if len(said) > _REASONS else ""
    return " and ".join(said[:_REASONS]) + more


def _wishes(problem: Problem, variable: int) -> list[str]:
    fixed = problem.fixed(variable)
    return [fixed] if fixed is not None else list(problem.groups(variable).values())


def in_bytes(count: int) -> str:
    """A number of bytes in the largest unit that leaves at least 0.1."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size // 10:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
