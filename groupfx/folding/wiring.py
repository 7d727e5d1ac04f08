"""What the rules speak of: the operations of a graph, its tensors, and the axis with channels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .orders import Order, identity
from .problem import Axis, Counted, Link, Nonzero, Place, Problem, Reader

GROUPED = -1
"""In place of a dimension: the two of a grouped convolution's weight, which follow together."""


@dataclass(frozen=True)
class Parameter:
    """A stored tensor; `fixed` says why it must stay as it is.

    `axes` is how many of its first dimensions may be reordered, None for all. `nonzero` reads its
    numbers; without it, none counts as zero.
    """

    key: Hashable
    shape: tuple[int, ...]
    fixed: str | None = None
    axes: int | None = None
    nonzero: Nonzero | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, `[batch, ...]`; `itemsize` in bytes."""

    key: Hashable
    shape: tuple[int, ...]
    itemsize: int = 4


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
class Regrouped:
    """A tensor whose channels are seen as several dimensions, `factors`, on the way to a shuffle.

    `dims` says what each dimension is: a dimension of `base` that is whole (>= 0), or factor k of
    its channels (-1 - k). `state` is that of the base as it was read, at `place`.
    """

    base: Value
    state: Tracked
    factors: tuple[int, ...]
    dims: tuple[int, ...]
    place: Place

    @property
    def order(self) -> Order:
        """The channels of `base` in the order of the factors as they stand now."""
        axes = [-1 - d for d in self.dims if d < 0]
        return identity(math.prod(self.factors)).reshape(self.factors).transpose(axes).ravel()


State = Tracked | Natural | Regrouped


class Graph:
    """The problem of a graph while its operations are read, one after another."""

    def __init__(self) -> None:
        self.problem = Problem()
        self._states: dict[Hashable, State] = {}
        self._fixed: dict[tuple[Hashable, int], Axis] = {}
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
        key = (value.key, dim)
        if key not in self._fixed:
            self._fixed[key] = Axis(self.problem.variable(value.shape[dim], reason))
        return Tracked(dim, self._fixed[key])

    def pin(self, op: Operation, slot: int) -> str:
        """Give `op` input `slot` as it was; returns why its channels are where they are."""
        value = op.values[slot]
        state = self.state(value)
        if isinstance(state, Natural):
            return state.reason
        reason: str = op.numbers.get("why", f"{op.name} takes no other order")
        if isinstance(state, Regrouped):
            self._require(state.place, state.base, state.state, reason)
        else:
            self._require(Place(op.node, slot, op.name), value, state, reason)
        return reason

    def _require(self, place: Place, value: Value, state: Tracked, reason: str) -> None:
        if any(link.place == place and link.dim == state.dim for link in self.problem.links):
            return
        length = value.shape[state.dim]
        target = Axis(self.problem.variable(length, reason))
        self.problem.link(
            Link(
                place,
                target,
                (state.axis,),
                (value.key,),
                identity(length),
                state.dim,
                moved(value),
            )
        )

    def lead(self, op: Operation, slot: int, state: Tracked, axis: Axis) -> Tracked:
        """Input `slot`, in the order of `axis`, by a gather where it is in another."""
        if self.same(state.axis, axis):
            return state
        value = op.values[slot]
        place = Place(op.node, slot, op.name)
        reads = identity(self.problem.length(axis))
        self.problem.link(
            Link(place, axis, (state.axis,), (value.key,), reads, state.dim, moved(value))
        )
        return Tracked(state.dim, axis)

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
    ) -> None:
        """Output number `output` is the concatenated sources at `reads`, in an order of its own."""
        value = op.outputs[output]
        axis = self.fresh(len(reads))
        place = Place(op.node, None, op.name, output)
        self.problem.link(
            Link(
                place,
                axis,
                tuple(state.axis for _, state in sources),
                tuple(source.key for source, _ in sources),
                np.asarray(reads, dtype=np.intp),
                dim,
                moved(value),
            )
        )
        self.set(value, Tracked(dim, axis))

    # Channels that may go

    def keep_all(self, op: Operation) -> None:
        """Leave out no channel of what goes into `op` and comes out of it."""
        for value in (*op.values.values(), *op.outputs):
            state = self.state(value)
            tracked = state.state if isinstance(state, Regrouped) else state
            if isinstance(tracked, Tracked):
                self.problem.keep_all(tracked.axis.variable, f"{op.name} takes all of them")

    def keep_unpadded(self, op: Operation) -> None:
        """Put no zeros among the channels of what goes into `op`."""
        for value in op.values.values():
            state = self.state(value)
            if isinstance(state, Tracked):
                self.problem.keep_unpadded(state.axis.variable)

    def weigh(self, weight: Parameter, columns: int, made: Axis) -> None:
        """Note that channels are read through columns of `weight`, whose rows make `made`."""
        bound = self.problem.bound(weight.key, columns)
        assert bound is not None
        self.problem.read(Reader(weight.key, bound, made, columns, weight.nonzero))

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
            bound = self._bound(parameter, dim)
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
            if isinstance(held, Parameter):
                self._uses[held.key].append(frozenset(self._followed.get(held.key, ())))
        self._followed.clear()

    def finish(self) -> Problem:
        """The problem, when all is read: a parameter's axis may move if all its users follow."""
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
