"""One problem for a whole graph: which tensors must have their channels in one order.

A *variable* stands for the order of `units` channels. All axes that must agree share one (they are
united): a residual stream, a BatchNorm's four vectors, axis 0 of a weight and what it puts out. A
*link* stands where an order may change: a gather, a slice, a concatenation that the graph has, or
the input of an operation that does not take every order. It costs the bytes that it moves, unless
the orders on its two sides make it nothing, a slice, or a plain concatenation.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from .orders import Order, expanded, first_appearance, group_order, identity, inverse

Mask = npt.NDArray[np.bool_]
Nonzero = Callable[[], Mask]
"""Gives which of a weight's first two dimensions hold anything but zeros, `[rows, columns]`."""


@dataclass(frozen=True)
class Axis:
    """An axis of `outer * units * inner` positions, whose units are in the order of a variable."""

    variable: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Place:
    """Where a link stands: in front of input `slot` of a node, or (None) in place of the node.

    Where a node gives several values, `output` says which one the link gives. `through` is what
    the node reads now in place of the link's source: what is between the two goes.
    """

    node: Hashable
    slot: int | None
    name: str
    output: int = 0
    through: Hashable = None


@dataclass(frozen=True)
class Link:
    """`target[j] = concatenated sources[reads[j]]` along axis `dim`, over channels as they were.

    `moved` is how many bytes a sample the target has, `values` are the tensors that are read, and
    `gives` is the one that the graph has it for.
    """

    place: Place
    target: Axis
    sources: tuple[Axis, ...]
    values: tuple[Hashable, ...]
    reads: Order = field(compare=False)
    dim: int = 1
    moved: int = 0
    gives: Hashable = None

    @property
    def seen(self) -> Hashable:
        """All that the orders around it depend on: not what it costs."""
        ends = (self.target, self.sources, self.values)
        return self.place, *ends, tuple(self.reads.tolist()), self.dim

    @property
    def given(self) -> bool:
        """Whether the graph has it already, and not only room for it."""
        return self.place.slot is None or self.place.through is not None


@dataclass(frozen=True)
class Untaken:
    """A gather of channels that no rule takes, and why; `moved` bytes a sample."""

    name: str
    reason: str
    moved: int


@dataclass(frozen=True)
class Absorbed:
    """Axis `dim` of the parameter `key` is in the order of `axis`."""

    key: Hashable
    dim: int
    axis: Axis


@dataclass(frozen=True)
class GroupedWeight:
    """The weight of a grouped convolution from `inputs` to `outputs`, both whole axes of groups.

    `[outputs, inputs / groups, ...]`, or where `transposed` `[inputs, outputs / groups, ...]`.
    """

    key: Hashable
    inputs: int
    outputs: int
    groups: int
    transposed: bool = False
    nonzero: Nonzero | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Reader:
    """A dense weight from `inputs` (its dimension `columns`) to `outputs` (the other of two).

    An input whose column is zero is not read, and neither is one that only unread rows read.
    """

    key: Hashable
    inputs: Axis
    outputs: Axis
    columns: int
    nonzero: Nonzero | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Counted:
    """A number that a node says beside its tensors, and that follows the channels that are left.

    It is the length of `axis`, at dimension `dim` of a shape; without `dim`, the number of groups
    of a convolution: as many as `axis` has units where `groups` is None, else as many as are left
    of `groups`.
    """

    node: Hashable
    axis: Axis
    dim: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Together:
    """The groups of two variables are in the same order."""

    first: int
    second: int
    groups: int


