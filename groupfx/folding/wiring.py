"""What the rules speak of: the operations of a graph, its tensors, and the axis with channels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .layouts import UNITS, Layout, units
from .orders import Order, identity
from .problem import Axis, Counted, Link, Nonzero, Place, Problem, Reader

GROUPED = -1
"""In place of a dimension: the two of a grouped convolution's weight, which follow together."""


@dataclass(frozen=True)
class Parameter:
    """A stored tensor; `fixed` says why it must stay as it is.

    `axes` is how many of its first dimensions may be reordered, None for all. Where it is a
    transpose of what is stored under `key`, `dims` says which dimension of that each one is; where
    it is dequantized, `along` has the scales and zero points, and the dimension each goes along.
    `nonzero` reads its numbers, as they are stored; without it, none counts as zero.
    """

    key: Hashable
    shape: tuple[int, ...]
    fixed: str | None = None
    axes: int | None = None
    dims: tuple[int, ...] | None = None
    along: tuple[tuple[Parameter, int], ...] = ()
    nonzero: Nonzero | None = field(default=None, compare=False, repr=False)

    def stored(self, dim: int) -> list[tuple[Parameter, int]]:
        """What is stored of dimension `dim`: of the tensor itself, and of what goes along."""
        own = replace(self, dims=None, along=()), dim if self.dims is None else self.dims[dim]
        return [own, *((other, 0) for other, at in self.along if at == dim)]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, `[batch, ...]`; `itemsize` in bytes, read at `uses` places."""

    key: Hashable
    shape: tuple[int, ...]
    itemsize: int = 4
    uses: int = 1


@dataclass(frozen=True)
class Operation:
    """A node of a graph in the words of the rules.

    `inputs` gives, by slot, tensors and parameters; `numbers` whatever else a rule needs.
    """

    rule: str
    node: Hashable
    name: str
    inputs: Mapping[int, Value | Parameter]
    outputs: tuple[Value, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[int, Value]:
        """The inputs that are tensors of the graph."""
        return {slot: v for slot, v in self.inputs.items() if isinstance(v, Value)}

    @property
    def parameters(self) -> list[Parameter]:
        """The inputs that are stored tensors."""
        return [held for held in self.inputs.values() if isinstance(held, Parameter)]

    def parameter(self, role: str) -> Parameter | None:
        """The parameter that `numbers` has under `role`."""
        found = self.numbers.get(role)
        return found if isinstance(found, Parameter) else None


@dataclass(frozen=True)
class Tracked:
    """A tensor whose dimension `dim` is in the order of `axis`."""

    dim: int
    axis: Axis


@dataclass(frozen=True)
class Natural:
    """A tensor as it was; `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Viewed:
    """A tensor that is another shape of `base`, whose channels it has in several dimensions.

    `state` is that of the base as it was read, at `place`; `layout` says what became of its
    dimensions. Where channels were picked, those of the layout count from number `first`.
    """

    base: Value
    state: Tracked
    layout: Layout
    place: Place
    first: int = 0

    @property
    def factors(self) -> tuple[int, int] | None:
        """Groups and channels in each, where the channels are in just these two dimensions."""
        atoms = sorted(units(self.layout), key=lambda atom: -atom.stride)
        dims = [dim for dim in self.layout if any(atom in dim for atom in atoms)]
        if len(atoms) != 2 or len(dims) != 2 or self.first:
            return None
        (groups, within), (inner, step) = ((atom.size, atom.stride) for atom in atoms)
        return (groups, inner) if step == 1 and within == inner else None


@dataclass(frozen=True)
class Factored:
    """A tensor with `groups` in one dimension and the channels of each in another.

    They are those of `axis`, in its order, in which each group is whole; `heads` is the variable
    of the order of the groups.
    """

    axis: Axis
    groups: int
    heads: int
    layout: Layout

    def dim(self, *, heads: bool) -> int:
        """The dimension of the groups, or that of the channels in each."""
        atoms = units(self.layout)
        wanted = max(atoms, key=lambda a: a.stride) if heads else min(atoms, key=lambda a: a.stride)
        return next(k for k, dim in enumerate(self.layout) if wanted in dim)


@dataclass(frozen=True)
class Chosen:
    """Channels `reads` of `value`, whose state is `state`."""

    value: Value
    state: Tracked
    reads: Order


State = Tracked | Natural | Viewed | Factored


class Graph:
    """The problem of a graph while its operations are read, one after another."""

    def __init__(self) -> None:
        self.problem = Problem()
        self._states: dict[Hashable, State] = {}
        self._fixed: dict[tuple[Hashable, int], Axis] = {}
        self._passed_over: set[Hashable] = set()
        self._read_so_far = (0, 0, 0)
        self._chosen: dict[Hashable, Chosen] = {}
        self._leads: dict[tuple[Place, int], Axis] = {}
        self._required: dict[tuple[Place, int], Axis] = {}
        self._led: dict[Place, Axis] = {}
        self._heads: dict[tuple[int, int], int] = {}
        self._views: dict[Hashable, tuple[Viewed, ...]] = {}
        self._followed: dict[Hashable, set[int]] = defaultdict(set)
        self._uses: dict[Hashable, list[frozenset[int]]] = defaultdict(list)

    # Tensors

    def set(self, value: Value, state: State) -> None:
        """Write down what is known of a tensor."""
        self._states[value.key] = state

    def state(self, value: Value) -> State:
        """What is known of a tensor."""
        return self._states.get(value.key, Natural("an input of the model"))

    def fresh(self, units: int, outer: int = 1, inner: int = 1) -> Axis:
        """An axis in an order of its own."""
        return Axis(self.problem.variable(units), outer, inner)

    def read(self, op: Operation, slot: int, dim: int) -> Tracked:
        """Input `slot` of `op` as a tensor with channels in dimension `dim`."""
        value = op.values[slot]
        state = self.state(value)
        if isinstance(state, Tracked) and state.dim == dim:
            return state
        reason = self.pin(op, slot)
        return Tracked(dim, self.natural(value, dim, reason))

    def natural(self, value: Value, dim: int, reason: str) -> Axis:
        """The axis of a tensor that is as it was."""
        key = (value.key, dim)
        if key not in self._fixed:
            self._fixed[key] = Axis(self.problem.variable(value.shape[dim], reason))
        return self._fixed[key]

    def pin(self, op: Operation, slot: int) -> str:
        """Give `op` input `slot` as it was; returns why its channels are where they are."""
        value = op.values[slot]
        state = self.state(value)
        if isinstance(state, Natural):
            return state.reason
        reason: str = op.numbers.get("why", f"{op.name} takes no other order")
        if isinstance(state, Viewed):
            self.problem.fix(self.led(state).variable, reason)
        elif isinstance(state, Factored):
            self.problem.fix(state.axis.variable, reason)
        else:
            self._require(Place(op.node, slot, op.name), value, state, reason)
        return reason

    def led(self, view: Viewed) -> Axis:
        """The axis of a tensor that is seen in another shape, in front of that: one for all."""
        if view.place not in self._led:
            source = view.state.axis
            made = self.fresh(self.problem.units(source.variable), source.outer, source.inner)
            self._led[view.place] = made
            for axis in (source, made):
                self.problem.keep_all(axis.variable, f"{view.place.name} takes all of them")
            self._lead(view.place, view.base, view.state, made)
        return self._led[view.place]

    def factored(self, view: Viewed) -> Factored | None:
        """A view as groups and the channels in each, which are whole from now on."""
        factors = view.factors
        if factors is None or math.prod(factors) != self.problem.length(view.state.axis):
            return None
        axis, groups = self.led(view), factors[0]
        key = (axis.variable, groups)
        if key not in self._heads:
            self._heads[key] = self.groups_of(axis, groups, f"the groups of {view.place.name}")
        return Factored(axis, groups, self._heads[key], view.layout)

    def groups_of(self, axis: Axis, groups: int, reason: str) -> int:
        """A variable for the order of the groups of `axis`, which are whole from now on."""
        made = self.problem.variable(groups)
        self.problem.together(axis.variable, made, groups, reason)
        for variable in (axis.variable, made):
            self.problem.keep_all(variable, reason)
        return made

    def views(self, value: Value) -> tuple[Viewed, ...]:
        """A tensor as it was, as another shape of those that it was made of."""
        return self._views.get(value.key, ())

    def see(self, value: Value, views: Sequence[Viewed]) -> None:
        """Write down of which tensors one that is as it was is another shape."""
        self._views[value.key] = tuple(views)

    def _require(self, place: Place, value: Value, state: Tracked, reason: str) -> None:
        key = place, state.dim
        if self._required.get(key) != self._leads.get(key, state.axis):
            self._required[key] = Axis(self.problem.variable(value.shape[state.dim], reason))
            self._lead(place, value, state, self._required[key])

    def lead(self, op: Operation, slot: int, state: Tracked, axis: Axis) -> Tracked:
        """Input `slot`, in the order of `axis`, by a gather where it is in another."""
        if not self.same(state.axis, axis):
            self._lead(Place(op.node, slot, op.name), op.values[slot], state, axis)
        return Tracked(state.dim, axis)

    def _lead(self, place: Place, value: Value, state: Tracked, axis: Axis) -> None:
        # A second link at one place reads what the first one gives.
        key = place, state.dim
        source = self._leads.get(key, state.axis)
        self._leads[key] = axis
        reads = identity(self.problem.length(axis))
        self.problem.link(
            Link(place, axis, (source,), (value.key,), reads, state.dim, moved(value))
        )

    def same(self, first: Axis, second: Axis) -> bool:
        """Whether two axes are in one order already."""
        find = self.problem.find
        alike = (first.outer, first.inner) == (second.outer, second.inner)
        return alike and find(first.variable) == find(second.variable)

    def choose(
        self,
        op: Operation,
        output: int,
        dim: int,
        sources: Sequence[tuple[Value, Tracked]],
        reads: Order,
        axis: Axis | None = None,
        through: Value | None = None,
    ) -> None:
        """Output number `output` is the concatenated sources at `reads`, in an order of its own.

        With `through` they are what the node reads in place of that; it reads the first input only.
        """
        value = op.outputs[output]
        if not value.uses:
            return
        axis = axis or self.fresh(len(reads))
        place = Place(op.node, None, op.name, output)
        if through is not None:
            place = Place(op.node, 0, op.name, output, through.key)
        self.problem.link(
            Link(
                place,
                axis,
                tuple(state.axis for _, state in sources),
                tuple(source.key for source, _ in sources),
                np.asarray(reads, dtype=np.intp),
                dim,
                moved(value),
                value.key,
            )
        )
        self.set(value, Tracked(dim, axis))
        if through is None and len(sources) == 1:
            self._chosen[value.key] = Chosen(*sources[0], reads)

    def source(self, value: Value) -> Chosen | None:
        """What a tensor was read of, if it was read of one."""
        return self._chosen.get(value.key)

    def pass_over(self, value: Value) -> None:
        """Note that who reads `value` reads what that was read of: it goes if nobody else does."""
        if value.uses == 1:
            self._passed_over.add(value.key)

    # Channels that may go

    def keep_all(self, op: Operation) -> None:
        """Leave out no channel of what goes into `op` and comes out of it."""
        for value in (*op.values.values(), *op.outputs):
            state = self.state(value)
            tracked = state.state if isinstance(state, Viewed) else state
            if isinstance(tracked, (Tracked, Factored)):
                self.problem.keep_all(tracked.axis.variable, f"{op.name} takes all of them")

    def keep_unpadded(self, op: Operation) -> None:
        """Put no zeros among the channels of what goes into `op`."""
        for value in op.values.values():
            state = self.state(value)
            if isinstance(state, Tracked):
                self.problem.keep_unpadded(state.axis.variable)

    def weigh(self, weight: Parameter, columns: int, made: Axis) -> None:
        """Note that channels are read through columns of `weight`, whose rows make `made`."""
        (stored, dim), *along = weight.stored(columns)
        bound = self.problem.bound(stored.key, dim)
        assert bound is not None
        nonzero = None if weight.along or along else weight.nonzero
        self.problem.read(Reader(stored.key, bound, made, dim, nonzero))

    def count(self, op: Operation, state: Tracked) -> None:
        """Note that `op` says the size of its result, `state`, where it does.

        `numbers["sizes"]` has a size for each dimension, None for one that it computes.
        """
        sizes = op.numbers.get("sizes")
        if sizes is None or not 0 <= state.dim < len(sizes):
            return
        if sizes[state.dim] is None:
            self.problem.keep_all(state.axis.variable, f"{op.name} computes a size")
        else:
            self.problem.counted.append(Counted(op.node, state.axis, dim=state.dim))

    # Parameters

    def bind(
        self,
        op: Operation,
        slot: int,
        state: Tracked,
        parameters: Sequence[tuple[Parameter | None, int]],
    ) -> Tracked:
        """Input `slot` in the order that axes of `parameters` follow; they follow it if they can.

        A parameter that is used elsewhere, or may not change, decides.
        """
        given = [(p, dim) for p, dim in parameters if p is not None]
        for parameter, dim in given:
            for stored, at in parameter.stored(dim):
                bound = self._bound(stored, at)
                if bound is not None and not self.same(bound, state.axis):
                    state = self.agree(op, slot, state, bound)
        for parameter, dim in given:
            self.follow(parameter, dim, state.axis)
        return state

    def agree(self, op: Operation, slot: int, state: Tracked, axis: Axis) -> Tracked:
        """Input `slot` in the order of `axis`: one order for both where nothing constrains them."""
        if self.same(state.axis, axis):
            return state
        alike = (state.axis.outer, state.axis.inner) == (axis.outer, axis.inner)
        constrained = self.problem.constrained
        if alike and not (constrained(state.axis.variable) or constrained(axis.variable)):
            self.problem.unite(axis.variable, state.axis.variable)
            return Tracked(state.dim, axis)
        return self.lead(op, slot, state, axis)

    def follow(self, parameter: Parameter, dim: int, axis: Axis) -> None:
        """Let an axis of a parameter follow `axis`, and whatever followed it before.

        One that must stay as it is fixes `axis`.
        """
        for stored, at in parameter.stored(dim):
            self._follow(stored, at, axis)

    def _follow(self, parameter: Parameter, dim: int, axis: Axis) -> None:
        self._followed[parameter.key].add(dim)
        bound = self.problem.bound(parameter.key, dim)
        if parameter.fixed is not None:
            self.problem.fix(axis.variable, parameter.fixed)
        if parameter.axes is not None and dim >= parameter.axes:
            self.problem.fix(axis.variable, f"{parameter.key} has its channels in dimension {dim}")
        if bound is None or (bound.outer, bound.inner) == (axis.outer, axis.inner):
            self.problem.absorb(parameter.key, dim, axis)
            return
        reason = f"{parameter.key} is used with its channels laid out in two ways"
        self.problem.fix(bound.variable, reason)
        self.problem.fix(axis.variable, reason)

    def group(self, weight: Parameter) -> None:
        """Note that a grouped convolution uses `weight`, of which two axes follow in groups."""
        self._followed[weight.key].add(GROUPED)

    def close(self, op: Operation) -> None:
        """End the reading of `op`: what each of its parameters follows in it."""
        for held in (*op.inputs.values(), *op.numbers.values()):
            for used in (held, *(p for p, _ in held.along)) if isinstance(held, Parameter) else ():
                self._uses[used.key].append(frozenset(self._followed.get(used.key, ())))
        self._followed.clear()

    def step(self, op: Operation) -> Hashable:
        """What reading `op` has added, but for sizes of which no order depends.

        Two readings of a graph, of inputs of two sizes, add the same where its rule is that of
        both.
        """
        since, problem = self._read_so_far, self.problem
        self._read_so_far = (len(problem.links), len(problem.absorbed), problem.size)
        links = tuple(link.seen for link in problem.links[since[0] :])
        bound = tuple(problem.absorbed.values())[since[1] :]
        states = tuple(_without_sizes(self.state(value)) for value in op.outputs)
        return links, bound, problem.units_since(since[2]), states

    def finish(self) -> Problem:
        """The problem, when all is read: a parameter's axis may move if all its users follow."""
        gone = self._passed_over
        self.problem.leave_out([link for link in self.problem.links if link.gives in gone])
        for key, uses in self._uses.items():
            common, every = frozenset.intersection(*uses), frozenset.union(*uses)
            for dim in every - common:
                self._keep(key, dim, f"{key} is also used where it must stay as it is")
        return self.problem

    def _keep(self, key: Hashable, dim: int, reason: str) -> None:
        if dim != GROUPED:
            self.problem.fix(self.problem.absorbed[key, dim].axis.variable, reason)
            return
        grouped = self.problem.grouped[key]
        self.problem.fix(grouped.inputs, reason)
        self.problem.fix(grouped.outputs, reason)

    def _bound(self, parameter: Parameter, dim: int) -> Axis | None:
        bound = self.problem.bound(parameter.key, dim)
        if bound is None and parameter.fixed is not None:
            bound = Axis(self.problem.variable(parameter.shape[dim], parameter.fixed))
            self.problem.absorb(parameter.key, dim, bound)
        return bound


def moved(value: Value) -> int:
    """Bytes of one sample."""
    return math.prod(value.shape[1:]) * value.itemsize


def _without_sizes(state: State) -> Hashable:
    """A state but for how many positions there are that hold no channels."""
    if isinstance(state, Natural):
        return None
    if isinstance(state, Tracked):
        return state
    dims = tuple(
        tuple(atom if atom.of == UNITS else atom.of for atom in dim) for dim in state.layout
    )
    if isinstance(state, Factored):
        return dims, state.axis, state.groups, state.heads
    return dims, state.state, state.place, state.first
