"""The rules of products of tensors, as attention makes them: what is summed over shares one order.

`q @ k^T` sums over the channels of a head, so q and k share their order; `p @ v` has the channels
of v, whose heads must be those of p. Heads move as a whole, in all four.
"""

from __future__ import annotations

from dataclasses import dataclass

from .factors import factored, of_channels, ordinary, unite
from .problem import Axis
from .rules import barrier, give, rule
from .wiring import Factored, Graph, Natural, Operation, Parameter, State, Tracked, Value, Viewed


@dataclass(frozen=True)
class Side:
    """A factor of a product, by dimensions counted from the end: -1 the last.

    `channels` is the dimension with channels, of which the groups, if they are in one of their
    own, are in `heads`.
    """

    slot: int
    state: Tracked | Factored | None = None
    channels: int | None = None
    heads: int | None = None


_NOTHING = Natural("a product of tensors as they were")


@rule(
    "product",
    "matrix products of two tensors, attention: `softmax(q k^T) v`",
    "`a[.., s] b[.., s]^T = a b^T`, `a b[.., s] = (a b)[.., s]`; heads move as a whole in all",
)
def _product(graph: Graph, op: Operation) -> None:
    rank = len(op.outputs[0].shape)
    if any(len(value.shape) < 2 for value in op.values.values()) or len(op.values) != 2:
        barrier(graph, op)
        return
    sides = [_side(graph, slot, value) for slot, value in op.values.items()]
    give(graph, op, _multiplied(graph, op, sides[0], sides[1], (-1, -2), rank))


@rule(
    "attention",
    "`scaled_dot_product_attention`",
    "as the two products that it is made of",
)
def _attention(graph: Graph, op: Operation) -> None:
    rank = len(op.outputs[0].shape)
    given = list(op.values.items())
    if len(given) < 3 or any(len(value.shape) != rank for _, value in given[:3]):
        barrier(graph, op)
        return
    query, key, value = (_side(graph, slot, v) for slot, v in given[:3])
    scores = _multiplied(graph, op, query, key, (-1, -1), rank)
    heads = _as_side(-1, scores, rank)
    for slot, mask in op.inputs.items():
        if slot in dict(given[:3]):
            continue
        dim = len(mask.shape) + 1 - rank
        if heads.state is not None and dim >= 0 and mask.shape[dim] > 1:
            if isinstance(mask, Parameter) and isinstance(heads.state, Tracked):
                graph.follow(mask, dim, heads.state.axis)
            else:
                heads = _free(graph, op, heads)
        if isinstance(mask, Value):
            graph.pin(op, slot)
    give(graph, op, _multiplied(graph, op, heads, value, (-1, -2), rank))


def _side(graph: Graph, slot: int, value: Value) -> Side:
    state, rank = graph.state(value), len(value.shape)
    if isinstance(state, Viewed):
        state = factored(graph, value) or state
    return _as_side(slot, state, rank)


def _as_side(slot: int, state: State, rank: int) -> Side:
    if isinstance(state, Tracked) and (state.axis.outer, state.axis.inner) == (1, 1):
        return Side(slot, state, state.dim - rank)
    if isinstance(state, Factored):
        places = [state.dim(heads=heads) for heads in (True, False)]
        if all(len(state.layout[place]) == 1 for place in places):
            return Side(slot, state, places[1] - rank, places[0] - rank)
    return Side(slot)


def _free(graph: Graph, op: Operation, side: Side) -> Side:
    """A side whose channels are as they were."""
    if isinstance(side.state, Factored):
        graph.problem.fix(side.state.axis.variable, f"{op.name} takes no other order")
    elif side.slot in op.values:
        graph.pin(op, side.slot)
    elif side.state is not None:
        graph.problem.fix(side.state.axis.variable, f"{op.name} takes no other order")
    return Side(side.slot)


def _multiplied(
    graph: Graph, op: Operation, first: Side, second: Side, summed: tuple[int, int], rank: int
) -> State:
    """What is known of a product that sums over dimension `summed` of either side."""
    for side in (first, second):
        if side.state is None and side.slot in op.values:
            graph.pin(op, side.slot)
    over = [side.channels == dim for side, dim in zip((first, second), summed, strict=True)]
    if over == [True, True]:
        return _summed(graph, op, first, second)
    if over[0]:
        first = _free(graph, op, first)
    if over[1]:
        second = _free(graph, op, second)
    return _beside(graph, op, first, second, summed, rank)


