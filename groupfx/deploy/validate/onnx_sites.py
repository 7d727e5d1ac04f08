"""The sites of an ONNX file: what each computes, and which nodes compute it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from ...convs.names import unnumbered
from ...plan.channel_order import AS_THEY_WERE, ChannelOrders
from ..forms.activating import FUSED
from ..graph.batchnorm import epsilon_of, norm_behind
from ..graph.channel_order import orders_of
from ..graph.conv_nodes import WHOLE, ConvNode, constant_of, conv_names, conv_nodes
from ..graph.metadata import mark_of
from ..graph.node_names import node_name
from ..quantised.convs import SPLIT, quantised_conv, result_behind
from ..quantised.grids import grid_of
from ..quantised.tensors import is_quantize
from .folded import constant_values, folded_weights
from .site_functions import Affine, SiteFunction, Unchecked

# A validation feeds inputs alone: the default of what a user may replace is a constant here.
_DEFAULTS_HOLD = 0
_COMPUTED_NUMBERS = "its weight, a scale or a zero point is computed in the graph"


@dataclass(frozen=True)
class Region:
    """The nodes of a site in a candidate: the value that goes in, and the one that comes out.

    `behind_norm` is the value behind a BatchNormalization that the reference may have folded into
    its weights: the one that fits better counts. `problem` says why the nodes are not such a
    region; the names are then empty. The orders are those of the channels of the two values, where
    a fold has changed them. `whole` says that the values are whole numbers. Where branches round
    what they give, `joined` are the values before that, which make up the convolution's together.
    So they are where each branch has its activation, `activated`: `end` is no value of the site's.
    """

    name: str
    start: str
    end: str
    behind_norm: str | None = None
    problem: str | None = None
    orders: ChannelOrders = AS_THEY_WERE
    whole: bool = False
    joined: tuple[str, ...] = ()
    activated: bool = False

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all values that are looked at."""
        named = (self.start, *self.results, *self.joined)
        return () if self.problem is not None else tuple(name for name in named if name)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the values that have all channels that come out."""
        named = (self.end, self.behind_norm)
        return () if self.problem is not None else tuple(name for name in named if name)


def onnx_site_functions(
    model: ir.Model,
) -> tuple[tuple[SiteFunction, ...], tuple[Unchecked, ...]]:
    """The convolutions of an ONNX file with constant weights, in order; and why not the others.

    A site that is split, or executed as several convolutions, is none of them.
    """
    made = folded_weights(model)
    convs, out_of_reach = conv_nodes(model, _sizes(made), SPLIT)
    counts: dict[str, int] = defaultdict(int)
    for conv in convs:
        counts[_site_name(conv)] += 1
    found: list[SiteFunction] = []
    left: list[Unchecked] = []
    for conv in convs:
        name = _site_name(conv)
        if mark_of(conv.node) is not None and counts[name] > 1:
            left.append(Unchecked("it is several convolutions in the reference too", name))
            continue
        if conv.node.op_type in WHOLE:
            whole = _whole_function(conv, name)
            if whole is None:
                left.append(Unchecked(_COMPUTED_NUMBERS, name))
            else:
                found.append(whole)
            continue
        weight, bias = _parameter(conv.weight_tensor, conv.weight, made), None
        if conv.bias is not None:
            bias = _parameter(conv.bias_tensor, conv.bias, made)
        if weight is None or (conv.bias is not None and bias is None):
            left.append(Unchecked("its weight is computed in the graph", name))
            continue
        found.append(_function(conv, name, weight, bias))
    left += [Unchecked(node.reason, node.name) for node in out_of_reach]
    known = {id(conv.node) for conv in convs} | {node.name for node in out_of_reach}
    for node, name in conv_names(model.graph).items():
        if id(node) not in known and name not in known:
            left.append(Unchecked("its weight is computed in the graph", name))
    return tuple(found), tuple(dict.fromkeys(left))


def _site_name(conv: ConvNode) -> str:
    found = mark_of(conv.node)
    return conv.name if found is None else found.site


def _sizes(made: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape for name, array in made.items()}


def _parameter(
    tensor: ir.TensorProtocol | None, value: ir.Value, made: Mapping[str, npt.NDArray[Any]]
) -> npt.NDArray[Any] | None:
    return made.get(value.name or "") if tensor is None else tensor.numpy()


def _whole_function(conv: ConvNode, name: str) -> SiteFunction | None:
    """What a convolution on whole numbers computes, in the reals that they stand for."""
    found = quantised_conv(conv)
    assert found is not None
    weight, bias = found.weight.reals, found.bias_reals
    data, result = grid_of(found.data), grid_of(found.result)
    known = (bias, found.bias), (result, found.result)
    if weight is None or data is None or any(a is None and b is not None for a, b in known):
        return None
    return replace(_function(conv, name, weight, bias), data=data, result=result)


def _function(
    conv: ConvNode, name: str, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None
) -> SiteFunction:
    norms = tuple(_norms_behind(conv.node.outputs[0]))
    between, result = result_behind(norms[-1] if norms else conv.node)
    return SiteFunction(
        name=name,
        spec=conv.spec,
        weight=_wide(weight),
        bias=None if bias is None else _wide(bias),
        window=conv.window,
        norms=tuple(map(_affine, norms)),
        orders=orders_of(conv.node),
        result=grid_of(result, between),
    )


def _affine(norm: ir.Node) -> Affine:
    tensors = [constant_of(value, _DEFAULTS_HOLD) for value in norm.inputs[1:5]]
    gamma, beta, mean, variance = (_wide(t.numpy()) for t in tensors if t is not None)
    return Affine.of(gamma, beta, mean, variance, epsilon_of(norm))


def _wide(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def candidate_regions(
    model: ir.Model, functions: Sequence[SiteFunction]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """Where the sites of the reference are in `model`, in its order, and notes.

    By the marks that we leave; in a file without them by the names of modules where it tells them,
    else by the order of the convolutions, if they are as many and alike.
    """
    regions, notes = _regions(model, functions)
    whole = {function.name: function.data is not None for function in functions}
    others = [r.name for r in regions if r.problem is None and r.whole != whole[r.name]]
    if others:
        what = f"whole numbers on one side alone: {some_names(others)}"
        notes = (*notes, f"not checked on their own, as they work on {what}")
    return tuple(region for region in regions if region.name not in others), notes


def _regions(
    model: ir.Model, functions: Sequence[SiteFunction]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    marked = _marked(model.graph)
    normed = {function.name for function in functions if function.norms}
    known = {function.name for function in functions}
    if marked:
        constants = constant_values(model.graph)
        # The second call here need not be the second there: by its name no call can be told.
        here, there = (Counter(map(unnumbered, names)) for names in (marked, known))
        paired = [n for n in marked if n in known and here[unnumbered(n)] == there[unnumbered(n)]]
        regions = [_marked_region(n, marked[n], constants, n in normed) for n in paired]
        missing = sorted(known - set(paired))
        unknown = [name for name in marked if name not in paired]
        return tuple(regions), tuple(_unpaired(missing, unknown))
    return _unmarked(model, functions)


def _unpaired(missing: Sequence[str], unknown: Sequence[str]) -> Iterable[str]:
    if missing:
        yield f"not checked on their own, as the file has no such site: {some_names(missing)}"
    if unknown:
        yield f"not checked on their own, as the reference has no such site: {some_names(unknown)}"


def some_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _marked(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for node in graph:
        entry = mark_of(node)
        if entry is not None:
            found[entry.site].append(node)
    return dict(found)


def _marked_region(
    name: str, nodes: Sequence[ir.Node], constants: frozenset[ir.Value], with_norm: bool
) -> Region:
    inside = set(nodes)
    starts = dict.fromkeys(
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value.producer() not in inside and value not in constants
    )
    if not starts:  # it convolves constants
        given = [node.inputs[0] for node in nodes if node.inputs]
        starts = dict.fromkeys(v for v in given if v is not None and v.producer() not in inside)
    ends = [value for node in nodes for value in node.outputs if _leaves(value, inside)]
    if len(starts) != 1 or len(ends) != 1:
        texts = (_values(starts), _values(ends))
        problem = f"its nodes take {texts[0]} and give {texts[1]}, where one value is expected"
        return Region(name, "", "", problem=problem)
    (start,), (end,) = starts, ends
    convs = [node for node in nodes if node.op_type in SPLIT]
    orders = orders_of(convs[0]) if convs else AS_THEY_WERE
    whole = bool(convs) and convs[0].op_type in WHOLE
    names = start.name or "", end.name or ""
    branches = tuple(_in_front_of_activations(end, inside))
    if branches:
        return Region(name, *names, orders=orders, joined=branches, activated=True)
    joined = tuple(_in_front_of_rounding(end, inside, with_norm=with_norm))
    if whole or joined:
        return Region(name, *names, orders=orders, whole=whole, joined=joined)
    return _region(name, start, end, with_norm, orders)


def _in_front_of_activations(end: ir.Value, inside: set[ir.Node]) -> Iterator[str]:
    """What goes into the activations of the branches of a region; nothing unless each has one."""
    concat = end.producer()
    parts = concat.inputs if concat is not None and concat.op_type == "Concat" else ()
    nodes = [None if value is None else value.producer() for value in parts]
    if all(node in inside and node is not None and node.op_type in FUSED for node in nodes):
        read = (node.inputs[0] for node in nodes if node is not None)
        yield from (value.name or "" for value in read if value is not None)


def _in_front_of_rounding(end: ir.Value, inside: set[ir.Node], *, with_norm: bool) -> Iterator[str]:
    """What the branches of a region give before they quantise it; nothing where they do not.

    That is behind the BatchNormalization in a branch where there must be one.
    """
    last = (*SPLIT, "BatchNormalization") if with_norm else SPLIT
    concat = end.producer()
    for value in concat.inputs if concat is not None and concat.op_type == "Concat" else ():
        node = None if value is None else value.producer()
        rounded = False
        while value is not None and node in inside and node.op_type not in last:
            rounded |= is_quantize(node)
            value = node.inputs[0]
            node = None if value is None else value.producer()
        if rounded and value is not None:
            yield value.name or ""


def _region(
    name: str,
    start: ir.Value,
    end: ir.Value,
    with_norm: bool,
    orders: ChannelOrders,
) -> Region:
    """The region up to `end`, or to the BatchNormalization behind it where there must be one."""
    norm = _behind_norms(end)
    last = norm if with_norm else end
    behind = None if with_norm or norm is end else norm.name
    return Region(name, start.name or "", last.name or "", behind, orders=orders)


def _values(values: Iterable[ir.Value]) -> str:
    names = [value.name or "?" for value in values]
    return f"{len(names)} values ({some_names(names)})" if names else "no value"


def _leaves(value: ir.Value, inside: set[ir.Node]) -> bool:
    used_outside = any(use.node not in inside for use in value.uses())
    return used_outside or value.is_graph_output()


def _norms_behind(value: ir.Value) -> Iterator[ir.Node]:
    """The BatchNormalizations that belong to what gives `value`, one behind the other."""
    node = value.producer()
    while node is not None and value is node.outputs[0]:
        norm = norm_behind(_passed_on(node), _DEFAULTS_HOLD)
        if not isinstance(norm, ir.Node):
            return
        yield norm
        node, value = norm, norm.outputs[0]


def _passed_on(node: ir.Node) -> ir.Node:
    """Where the value of `node`, which nothing else takes, has been passed on unchanged."""
    while len(uses := node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output():
        (user,) = (use.node for use in uses)
        if not _passes_on(user):
            break
        node = user
    return node


def _passes_on(node: ir.Node) -> bool:
    """Whether it gives what it takes."""
    if node.op_type == "Dropout":  # with a third input it may drop something
        return len(node.inputs) <= _TRAINING_MODE
    ends = {(str(v.shape), v.dtype) for v in (node.inputs[0], node.outputs[0]) if v is not None}
    kept = len(ends) == 1 and ("None", None) not in ends
    return node.op_type == "Identity" or (node.op_type in ("Cast", "Reshape") and kept)


_TRAINING_MODE = 2


def _behind_norms(value: ir.Value) -> ir.Value:
    """The output of the BatchNormalizations behind `value`, or `value`."""
    norms = list(_norms_behind(value))
    return norms[-1].outputs[0] if norms else value


def _in_front_of_pad(value: ir.Value, function: SiteFunction, conv: ConvNode) -> ir.Value:
    """What an explicit Pad takes that does what the reference's own padding says."""
    pad = value.producer()
    asked = function.spec.padding == "same" and not any(conv.spec.padding or ())
    if not asked or pad is None or pad.op_type != "Pad" or pad.inputs[0] is None:
        return value
    return pad.inputs[0]


