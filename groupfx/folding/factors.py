"""Tensors whose channels are in two dimensions, groups and the channels in each, as heads are.

What is done to them is done to each group alike, so groups move as a whole, and channels within
their group. `view(heads, d)` makes such a tensor, and joining the two gives the channels back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from .layouts import UNITS, Atom, Layout, channels, one_axis, reshaped, transposed, units
from .problem import Axis
from .rules import barrier, give
from .wiring import Factored, Graph, Natural, Operation, Parameter, State, Tracked, Value, Viewed

_FOREIGN = -10


def factored(graph: Graph, value: Value) -> Factored | None:
    """A tensor as groups and channels, if it is one or can be seen as one."""
    state = graph.state(value)
    if isinstance(state, Viewed):
        state = graph.factored(state) or state
    return state if isinstance(state, Factored) else None


def keep(graph: Graph, op: Operation, value: Value, across: Collection[int]) -> None:
    """The rule of what treats all groups alike, and nothing along dimensions but `across`."""
    state = factored(graph, value)
    layout = None if state is None else resized(state.layout, op.outputs[0].shape, across)
    if state is None or layout is None:
        barrier(graph, op)
    else:
        give(graph, op, Factored(state.axis, state.groups, state.heads, layout))


def within(graph: Graph, op: Operation, value: Value, dims: Collection[int]) -> None:
    """The rule of what is done over `dims`, of which the groups are none, such as a softmax."""
    state = factored(graph, value)
    if state is None or _of_groups(state) in dims:
        barrier(graph, op)
    else:
        give(graph, op, state)


def reduced(graph: Graph, op: Operation, value: Value, dims: Sequence[int], kept: bool) -> None:
    """The rule of sums and the like over dims: over channels it leaves the groups, in order."""
    state = factored(graph, value)
    if state is None or _of_groups(state) in dims:
        barrier(graph, op)
        return
    rest = tuple(
        () if k in dims else dim for k, dim in enumerate(state.layout) if kept or k not in dims
    )
    if state.dim(heads=False) not in dims:
        give(graph, op, Factored(state.axis, state.groups, state.heads, rest))
        return
    heads = next(k for k, dim in enumerate(rest) if channels(dim))
    give(graph, op, _alone(graph, rest, heads, state))


def _alone(graph: Graph, layout: Layout, dim: int, state: Factored) -> State:
    """Groups without the channels in each: an axis of its own."""
    found = one_axis(layout)
    if found is None or 0 in {atom.of for atom in layout[dim]}:
        graph.problem.fix(state.axis.variable, "its groups are in one dimension with others")
        return Natural("its groups are in one dimension with others")
    return Tracked(dim, Axis(state.heads, found.outer, found.inner))


def per_group(
    graph: Graph, op: Operation, value: Value, parameters: Sequence[Parameter | None]
) -> None:
    """The rule of a norm whose channels are the groups, with a parameter each."""
    state = factored(graph, value)
    if state is None or _of_groups(state) != 1 or len(state.layout[1]) != 1:
        barrier(graph, op)
        return
    for parameter in parameters:
        if parameter is not None:
            graph.follow(parameter, 0, Axis(state.heads))
    give(graph, op, state)


def elementwise(graph: Graph, op: Operation) -> None:
    """The rule of operations of several tensors, one of which has its channels in two dimensions.

    Others have them in the same two, or in none, or one each group.
    """
    rank = len(op.outputs[0].shape)
    values = {slot: factored(graph, value) for slot, value in op.values.items()}
    first = next((state for state in values.values() if state is not None), None)
    if first is None or any(
        isinstance(graph.state(v), Viewed) and values[k] is None for k, v in op.values.items()
    ):
        barrier(graph, op)
        return
    layout = ((),) * (rank - len(first.layout)) + first.layout
    shown = Factored(first.axis, first.groups, first.heads, layout)
    places = (shown.dim(heads=True), shown.dim(heads=False))
    plain = all(layout[k] == channels(layout[k]) for k in places)
    if not plain or not all(
        _goes_along(graph, held, values.get(slot), shown, places)
        for slot, held in op.inputs.items()
    ):
        barrier(graph, op)
        return
    for slot, held in op.inputs.items():
        _join(graph, op, slot, held, values.get(slot), shown, places[0])
    found = resized(layout, op.outputs[0].shape, range(rank))
    assert found is not None
    give(graph, op, Factored(first.axis, first.groups, first.heads, found))


def _goes_along(
    graph: Graph,
    held: Value | Parameter,
    own: Factored | None,
    shown: Factored,
    places: tuple[int, int],
) -> bool:
    shift = len(shown.layout) - len(held.shape)
    heads, inner = (k - shift for k in places)
    if own is not None:
        here = (own.dim(heads=True), own.dim(heads=False))
        return own.groups == shown.groups and here == (heads, inner) and _plain(own)
    if inner >= 0 and held.shape[inner] > 1:
        return False
    if isinstance(held, Parameter) or heads < 0 or held.shape[heads] == 1:
        return True
    state = graph.state(held)
    return isinstance(state, Tracked) and state.dim == heads and _one(state.axis)


def _plain(state: Factored) -> bool:
    return all(
        state.layout[state.dim(heads=k)] == channels(state.layout[state.dim(heads=k)])
        for k in (True, False)
    )


def _one(axis: Axis) -> bool:
    return (axis.outer, axis.inner) == (1, 1)


def _join(
    graph: Graph,
    op: Operation,
    slot: int,
    held: Value | Parameter,
    own: Factored | None,
    shown: Factored,
    heads: int,
) -> None:
    dim = heads - (len(shown.layout) - len(held.shape))
    if own is not None:
        unite(graph, shown, own)
    elif isinstance(held, Parameter):
        if dim >= 0 and held.shape[dim] > 1:
            graph.follow(held, dim, Axis(shown.heads))
    elif dim < 0 or held.shape[dim] == 1:
        graph.pin(op, slot)
    else:
        graph.agree(op, slot, graph.read(op, slot, dim), Axis(shown.heads))


def unite(graph: Graph, first: Factored, second: Factored) -> None:
    """One order for the channels of both, each in front of its view by a gather if need be."""
    graph.problem.unite(first.axis.variable, second.axis.variable)
    graph.problem.unite(first.heads, second.heads)


def moved(graph: Graph, op: Operation, state: Factored, layout: Layout | None) -> None:
    """What a reshape or a transpose makes of it."""
    found = None if layout is None else one_axis(layout)
    atoms = () if layout is None else units(layout)
    if (
        layout is not None
        and found is not None
        and len(atoms) == 1
        and 0 not in {atom.of for atom in layout[found.dim]}
    ):
        axis = Axis(state.axis.variable, found.outer, found.inner)
        give(graph, op, Tracked(found.dim, axis))
    elif layout is not None and found is None and len(atoms) == 2:
        give(graph, op, Factored(state.axis, state.groups, state.heads, layout))
    else:
        barrier(graph, op)


def resized(layout: Layout, shape: Sequence[int], across: Collection[int]) -> Layout | None:
    """The layout of a tensor of `shape` that has its channels where `layout` has them.

    None where the size of a dimension with channels is another, or it is none of `across`.
    """
    found = []
    for k, dim in enumerate(layout):
        if channels(dim) and (k not in across or math.prod(a.size for a in dim) != shape[k]):
            return None
        same = math.prod(atom.size for atom in dim) == shape[k] and k in across
        found.append(dim if same else (Atom(_FOREIGN - k, shape[k]),))
    return tuple(found)


def reshape(graph: Graph, op: Operation, state: Factored) -> None:
    """The rule of reshape."""
    moved(graph, op, state, reshaped(state.layout, op.outputs[0].shape))


def transpose(graph: Graph, op: Operation, state: Factored, dims: Sequence[int]) -> None:
    """The rule of transpose."""
    moved(graph, op, state, transposed(state.layout, dims))


def _of_groups(state: Factored) -> int:
    return state.dim(heads=True)


def ordinary(dim: int, size: int) -> tuple[Atom, ...]:
    """A dimension without channels of a tensor that is computed anew."""
    return (Atom(_FOREIGN - dim, size),)


def of_channels(size: int, stride: int) -> tuple[Atom, ...]:
    """A dimension of so many groups, or of the channels in each."""
    return (Atom(UNITS, size, stride),)
