"""Put split sites together again whose weight forward computes, or that share it with others.

There the branches are function calls on rows of one tensor:

    cat([conv(x[:, k*n : (k+1)*n], w[k*m : (k+1)*m], b[k*m : (k+1)*m]) for k in range(g)], dim=1)
    becomes  conv(x, w, b),  groups = g
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..channels import Slice
from .unsplit import PlannedSite, cat_values, finish, joined, put_in_place, sliced

Function = Callable[..., Tensor]

_FUNCTIONS: frozenset[Any] = frozenset(
    getattr(torch, f"conv{kind}{dims}d") for dims in (1, 2, 3) for kind in ("", "_transpose")
)
_PARAMETRIZATION = ".parametrizations.weight"


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


def unsplit_computed(root: fx.GraphModule, path: str) -> list[PlannedSite]:
    """Put the sites of `root` together whose branches are function calls, in place."""
    planned: list[PlannedSite] = []
    for node in list(root.graph.nodes):
        calls = _read(node)
        if calls is None:
            continue
        first, groups = calls[0], len(calls)
        place = f"whole_{len(planned)}"
        root.add_module(place, ComputedConv(first.function, first.options, first.pad, groups))
        arguments = (first.source, first.weight, first.bias)
        with root.graph.inserting_before(node):
            value = root.graph.call_module(place, arguments)
        put_in_place(root.graph, node, value)
        name = joined(path, _weight_name(first.weight) or node.name)
        planned.append(PlannedSite(joined(path, place), name, groups))
    if planned:
        finish(root)
    return planned


def _read(node: fx.Node) -> list[_Call] | None:
    values = cat_values(node)
    if values is None or len(values) < 2:
        return None
    calls = [call for value in values if (call := _branch(value)) is not None]
    if len(calls) != len(values):
        return None
    first = calls[0]
    fields = ("source", "weight", "bias", "function", "options", "pad")
    alike = all(getattr(c, name) == getattr(first, name) for c in calls for name in fields)
    parts: list[Sequence[Slice]] = [[c.part for c in calls], [c.rows for c in calls]]
    if first.bias is not None:
        parts.append([c.bias_rows for c in calls if c.bias_rows is not None])
    return calls if alike and all(map(_one_after_another, parts)) else None


def _one_after_another(parts: Sequence[Slice]) -> bool:
    size = len(parts[0])
    return all(p == Slice(k * size, (k + 1) * size) for k, p in enumerate(parts))


def _branch(value: fx.Node) -> _Call | None:
    if value.op != "call_function" or value.target not in _FUNCTIONS or len(value.args) != 3:
        return None
    data, weight, bias = value.args
    if not isinstance(data, fx.Node) or len(value.users) != 1:
        return None
    pad = None
    if data.op == "call_function" and data.target is F.pad and len(data.args) == 3:
        data, *pad = data.args
    channels = sliced(data) if isinstance(data, fx.Node) else None
    rows, bias_rows = _rows(weight), _rows(bias)
    if channels is None or rows is None or (bias is not None and bias_rows is None):
        return None
    held, held_rows = bias_rows or (None, None)
    function: Any = value.target
    return _Call(*channels, *rows, held, held_rows, function, dict(value.kwargs), pad)


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


def _weight_name(weight: fx.Node) -> str | None:
    """The module that a weight belongs to: what holds it, or what holds what it is made of."""
    pending, seen = [weight], {weight}
    while pending:
        node = pending.pop(0)
        if node.op == "get_attr":
            key = str(node.target)
            return key.rpartition(".")[0] or key
        if node.op == "call_module" and not node.all_input_nodes:
            return str(node.target).removesuffix(_PARAMETRIZATION)
        new = [source for source in node.all_input_nodes if source not in seen]
        seen.update(new)
        pending += new
    return None
