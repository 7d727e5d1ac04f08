"""Put split sites together again whose weight forward computes, or that share it with others.

There the branches are function calls on rows of one tensor:

    cat([conv(x[:, k*n : (k+1)*n], w[k*m : (k+1)*m], b[k*m : (k+1)*m]) for k in range(g)], dim=1)
    becomes  conv(x, w, b),  groups = g
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..convs.names import joined, weight_owner
from ..nn.swapped import SwappedConv
from ..plan.channels import Slice
from .graph import WHOLE, Call, Gathered, PlannedSite
from .norms import Norms, calls_below, peel_norms
from .split_sites import Shapes, cat_values, covers, equal_parts, sliced

Function = Callable[..., Tensor]

_FUNCTIONS: frozenset[Any] = frozenset(
    getattr(torch, f"conv{kind}{dims}d") for dims in (1, 2, 3) for kind in ("", "_transpose")
)


class ComputedConv(nn.Module):
    """A grouped convolution on a weight that it is given: one node for a site of branches."""

    def __init__(self, function: Function, options: Mapping[str, Any], pad: Any, groups: int):
        super().__init__()
        self.function = function
        self.options = dict(options)
        self.pad = pad
        self.groups = groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`function(x, weight, bias, groups=groups)`, padded first where a mode asks for it."""
        if self.pad is not None:
            edges, mode = self.pad
            x = F.pad(x, list(edges), mode)
        return self.function(x, weight, bias, groups=self.groups, **self.options)


@dataclass(frozen=True)
class _Call:
    """One branch. `rows` are those of the weight, `bias_rows` those of the bias."""

    source: fx.Node
    part: Slice
    weight: fx.Node
    rows: Slice
    bias: fx.Node | None
    bias_rows: Slice | None
    function: Function
    options: Mapping[str, Any]
    pad: Any


def unsplit_computed(root: fx.GraphModule, path: str, shapes: Shapes) -> Gathered:
    """The sites of `root` whose branches are function calls.

    `shapes` has the shape of each value that is sliced: branches must read all of it.
    """
    found = Gathered()
    for node in root.graph.nodes:
        read = _read(node, root)
        if read is None or not _reads_all(read[0], shapes):
            continue
        (first, *others), norms = read
        norm = None if norms is None else norms.merged(root)
        if norms is not None and norm is None:
            continue
        groups = 1 + len(others)
        place = f"{WHOLE}_{len(found.planned)}"
        found.modules[place] = ComputedConv(first.function, first.options, first.pad, groups)
        if norms is not None and norm is not None:
            found.modules[norms.home] = norm
        arguments = (first.source, first.weight, first.bias)
        home = None if norms is None else norms.home
        found.calls.append(Call(node, place, arguments, home))
        # Where a convolution module was swapped, its path says all.
        swapped = isinstance(root, SwappedConv)
        owner = path if swapped else weight_owner(first.weight, partial(joined, path))
        name = owner or node.name
        found.planned.append(PlannedSite(joined(path, place), name, groups))
    return found


def _reads_all(calls: Sequence[_Call], shapes: Shapes) -> bool:
    first, count = calls[0], len(calls)
    whole = covers(first.part, count, first.source, 1, shapes)
    whole = whole and covers(first.rows, count, first.weight, 0, shapes)
    if first.bias is None or first.bias_rows is None:
        return whole
    return whole and covers(first.bias_rows, count, first.bias, 0, shapes)


def _read(node: fx.Node, root: fx.GraphModule) -> tuple[list[_Call], Norms | None] | None:
    values = cat_values(node)
    peeled = None if values is None or len(values) < 2 else peel_norms(values, root)
    if peeled is None:
        return None
    convs, norms = peeled
    calls = [call for value in convs if (call := _branch(value)) is not None]
    if len(calls) != len(convs):
        return None
    if norms is not None and calls_below(root, norms.home) != len(calls):
        return None
    first = calls[0]
    fields = ("source", "weight", "bias", "function", "options", "pad")
    alike = all(getattr(c, name) == getattr(first, name) for c in calls for name in fields)
    parts: list[Sequence[Slice]] = [[c.part for c in calls], [c.rows for c in calls]]
    if first.bias is not None:
        parts.append([c.bias_rows for c in calls if c.bias_rows is not None])
    return (calls, norms) if alike and all(map(equal_parts, parts)) else None


def _branch(value: fx.Node) -> _Call | None:
    if value.op != "call_function" or value.target not in _FUNCTIONS or len(value.args) != 3:
        return None
    data, weight, bias = value.args
    if not isinstance(data, fx.Node) or len(value.users) != 1 or "groups" in value.kwargs:
        return None
    pad = None
    if data.op == "call_function" and data.target is F.pad and _pads_space(data, value):
        data, *pad = data.args
    channels = sliced(data) if isinstance(data, fx.Node) else None
    rows, bias_rows = _rows(weight), _rows(bias)
    if channels is None or rows is None or (bias is not None and bias_rows is None):
        return None
    held, held_rows = bias_rows or (None, None)
    function: Any = value.target
    return _Call(*channels, *rows, held, held_rows, function, dict(value.kwargs), pad)


def _pads_space(pad: fx.Node, conv: fx.Node) -> bool:
    """Whether the edges are those of the spatial axes, in a mode without further numbers."""
    if len(pad.args) != 3 or pad.kwargs or not isinstance(pad.args[1], (list, tuple)):
        return False
    dims = int(str(getattr(conv.target, "__name__", ""))[-2])
    return len(pad.args[1]) == 2 * dims


def _rows(node: Any) -> tuple[fx.Node, Slice] | None:
    """The tensor and the rows of `w[start:stop]`."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(source, fx.Node) or not isinstance(index, slice) or index.step is not None:
        return None
    if not isinstance(index.start, int) or not isinstance(index.stop, int):
        return None
    return source, Slice(index.start, index.stop)
