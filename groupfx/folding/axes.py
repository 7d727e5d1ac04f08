"""The rules of operations that move channels or axes: concatenations, gathers, reshapes, shuffles.

Notation: `x[:, s]` is x with its channels in the order s.
"""

from __future__ import annotations

import math

import numpy as np

from .orders import identity
from .problem import Axis, Place
from .rules import barrier, channels_behind, common_axis, give, one_input, rule
from .wiring import Graph, Natural, Operation, Regrouped, Tracked, Value


@rule(
    "concat",
    "concatenation along C",
    "`cat(a[:, s], b[:, t]) = cat(a, b)[:, s + (t + n)]`; back: where each part keeps its own",
    each=True,
)
def _concat(graph: Graph, op: Operation) -> None:
    dim = op.numbers["dim"]
    states = [graph.state(value) for value in op.values.values()]
    tracked = [state for state in states if isinstance(state, Tracked)]
    if len(op.values) < len(op.inputs) or any(isinstance(s, Regrouped) for s in states):
        barrier(graph, op)
    elif all(state.dim == dim for state in tracked):
        read = [(value, graph.read(op, slot, dim)) for slot, value in op.values.items()]
        if tracked:
            graph.choose(op, 0, dim, read, identity(op.outputs[0].shape[dim]))
        else:
            give(graph, op, Natural(f"{op.name} gives them so"))
    else:
        _along_others(graph, op)


def _along_others(graph: Graph, op: Operation) -> None:
    """A concatenation along another axis: one order for all."""
    behind = channels_behind(graph, op)
    if behind is None or len({len(v.shape) for v in op.values.values()}) > 1:
        barrier(graph, op)
        return
    dim = len(op.outputs[0].shape) - behind
    read = [(slot, graph.read(op, slot, dim)) for slot in op.values]
    axis = common_axis(graph, [state.axis for _, state in read])
    for slot, state in read:
        axis = graph.agree(op, slot, state, axis).axis
    give(graph, op, Tracked(dim, axis))


@rule(
    "select",
    "gather, index_select, list index, slice, narrow, split and chunk along C",
    "`x[:, s][:, p'] = x[:, p][:, t]` with `s[p'] = p[t]`: moved into what is around it",
    each=True,
)
def _select(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    dim = op.numbers["dim"]
    state = graph.state(value)
    if isinstance(state, Tracked) and state.dim != dim:
        give(graph, op, state)
        return
    if isinstance(state, Regrouped):
        barrier(graph, op)
        return
    read = graph.read(op, slot, dim)
    for output, reads in enumerate(op.numbers["reads"]):
        graph.choose(op, output, dim, [(value, read)], np.asarray(reads, dtype=np.intp))


@rule(
    "transpose",
    "permute, transpose",
    "the axis with channels moves along",
    each=True,
)
def _transpose(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state, dims = graph.state(value), op.numbers["dims"]
    if isinstance(state, Natural):
        give(graph, op, state)
    elif isinstance(state, Tracked):
        give(graph, op, Tracked(dims.index(state.dim), state.axis))
    else:
        seen = tuple(state.dims[dim] for dim in dims)
        made = Regrouped(state.base, state.state, state.factors, seen, state.place)
        for output in op.outputs:
            graph.set(output, made)


@rule(
    "reshape",
    "flatten, view, reshape, squeeze, unsqueeze, channel shuffles made of them",
    "`flatten(x[:, s])` moves blocks of H*W, or with stride C; "
    "view-transpose-view is a permutation of its own",
    each=True,
)
def _reshape(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    state, shape = graph.state(value), op.outputs[0].shape
    if isinstance(state, Natural):
        state = _seen_as_channels(graph, op, slot) or state
    if isinstance(state, Natural):
        give(graph, op, state)
        return
    if isinstance(state, Regrouped):
        _merge(graph, op, state)
        return
    kept = _still_one_axis(graph, state, value.shape, shape)
    if kept is not None:
        graph.count(op, kept)
        give(graph, op, kept)
        return
    regrouped = _taken_apart(op, slot, state, value, shape)
    if regrouped is None:
        barrier(graph, op)
    else:
        graph.set(op.outputs[0], regrouped)


def _seen_as_channels(graph: Graph, op: Operation, slot: int) -> Tracked | None:
    """A tensor as it was whose axis 1 is taken apart: it may be on the way to a shuffle."""
    value, shape = op.values[slot], op.outputs[0].shape
    if len(value.shape) < 3 or len(shape) != len(value.shape) + 1:
        return None
    if shape[0] != value.shape[0] or shape[3:] != value.shape[2:]:
        return None
    return graph.read(op, slot, 1)


def _still_one_axis(
    graph: Graph, state: Tracked, old: tuple[int, ...], new: tuple[int, ...]
) -> Tracked | None:
    """The axis with channels in the new shape, where one of its axes holds all of it."""
    if state.dim == 0:
        return None
    before, behind = math.prod(old[: state.dim]), math.prod(old[state.dim + 1 :])
    units = graph.problem.units(state.axis.variable)
    outer, inner = before * state.axis.outer, behind * state.axis.inner
    for dim in range(1, len(new)):
        front, back = math.prod(new[:dim]), math.prod(new[dim + 1 :])
        if outer % front or inner % back or units == 1:
            continue
        if new[dim] == (outer // front) * units * (inner // back):
            return Tracked(dim, Axis(state.axis.variable, outer // front, inner // back))
    return None


def _taken_apart(
    op: Operation, slot: int, state: Tracked, value: Value, shape: tuple[int, ...]
) -> Regrouped | None:
    """The channels as several dimensions, all others as they are."""
    extra, dim = len(shape) - len(value.shape), state.dim
    if (
        extra < 1
        or shape[:dim] != value.shape[:dim]
        or shape[dim + extra + 1 :] != value.shape[dim + 1 :]
    ):
        return None
    factors = tuple(shape[dim : dim + extra + 1])
    dims = (
        *range(dim),
        *(-1 - k for k in range(len(factors))),
        *range(dim + 1, len(value.shape)),
    )
    return Regrouped(value, state, factors, dims, Place(op.node, slot, op.name))


def _merge(graph: Graph, op: Operation, state: Regrouped) -> None:
    """The end of a shuffle, where all factors of the channels become one dimension again."""
    base, shape = state.base, op.outputs[0].shape
    if shape == base.shape and _in_place(state):
        graph.choose(op, 0, state.state.dim, [(base, state.state)], state.order)
    else:
        barrier(graph, op)


def _in_place(state: Regrouped) -> bool:
    """Whether each other dimension stands where it stood, and the factors between them."""
    count, first = len(state.factors), state.state.dim
    middle = state.dims[first : first + count]
    others = (*state.dims[:first], *state.dims[first + count :])
    expected = (*range(first), *range(first + 1, len(state.base.shape)))
    return all(d < 0 for d in middle) and others == expected


@rule(
    "pixel shuffle",
    "PixelShuffle; PixelUnshuffle back",
    "channels move in blocks of r*r on the side that has more",
    each=True,
)
def _pixel_shuffle(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    block, up = op.numbers["block"], op.numbers["up"]
    state = graph.read(op, slot, 1)
    if not up:
        axis = state.axis
        give(graph, op, Tracked(1, Axis(axis.variable, axis.outer, axis.inner * block)))
        return
    units = value.shape[1] // block
    if state.axis.outer == 1 and state.axis.inner % block == 0:
        axis = Axis(state.axis.variable, 1, state.axis.inner // block)
    else:
        axis = graph.fresh(units)
        graph.lead(op, slot, state, Axis(axis.variable, 1, block))
    give(graph, op, Tracked(1, axis))