def _summed(graph: Graph, op: Operation, first: Side, second: Side) -> State:
    """Over the channels of both: what is left is a head each, if they are in heads."""
    one, other = first.state, second.state
    if isinstance(one, Factored) and isinstance(other, Factored):
        alike = one.groups == other.groups and first.heads == second.heads
        if alike and first.heads is not None and first.heads < -2:
            unite(graph, one, other)
            return Tracked(len(op.outputs[0].shape) + first.heads, Axis(one.heads))
    elif isinstance(one, Tracked) and isinstance(other, Tracked):
        graph.agree(op, second.slot, other, one.axis)
        return _NOTHING
    _free(graph, op, first)
    _free(graph, op, second)
    return _NOTHING


def _beside(
    graph: Graph, op: Operation, first: Side, second: Side, summed: tuple[int, int], rank: int
) -> State:
    """Channels of one side that are those of the product, or heads of both."""
    batches = range(-rank, -2)
    heads = [side for side in (first, second) if side.channels in batches and side.heads is None]
    rest = [side for side in (first, second) if side.state is not None and side not in heads]
    if len(rest) > 1:
        rest[1:] = []
        _free(graph, op, second)
    if not rest:
        return _alike(graph, op, first, second, rank)
    (side,) = rest
    assert side.state is not None
    # The rows of the product are those of the first side, its columns those of the second.
    dim = -2 if side is first else -1
    if side.channels != -3 - summed[side is second]:
        for held in (*rest, *heads):
            _free(graph, op, held)
        return _NOTHING
    for other in heads:
        if not _same_heads(graph, op, side, other):
            _free(graph, op, other)
            _free(graph, op, side)
            return _NOTHING
    if isinstance(side.state, Tracked):
        return Tracked(rank + dim, side.state.axis)
    if side.heads not in batches or not _broadcast(op, first, second, side):
        _free(graph, op, side)
        return _NOTHING
    assert side.heads is not None
    state, inner = side.state, op.outputs[0].shape[dim]
    layout = [ordinary(k, size) for k, size in enumerate(op.outputs[0].shape)]
    layout[rank + side.heads] = of_channels(state.groups, inner)
    layout[rank + dim] = of_channels(inner, 1)
    return Factored(state.axis, state.groups, state.heads, tuple(layout))


def _broadcast(op: Operation, first: Side, second: Side, side: Side) -> bool:
    """Whether the other side has the same heads by a state, or one for all."""
    other = second if side is first else first
    if other.state is not None or other.slot not in op.values:
        return other.state is not None
    shape = op.values[other.slot].shape
    assert side.heads is not None
    return len(shape) + side.heads < 0 or shape[side.heads] == 1


def _same_heads(graph: Graph, op: Operation, side: Side, other: Side) -> bool:
    """Give the heads of two sides one order."""
    if not isinstance(side.state, Factored) or not isinstance(other.state, Tracked):
        return False
    if other.channels != side.heads:
        return False
    if other.slot in op.values:
        graph.agree(op, other.slot, other.state, Axis(side.state.heads))
    else:
        graph.problem.unite(side.state.heads, other.state.axis.variable)
    return True


def _alike(graph: Graph, op: Operation, first: Side, second: Side, rank: int) -> State:
    """Two sides with channels, if any, in a dimension that both only go through."""
    sides = [side for side in (first, second) if isinstance(side.state, Tracked)]
    if not sides:
        return _NOTHING
    one = sides[0]
    assert isinstance(one.state, Tracked)
    assert one.channels is not None
    others = [side for side in (first, second) if side is not one]
    for other in others:
        shape = op.values[other.slot].shape if other.slot in op.values else None
        if isinstance(other.state, Tracked) and other.channels == one.channels:
            graph.agree(op, other.slot, other.state, one.state.axis)
        elif shape is None or (len(shape) + one.channels >= 0 and shape[one.channels] > 1):
            _free(graph, op, one)
            _free(graph, op, other)
            return _NOTHING
        else:
            _free(graph, op, other)
    return Tracked(rank + one.channels, one.state.axis)


@rule(
    "attention layer",
    "MultiheadAttention",
    "`f(x[:, s]; W[:, s]) = f(x; W)` for inputs; its output follows `W[t], b[t]` of its last layer",
)
def _attention_layer(graph: Graph, op: Operation) -> None:
    for slot, value in op.values.items():
        roles = [role for role in op.numbers if role.startswith(f"input {slot} ")]
        if roles:
            state = graph.read(op, slot, len(value.shape) - 1)
            graph.bind(op, slot, state, [(op.parameter(role), 1) for role in roles])
        else:
            graph.pin(op, slot)
    output = op.outputs[0]
    made = graph.fresh(output.shape[-1])
    for role in ("weight", "bias"):
        parameter = op.parameter(role)
        if parameter is not None:
            graph.follow(parameter, 0, made)
    graph.set(output, Tracked(len(output.shape) - 1, made))
