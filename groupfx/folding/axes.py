"""The rules of operations that move channels or axes: concatenations, gathers, reshapes, shuffles.

Notation: `x[:, s]` is x with its channels in the order s.
"""

from __future__ import annotations

import numpy as np

from .orders import identity
from .problem import Axis
from .rules import barrier, channels_behind, common_axis, give, one_input, rule
from .views import part_of_view
from .wiring import Chosen, Factored, Graph, Natural, Operation, Tracked, Viewed


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
    if len(op.values) < len(op.inputs) or any(isinstance(s, (Viewed, Factored)) for s in states):
        barrier(graph, op)
    elif not tracked or any(state.dim == dim for state in tracked):
        whole = _of_one(graph, op, dim)
        read = [(value, graph.read(op, slot, dim)) for slot, value in op.values.items()]
        if whole is not None:
            for value, _ in read:
                graph.pass_over(value)
            graph.choose(op, 0, dim, [(whole.value, whole.state)], whole.reads)
        elif tracked:
            graph.choose(op, 0, dim, read, identity(op.outputs[0].shape[dim]))
        else:
            give(graph, op, Natural(f"{op.name} gives them so"))
    else:
        _along_others(graph, op)


def _of_one(graph: Graph, op: Operation, dim: int) -> Chosen | None:
    """The tensor that all inputs are parts of, where it is all of it again in another order."""
    parts = [graph.source(value) for value in op.values.values()]
    found = [part for part in parts if part is not None and part.state.dim == dim]
    if len(found) < len(parts) or len({part.value.key for part in found}) != 1:
        return None
    reads = np.concatenate([part.reads for part in found])
    total = identity(found[0].value.shape[dim])
    if len(reads) != len(total) or not bool((np.sort(reads) == total).all()):
        return None
    return Chosen(found[0].value, found[0].state, reads)


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
    if isinstance(state, (Viewed, Factored)):
        part_of_view(graph, op, dim, op.numbers["reads"], gone=False)
        return
    if isinstance(state, Natural) and op.numbers.get("slice") and dim != 1:
        # Of an image or a sequence, far more often than of channels behind them.
        give(graph, op, state)
        return
    read = graph.read(op, slot, dim)
    for output, reads in enumerate(op.numbers["reads"]):
        graph.choose(op, output, dim, [(value, read)], np.asarray(reads, dtype=np.intp))


@rule(
    "pixel shuffle",
    "PixelShuffle; PixelUnshuffle back",
    "channels move in blocks of r*r on the side that has more",
    each=True,
)
def _pixel_shuffle(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    block, up = op.numbers["block"], op.numbers["up"]
    # A block is inside a channel, or in the DCR mode of ONNX the channels are inside a block.
    outer, inner = (block, 1) if op.numbers.get("outside") else (1, block)
    state = graph.read(op, slot, 1)
    axis = state.axis
    if not up:
        give(graph, op, Tracked(1, Axis(axis.variable, axis.outer * outer, axis.inner * inner)))
        return
    units = value.shape[1] // block
    if axis.outer % outer == 0 and axis.inner % inner == 0 and _other(axis, outer) == 1:
        made = Axis(axis.variable, axis.outer // outer, axis.inner // inner)
    else:
        made = graph.fresh(units)
        graph.lead(op, slot, state, Axis(made.variable, outer, inner))
    give(graph, op, Tracked(1, made))


def _other(axis: Axis, outer: int) -> int:
    """What repeats channels on the other side of a block, where the two would change places."""
    return axis.inner if outer > 1 else axis.outer