def _unmarked(
    model: ir.Model, functions: Sequence[SiteFunction]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    convs, _ = conv_nodes(model, _sizes(folded_weights(model)), SPLIT)
    # A node's own name, such as Conv_12, is one convolution here and another there.
    named = {c.name: c for c in convs if unnumbered(c.name) != node_name(c.node)}
    pairs = [(each, named[each.name]) for each in functions if each.name in named]
    alike = all(_like(conv) == _shape_of(each) for each, conv in pairs)
    if pairs and alike and len(pairs) == len(functions):
        return tuple(starmap(_unmarked_region, pairs)), (
            "the file has no marks of ours: its convolutions are paired with the reference's by "
            "the names of their modules",
        )
    return _in_order(convs, functions)


def _in_order(
    convs: Sequence[ConvNode], functions: Sequence[SiteFunction]
) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    expected, found = list(map(_shape_of, functions)), list(map(_like, convs))
    if len(expected) != len(found):
        return (), (
            f"the file has no marks of ours, and {len(found)} convolutions where the reference has "
            f"{len(expected)}: they cannot be paired, and outputs alone are compared",
        )
    unlike = [k for k, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
    if unlike:
        first = functions[unlike[0]].name
        return (), (
            f"the file has no marks of ours, and its convolution number {unlike[0] + 1} is not "
            f"like {first}: they cannot be paired, and outputs alone are compared",
        )
    return tuple(map(_unmarked_region, functions, convs)), (
        "the file has no marks of ours: its convolutions are paired with the reference's in order",
    )


def _unmarked_region(function: SiteFunction, conv: ConvNode) -> Region:
    source, result = conv.node.inputs[0], conv.node.outputs[0]
    assert source is not None
    if conv.node.op_type in WHOLE:
        names = source.name or "", result.name or ""
        return Region(function.name, *names, orders=orders_of(conv.node), whole=True)
    source = _in_front_of_pad(source, function, conv)
    return _region(function.name, source, result, bool(function.norms), orders_of(conv.node))


def _like(conv: ConvNode) -> tuple[bool, int, tuple[int, ...]]:
    return conv.spec.transposed, conv.spec.groups, _weight_shape(conv)


def _shape_of(function: SiteFunction) -> tuple[bool, int, tuple[int, ...]]:
    return function.spec.transposed, function.spec.groups, tuple(function.weight.shape)


def _weight_shape(conv: ConvNode) -> tuple[int, ...]:
    spec = conv.spec
    rows, columns = spec.out_channels, spec.in_channels // spec.groups
    if spec.transposed:
        rows, columns = spec.in_channels, spec.out_channels // spec.groups
    return (rows, columns, *spec.kernel_size)
