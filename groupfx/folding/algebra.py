"""The rules of operations that compute: how an order on the inputs relates to one on the output.

Notation: `x[:, s]` is x with its channels in the order s, and y the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import axes as axes
from . import factors
from . import products as products
from .problem import Axis, Counted, GroupedWeight
from .rules import (
    RULES,
    apply,
    barrier,
    channels_behind,
    common_axis,
    give,
    one_input,
    rule,
)
from .wiring import Factored, Graph, Natural, Operation, Parameter, Tracked, Viewed

__all__ = ["RULES", "apply"]


@rule("size", "size, shape", "sees no order, but how many there are", each=True)
def _size(graph: Graph, op: Operation) -> None:
    asked = op.numbers.get("dims")
    for value in op.values.values():
        state = graph.state(value)
        if asked is None or not isinstance(state, Tracked) or state.dim in asked:
            graph.keep_all(op)
    give(graph, op, Natural(f"{op.name} gives them so"))


@rule(
    "elementwise",
    "elementwise functions, dropout in eval, pooling, padding and resizing of other axes",
    "`f(x[:, s]) = f(x)[:, s]`",
    each=True,
)
def _elementwise(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state = graph.state(value)
    if isinstance(state, Natural):
        give(graph, op, state)
        return
    dims = op.numbers.get("dims", ())
    if isinstance(state, (Viewed, Factored)) and op.numbers.get("same"):
        give(graph, op, state)
    elif isinstance(state, (Viewed, Factored)):
        factors.keep(graph, op, value, [k for k in range(len(value.shape)) if k not in dims])
    elif state.dim in dims:
        barrier(graph, op)
    else:
        graph.count(op, state)
        give(graph, op, state)


@rule(
    "normalise",
    "softmax, log-softmax and normalize over all of C",
    "`f(x[:, s]) = f(x)[:, s]`: sums over C have no order",
)
def _normalise(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state = graph.state(value)
    if isinstance(state, (Viewed, Factored)):
        factors.within(graph, op, value, op.numbers.get("dims", range(len(value.shape))))
    else:
        give(graph, op, state)


@rule(
    "reduce",
    "mean, sum, max and min over axes; argmax over axes other than C",
    "over C: `f(x[:, s]) = f(x)`, the order is gone; over other axes: commutes",
    each=True,
)
def _reduce(graph: Graph, op: Operation) -> None:
    _, value = one_input(op)
    state, dims = graph.state(value), op.numbers["dims"]
    tracked = isinstance(state, Tracked) and state.dim in dims
    viewed = isinstance(state, (Viewed, Factored))
    if op.numbers.get("ordered") and (tracked or viewed):
        barrier(graph, op)
        return
    if tracked:
        graph.keep_all(op)
    if isinstance(state, (Viewed, Factored)):
        factors.reduced(graph, op, value, dims, kept=bool(op.numbers["keep"]))
        return
    if isinstance(state, Natural) or state.dim in dims:
        give(graph, op, Natural(f"{op.name} gives them so"))
        return
    gone = 0 if op.numbers["keep"] else sum(dim < state.dim for dim in dims)
    give(graph, op, Tracked(state.dim - gone, state.axis))


@rule(
    "binary",
    "add, sub, mul, div, min, max, pow, where of two tensors, or of a tensor and a parameter",
    "`f(a[:, s], b[:, s]) = f(a, b)[:, s]`: one order for both; an axis of size 1 is free",
    each=True,
)
def _binary(graph: Graph, op: Operation) -> None:
    if any(isinstance(graph.state(v), (Viewed, Factored)) for v in op.values.values()):
        factors.elementwise(graph, op)
        return
    rank = len(op.outputs[0].shape)
    behind = channels_behind(graph, op)
    if behind is None:
        reasons = [graph.pin(op, slot) for slot in op.values]
        give(graph, op, Natural(reasons[0] if reasons else f"{op.name} gives them so"))
        return
    dim = rank - behind
    sides: list[tuple[int, Tracked]] = []
    for slot, value in op.values.items():
        own = len(value.shape) - behind
        if own < 0 or value.shape[own] != op.outputs[0].shape[dim]:
            # Of one channel, or without that axis: it is read alike by all.
            graph.pin(op, slot)
        else:
            sides.append((slot, graph.read(op, slot, own)))
    if not sides:  # as `weight.to(x)`, which has the weight's sizes
        give(graph, op, Natural(f"{op.name} gives them so"))
        return
    axis = common_axis(graph, [state.axis for _, state in sides])
    for slot, state in sides:
        joined = graph.agree(op, slot, state, axis)
        axis = joined.axis
    for parameter in op.parameters:
        own = len(parameter.shape) - behind
        if own >= 0 and parameter.shape[own] > 1:
            graph.follow(parameter, own, axis)
    give(graph, op, Tracked(dim, axis))


@rule(
    "per channel",
    "BatchNorm, InstanceNorm, SyncBatchNorm",
    "`f(x[:, s]; w[s]) = f(x; w)[:, s]` for weight, bias, running mean and variance",
    each=True,
)
def _per_channel(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    given = [op.parameter(role) for role in ("weight", "bias", "mean", "variance")]
    if isinstance(graph.state(value), (Viewed, Factored)):
        factors.per_group(graph, op, value, given)
        return
    state = graph.read(op, slot, 1)
    graph.problem.variances |= {p.key for p in given[-1:] if p is not None}
    give(graph, op, graph.bind(op, slot, state, [(p, 0) for p in given]))


@rule(
    "prelu",
    "PReLU",
    "one parameter: free; one a channel: `f(x[:, s]; a[s]) = f(x; a)[:, s]`",
    each=True,
)
def _prelu(graph: Graph, op: Operation) -> None:
    slot, _ = one_input(op)
    weight = op.parameter("weight")
    if weight is not None and math.prod(weight.shape) == 1:
        _elementwise(graph, op)
        return
    dim = op.numbers.get("dim", 0)
    state = graph.bind(op, slot, graph.read(op, slot, 1), [(weight, dim)])
    give(graph, op, state)


@rule(
    "quantize",
    "quantize, dequantize and fake-quantize",
    "one scale: free; one a channel: `f(x[:, s]; q[s]) = f(x; q)[:, s]` for scales and zero points",
    each=True,
)
def _quantize(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    given = [p for p in (op.parameter("scale"), op.parameter("zero")) if p is not None]
    each = [(p, 0) for p in given if math.prod(p.shape) > 1]
    state = graph.state(value)
    if not each or isinstance(state, (Viewed, Factored)):
        (barrier if each else _elementwise)(graph, op)
    elif isinstance(state, Natural) or state.dim == op.numbers["dim"]:
        dim = op.numbers["dim"]
        # Nothing can be divided by a scale of zero.
        graph.keep_unpadded(op)
        give(graph, op, graph.bind(op, slot, graph.read(op, slot, dim), each))
    else:
        give(graph, op, state)


@rule(
    "layer norm",
    "LayerNorm, RMSNorm",
    "over C: `f(x[:, s]; w[s]) = f(x; w)[:, s]`; over other axes: commutes",
    each=True,
)
def _layer_norm(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    state, first = graph.state(value), op.numbers.get("first", 0)
    if "last" in op.numbers:
        first = len(value.shape) - op.numbers["last"]
    if isinstance(state, Natural):
        give(graph, op, state)
        return
    affine = any(op.parameter(role) for role in ("weight", "bias"))
    if isinstance(state, (Viewed, Factored)):
        over = range(first, len(value.shape))
        factors.within(graph, op, value, range(len(value.shape)) if affine else over)
        return
    if state.dim >= first:
        graph.keep_all(op)
        given = [(op.parameter(role), state.dim - first) for role in ("weight", "bias")]
        state = graph.bind(op, slot, state, given)
    give(graph, op, state)


@rule(
    "group norm",
    "GroupNorm",
    "`f(x[:, s]; w[s]) = f(x; w)[:, s]` where s maps whole groups to whole groups",
)
def _group_norm(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    axis, groups = graph.fresh(value.shape[1]), op.numbers["groups"]
    reason = f"the groups of {op.name}"
    given = [op.parameter(role) for role in ("weight", "bias")]
    state = graph.lead(op, slot, graph.read(op, slot, 1), axis)
    if op.numbers.get("per_group"):
        heads = Axis(graph.groups_of(axis, groups, reason))
        for parameter in given:
            if parameter is not None:
                graph.follow(parameter, 0, heads)
        give(graph, op, state)
        return
    graph.problem.keep_groups(axis.variable, groups, reason)
    give(graph, op, graph.bind(op, slot, state, [(p, 0) for p in given]))


@rule(
    "convolution",
    "dense convolution; transposed: the two axes change places",
    "`conv(x[:, s]; W[:, s]) = conv(x; W)`, `conv(x; W[t], b[t]) = conv(x; W, b)[:, t]`",
    each=True,
)
def _convolution(graph: Graph, op: Operation) -> None:
    slot, _ = one_input(op)
    weight, bias = op.parameter("weight"), op.parameter("bias")
    assert weight is not None
    groups, transposed = op.numbers["groups"], op.numbers["transposed"]
    if groups > 1:
        each = weight.shape[0] == groups and weight.shape[1] == 1
        RULES["depthwise" if each else "grouped"].apply(graph, op)
        return
    columns, rows = (0, 1) if transposed else (1, 0)
    _project(
        graph, op, slot, graph.read(op, slot, 1), (weight, columns), [(weight, rows), (bias, 0)], 1
    )


def _project(
    graph: Graph,
    op: Operation,
    slot: int,
    state: Tracked,
    columns: tuple[Parameter, int],
    rows: Sequence[tuple[Parameter | None, int]],
    dim: int,
) -> None:
    """`y = W x + b` along channels: the columns follow the input, and y follows the rows."""
    parameter, axis = columns
    graph.bind(op, slot, state, [(parameter, axis)])
    given = [(p, d) for p, d in rows if p is not None]
    made = graph.fresh(given[0][0].shape[given[0][1]])
    for p, d in given:
        graph.follow(p, d, made)
    graph.weigh(parameter, axis, made)
    give(graph, op, Tracked(dim, made))


@rule(
    "depthwise",
    "depthwise convolution",
    "`conv(x[:, s]; W[s], b[s]) = conv(x; W, b)[:, s]`",
    each=True,
)
def _depthwise(graph: Graph, op: Operation) -> None:
    slot, _ = one_input(op)
    weight, bias = op.parameter("weight"), op.parameter("bias")
    state = graph.bind(op, slot, graph.read(op, slot, 1), [(weight, 0), (bias, 0)])
    graph.problem.counted.append(Counted(op.node, state.axis))
    give(graph, op, state)


@rule(
    "grouped",
    "grouped convolution, depthwise with a multiplier",
    "whole groups move on both sides, and channels within a group on either",
    each=True,
)
def _grouped(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    weight, bias = op.parameter("weight"), op.parameter("bias")
    assert weight is not None
    groups, reason = op.numbers["groups"], f"the groups of {op.name}"
    if weight.dims is not None:
        barrier(graph, op)
        return
    known = graph.problem.grouped.get(weight.key)
    if known is not None and known.groups == groups:
        inputs, outputs = Axis(known.inputs), Axis(known.outputs)
    else:
        inputs = graph.fresh(value.shape[1])
        outputs = graph.fresh(op.outputs[0].shape[1])
        graph.problem.together(inputs.variable, outputs.variable, groups, reason)
        if known is not None or weight.fixed is not None:
            why = weight.fixed or f"{weight.key} is shared by convolutions of other groups"
            graph.problem.fix(inputs.variable, why)
            graph.problem.fix(outputs.variable, why)
        if known is not None:
            graph.problem.fix(known.inputs, reason)
            graph.problem.fix(known.outputs, reason)
        else:
            turned = op.numbers["transposed"]
            sides = inputs.variable, outputs.variable
            graph.problem.group(GroupedWeight(weight.key, *sides, groups, turned, weight.nonzero))
    graph.problem.counted.append(Counted(op.node, outputs, groups=groups))
    graph.group(weight)
    rows, columns = (inputs, outputs) if op.numbers["transposed"] else (outputs, inputs)
    for scales, dim in weight.along:
        graph.follow(scales, 0, rows)
        if dim:
            graph.problem.fix(columns.variable, f"{scales.key} is shared by {reason}")
    if bias is not None:
        graph.follow(bias, 0, outputs)
    graph.lead(op, slot, graph.read(op, slot, 1), inputs)
    give(graph, op, Tracked(1, outputs))


@rule(
    "linear",
    "Linear on the last axis, a matrix product with a parameter",
    "as a 1x1 convolution",
    each=True,
)
def _linear(graph: Graph, op: Operation) -> None:
    slot, value = one_input(op)
    weight, bias = op.parameter("weight"), op.parameter("bias")
    assert weight is not None
    rows, columns = (1, 0) if op.numbers.get("transposed") else (0, 1)
    last = len(value.shape) - 1
    state = graph.read(op, slot, last)
    biases = [] if bias is None or bias.shape[-1] == 1 else [(bias, len(bias.shape) - 1)]
    made = [(weight, rows), *biases]
    _project(graph, op, slot, state, (weight, columns), made, len(op.outputs[0].shape) - 1)


@rule(
    "constant",
    "channels that hold a parameter each, like another tensor",
    "`expand(w[s]) = expand(w)[:, s]`; the other tensor is read for its size alone",
    each=True,
)
def _constant(graph: Graph, op: Operation) -> None:
    weight = op.parameter("weight")
    assert weight is not None
    axis = graph.fresh(weight.shape[op.numbers.get("dim", 0)])
    graph.follow(weight, op.numbers.get("dim", 0), axis)
    give(graph, op, Tracked(1, axis))