class Problem:
    """Variables, what constrains them, links between them, and the parameters that follow them."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.absorbed: dict[tuple[Hashable, int], Absorbed] = {}
        self.grouped: dict[Hashable, GroupedWeight] = {}
        self.pairs: list[Together] = []
        self.counted: list[Counted] = []
        self.untaken: list[Untaken] = []
        # Parameters that are divided by.
        self.variances: set[Hashable] = set()
        # What is read of what, in the order of the graph.
        self.flows: list[Link | Reader | GroupedWeight] = []
        self._kept: dict[int, str] = {}
        self._unpadded: list[int] = []
        self._units: list[int] = []
        self._parents: list[int] = []
        self._fixed: dict[int, str] = {}
        self._groups: dict[int, dict[int, str]] = defaultdict(dict)

    # Variables

    def variable(self, units: int, fixed: str | None = None) -> int:
        """A new order of `units` channels; `fixed` says why it must stay as it is."""
        self._units.append(units)
        self._parents.append(len(self._parents))
        made = len(self._parents) - 1
        if fixed is not None:
            self._fixed[made] = fixed
        return made

    def find(self, variable: int) -> int:
        """The one that stands for all that are united with `variable`."""
        root = variable
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[variable] != root:
            self._parents[variable], variable = root, self._parents[variable]
        return root

    def units(self, variable: int) -> int:
        """How many channels a variable orders."""
        return self._units[variable]

    def length(self, axis: Axis) -> int:
        """How many positions an axis has."""
        return axis.outer * self._units[axis.variable] * axis.inner

    @property
    def size(self) -> int:
        """How many variables there are."""
        return len(self._units)

    def units_since(self, first: int) -> tuple[int, ...]:
        """How many channels each variable from number `first` on orders."""
        return tuple(self._units[first:])

    def roots(self) -> list[int]:
        """A variable of each class, in the order in which they were made."""
        return [v for v, parent in enumerate(self._parents) if v == parent]

    def unite(self, first: int, second: int) -> None:
        """Give two variables one order, under what constrains either."""
        keep, gone = self.find(first), self.find(second)
        if keep == gone:
            return
        if self._units[keep] != self._units[gone]:
            raise ValueError(f"{self._units[keep]} channels cannot agree with {self._units[gone]}")
        if keep > gone:
            keep, gone = gone, keep
        self._parents[gone] = keep
        if gone in self._fixed:
            self._fixed.setdefault(keep, self._fixed.pop(gone))
        if gone in self._kept:
            self._kept.setdefault(keep, self._kept.pop(gone))
        self._groups[keep].update(self._groups.pop(gone, {}))

    def fix(self, variable: int, reason: str) -> None:
        """Leave the order of a variable as it is."""
        self._fixed.setdefault(self.find(variable), reason)

    def keep_all(self, variable: int, reason: str) -> None:
        """Leave no channel of a variable out, in whatever order they are."""
        self._kept.setdefault(self.find(variable), reason)

    def keep_unpadded(self, variable: int) -> None:
        """Put no zeros among the channels of a variable: they would become infinite somewhere."""
        self._unpadded.append(variable)

    def unpadded(self, variable: int) -> bool:
        """Whether no zeros may stand among the channels of a variable."""
        return self.find(variable) in map(self.find, self._unpadded)

    def whole(self, variable: int) -> bool:
        """Whether every channel of a variable must stay."""
        root = self.find(variable)
        return root in self._fixed or root in self._kept

    def keep_groups(self, variable: int, groups: int, reason: str) -> None:
        """Allow orders only in which each of so many equal groups is whole."""
        self._groups[self.find(variable)].setdefault(groups, reason)

    def together(self, first: int, second: int, groups: int, reason: str) -> None:
        """Keep groups whole on both sides, and in the same order."""
        for variable in (first, second):
            if self.units(variable) > groups:
                self.keep_groups(variable, groups, reason)
        self.pairs.append(Together(first, second, groups))

    def fixed(self, variable: int) -> str | None:
        """Why a variable must stay as it is, or None."""
        return self._fixed.get(self.find(variable))

    def groups(self, variable: int) -> Mapping[int, str]:
        """The numbers of groups that must be whole, each with the reason."""
        return self._groups.get(self.find(variable), {})

    def constrained(self, variable: int) -> bool:
        """Whether some orders of a variable are not allowed."""
        return self.fixed(variable) is not None or bool(self.groups(variable))

    def allows(self, variable: int, order: Order) -> bool:
        """Whether a variable may have this order, as far as it alone decides."""
        if self.fixed(variable) is not None:
            return bool((order == identity(len(order))).all())
        return all(group_order(order, groups) is not None for groups in self.groups(variable))

    def resized(self, units: Mapping[int, int], groups: Mapping[int, Mapping[int, int]]) -> Problem:
        """A copy whose roots have so many `units`, and other numbers of whole groups.

        `groups` says, by root, how many groups are left of how many. Links stay as they are.
        """
        made = copy.copy(self)
        made._units = [units[self.find(v)] for v in range(len(self._units))]
        made._groups, made.pairs = defaultdict(dict), list(self.pairs)
        for root, reasons in self._groups.items():
            left = groups.get(root, {})
            made._groups[root] = {left.get(g, g): reason for g, reason in reasons.items()}
        made.pairs = [
            replace(
                pair, groups=groups.get(self.find(pair.first), {}).get(pair.groups, pair.groups)
            )
            for pair in self.pairs
        ]
        return made

    def alike(self, other: Problem) -> bool:
        """Whether two problems have the same solutions, whatever these cost."""
        mine, its = (
            (
                p._units, p._parents, p._fixed.keys(), {v: set(g) for v, g in p._groups.items()},
                p.pairs, p.absorbed, p.grouped, [link.seen for link in p.links],
            )
            for p in (self, other)
        )  # fmt: skip
        return mine == its

    # Links and parameters

    def link(self, link: Link) -> None:
        """Add a place where an order may change."""
        self.links.append(link)
        self.flows.append(link)

    def leave_out(self, links: Sequence[Link]) -> None:
        """Take links away again."""
        gone = set(map(id, links))
        self.links = [link for link in self.links if id(link) not in gone]
        self.flows = [flow for flow in self.flows if id(flow) not in gone]

    def read(self, reader: Reader) -> None:
        """Add a dense weight, which may read some of its inputs only."""
        self.flows.append(reader)

    def group(self, weight: GroupedWeight) -> None:
        """Add the weight of a grouped convolution."""
        self.grouped[weight.key] = weight
        self.flows.append(weight)

    def absorb(self, key: Hashable, dim: int, axis: Axis) -> None:
        """Bind an axis of a parameter; it must be free or bound to a like axis."""
        known = self.absorbed.setdefault((key, dim), Absorbed(key, dim, axis))
        self.unite(known.axis.variable, axis.variable)

    def bound(self, key: Hashable, dim: int) -> Axis | None:
        """What an axis of a parameter follows, if it follows anything yet."""
        known = self.absorbed.get((key, dim))
        return None if known is None else known.axis


Orders = Mapping[int, Order]
"""An order for each root of a problem."""


def axis_order(problem: Problem, axis: Axis, orders: Orders) -> Order:
    """The order of all positions of an axis."""
    order = orders[problem.find(axis.variable)]
    return expanded(order, axis.outer, axis.inner, problem.units(axis.variable))


def positions(problem: Problem, link: Link, orders: Orders) -> Order:
    """Where, in the concatenated sources as they are laid out, each target position reads."""
    reads = link.reads[axis_order(problem, link.target, orders)]
    return _laid_out(problem, link, orders)[reads]


def wanted_by_sources(problem: Problem, link: Link, orders: Orders) -> Order:
    """The order of the target's units under which `link` moves the least, given its sources'."""
    sequence = np.argsort(_laid_out(problem, link, orders)[link.reads], kind="stable")
    units = _units(problem, link.target)
    return first_appearance((sequence // link.target.inner) % units, units)


def wanted_by_target(problem: Problem, link: Link, source: int, order: Order) -> Order:
    """The order of the units of source number `source` in which a target in `order` reads them."""
    axis = link.sources[source]
    before = sum(problem.length(other) for other in link.sources[:source])
    read = link.reads[expanded(order, link.target.outer, link.target.inner)] - before
    own = read[(read >= 0) & (read < problem.length(axis))]
    units = _units(problem, axis)
    return first_appearance((own // axis.inner) % units, units)


def _laid_out(problem: Problem, link: Link, orders: Orders) -> Order:
    """Where each channel of the concatenated sources lies."""
    where, offset = [], 0
    for axis in link.sources:
        order = axis_order(problem, axis, orders)
        where.append(inverse(order) + offset)
        offset += len(order)
    return np.concatenate(where)


def _units(problem: Problem, axis: Axis) -> int:
    return problem.units(axis.variable)
