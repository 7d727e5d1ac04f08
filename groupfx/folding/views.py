"""The rules of views: reshapes and transposes, channel shuffles made of them, parts picked of them.

While its channels are in several dimensions a tensor is a view of the one that it was, which is
read in place of it where all channels, or some, come together again. What else reads a view in
between gets its channels as they were, or group by group (`factors`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from . import factors
from .layouts import (
    UNITS,
    Atom,
    Layout,
    one_axis,
    order_of,
    reshaped,
    surroundings,
    transposed,
    units,
    whole,
)
from .orders import Order, expanded, identity
from .problem import Axis, Place
from .rules import barrier, give, one_input, rule
from .wiring import Factored, Graph, Natural, Operation, Tracked, Value, Viewed

Change = Callable[[Layout], Layout | None]

_MOST_VIEWS = 8
"""A tensor as it was may be a view of so many others, one a dimension; a longer chain is rare."""


@rule(
    "transpose",
    "permute, transpose",
    "the axis with channels moves along",
    each=True,
)
def _transpose(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state, dims = graph.state(value), op.numbers["dims"]
    if isinstance(state, Tracked):
        give(graph, op, Tracked(dims.index(state.dim), state.axis))
    else:
        _change(graph, op, lambda layout: transposed(layout, dims))


@rule(
    "reshape",
    "flatten, view, reshape, squeeze, unsqueeze, channel shuffles made of them",
    "`flatten(x[:, s])` moves blocks of H*W, or with stride C; "
    "view-transpose-view is a permutation of its own; heads move as a whole",
    each=True,
)
def _reshape(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    state, shape = graph.state(value), op.outputs[0].shape

    def change(layout: Layout) -> Layout | None:
        return reshaped(layout, shape)

    if isinstance(state, Tracked):
        found = change(_layout(value, state))
        # Channels in one dimension with the batch have as many outside as there are samples.
        if found is None or state.dim == 0 or not units(found):
            barrier(graph, op)
            return
        view = Viewed(value, state, found, Place(op.node, slot, op.name))
        kept = _still_one_axis(view)
        if kept is None:
            graph.keep_all(op)
        else:
            graph.count(op, kept)
        graph.set(op.outputs[0], kept or view)
    elif isinstance(state, Natural):
        _change(graph, op, change, _fresh(graph, op, slot, state))
    else:
        _change(graph, op, change)


@rule(
    "pick",
    "one position of an axis: a whole number as index, select, unbind",
    "of an axis without channels: commutes; of one that a view made of them: a slice of them",
)
def _pick(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state, dim = graph.state(value), op.numbers["dim"]
    if isinstance(state, Tracked):
        if state.dim == dim:
            barrier(graph, op)
        else:
            give(graph, op, Tracked(state.dim - (dim < state.dim), state.axis))
    else:
        part_of_view(graph, op, dim, [np.array([n]) for n in op.numbers["picked"]], gone=True)


def part_of_view(
    graph: Graph, op: Operation, dim: int, reads: Sequence[Order], *, gone: bool
) -> None:
    """The rule of positions of a dimension of a tensor that is no plain one; each output its own.

    `gone` says that the dimension goes, as there is one position of it.
    """
    _, value = one_input(op)
    state = graph.state(value)
    for number, own in enumerate(reads):

        def change(layout: Layout, first: int, own: Order = own) -> tuple[Layout, int] | None:
            return _cut(layout, first, dim, own, gone=gone)

        if isinstance(state, Factored):
            found = change(state.layout, 0)
            if found is None or units(found[0]) != units(state.layout):
                barrier(graph, op)
                return
            made = Factored(state.axis, state.groups, state.heads, found[0])
            graph.set(op.outputs[number], made)
            continue
        known = [state] if isinstance(state, Viewed) else list(graph.views(value))
        made_of = []
        for view in known:
            found = change(view.layout, view.first)
            if found is not None:
                made_of.append(Viewed(view.base, view.state, found[0], view.place, found[1]))
        _settle(graph, op, number, made_of)


def _cut(
    layout: Layout, first: int, dim: int, read: Order, *, gone: bool
) -> tuple[Layout, int] | None:
    """A layout at these positions of one dimension, and its first channel.

    None where they are of several atoms, or not evenly apart.
    """
    atoms, steps = layout[dim], set(np.diff(read).tolist())
    there: tuple[Atom, ...]
    if not any(atom.of == UNITS for atom in atoms):
        there = factors.ordinary(dim, len(read))
    elif len(atoms) == 1 and len(steps) < 2 and min(steps, default=1) > 0:
        (atom,) = atoms
        there = (Atom(UNITS, len(read), atom.stride * min(steps, default=1)),)
        first += int(read[0]) * atom.stride
    else:
        return None
    there = tuple(atom for atom in there if atom.size > 1)
    return (*layout[:dim], *([] if gone else [there]), *layout[dim + 1 :]), first


def _layout(value: Value, state: Tracked) -> Layout:
    return whole(value.shape, state.dim, state.axis.outer, state.axis.inner)


def _still_one_axis(view: Viewed) -> Tracked | None:
    """The axis with channels in the new shape, where one of its axes holds all, in order."""
    found, atoms = one_axis(view.layout), units(view.layout)
    if found is None or found.batch or len(atoms) > 1:
        return None
    return Tracked(found.dim, Axis(view.state.axis.variable, found.outer, found.inner))


def _fresh(graph: Graph, op: Operation, slot: int, state: Natural) -> list[Viewed]:
    """A tensor as it was, as a view of itself, along each dimension: it may end as a shuffle."""
    value, place = op.values[slot], Place(op.node, slot, op.name)
    dims = [k for k, size in enumerate(value.shape) if k and size > 1]
    axes = {k: graph.natural(value, k, state.reason) for k in dims}
    return [Viewed(value, Tracked(k, a), whole(value.shape, k), place) for k, a in axes.items()]


def _change(graph: Graph, op: Operation, change: Change, fresh: Sequence[Viewed] = ()) -> None:
    """Another layout of a tensor that is a view, or may be one."""
    _, value = one_input(op)
    state = graph.state(value)
    if isinstance(state, Factored):
        factors.moved(graph, op, state, change(state.layout))
        return
    known = [state] if isinstance(state, Viewed) else [*fresh, *graph.views(value)]
    found = [
        Viewed(view.base, view.state, layout, view.place, view.first)
        for view in known
        if (layout := change(view.layout)) is not None
    ]
    _settle(graph, op, 0, found)


def _settle(graph: Graph, op: Operation, number: int, views: Sequence[Viewed]) -> None:
    """What an output is that has another shape: a tensor with channels again, or a view still."""
    _, value = one_input(op)
    state, output = graph.state(value), op.outputs[number]
    for view in views:
        if _chosen(graph, op, number, view):
            return
    if isinstance(state, Natural):
        graph.set(output, state)
        graph.see(output, [v for v in views if len(units(v.layout)) > 1][:_MOST_VIEWS])
    elif not views:
        graph.pin(op, 0)
        graph.set(output, Natural(f"{op.name} gives them so"))
    elif _still_one_axis(views[0]) and _complete(graph, views[0]):
        held = _still_one_axis(views[0])
        assert held is not None
        axis = Axis(graph.led(views[0]).variable, held.axis.outer, held.axis.inner)
        graph.set(output, Tracked(held.dim, axis))
    else:
        graph.set(output, views[0])


def _complete(graph: Graph, view: Viewed) -> bool:
    return len(_order(view)) == graph.problem.units(view.state.axis.variable)


def _order(view: Viewed) -> Order:
    """The channels of the base in the order of the view."""
    return view.first + order_of(units(view.layout))


def _chosen(graph: Graph, op: Operation, number: int, view: Viewed) -> bool:
    """Read the base in place of a view that has its channels, or some, in another order."""
    order, found, axis = _order(view), one_axis(view.layout), view.state.axis
    total = graph.problem.units(axis.variable)
    if found is None or found.batch or (len(order) == total and _in_order(order)):
        return False
    if len(order) < total and (axis.outer, axis.inner) != (1, 1):
        return False
    base, dim = _layout(view.base, view.state), view.state.dim
    if surroundings(view.layout) != surroundings(base):
        return False
    shape = list(view.base.shape)
    shape[dim] = axis.outer * len(order) * axis.inner
    if tuple(shape) == op.outputs[number].shape:
        through = None
    elif _takes_any_shape(op, shape):
        through = op.values[0]
    else:
        return False
    target = Axis(graph.fresh(len(order)).variable, axis.outer, axis.inner)
    # The sizes of the views around it say how many there are.
    for held in (axis, target):
        graph.problem.keep_all(held.variable, f"{op.name} takes all of them")
    reads = expanded(order, axis.outer, axis.inner)
    graph.choose(op, number, dim, [(view.base, view.state)], reads, target, through)
    made = Axis(target.variable, found.outer, found.inner)
    graph.set(op.outputs[number], Tracked(found.dim, made))
    return True


def _in_order(order: Order) -> bool:
    return bool((order == identity(len(order))).all())


def _takes_any_shape(op: Operation, shape: Sequence[int]) -> bool:
    """Whether a reshape gives the same of a tensor of another shape and as many elements.

    `numbers["copied"]` are the dimensions that it copies; it is there where it copies no other.
    """
    copied = op.numbers.get("copied")
    if copied is None:
        return False
    result = op.outputs[0].shape
    return all(k < len(shape) and shape[k] == result[k] for k in copied)
