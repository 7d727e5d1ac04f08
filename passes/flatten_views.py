"""Spell a change of shape that only joins, adds or removes axes behind the channels.

Before:  y = x.view(x.size(0), -1)             x [N, C, H, W]
After:   y = torch.flatten(x, 1)

Before:  y = x.view(n, c, 1, 1)                x [N, C]
After:   y = torch.unsqueeze(torch.unsqueeze(x, 2), 3)

A view of `[N, C, H*W]` is a flatten of positions. All keep the order of the elements. A tool that
follows channels reads a flatten, which says that a channel becomes H*W features, and cannot read a
view, whose sizes say nothing of channels.
"""

import math
import operator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from groupfx.convs.sources import sources
from groupfx.rewriting import OperationPass, Place, Skip, Spelling, shape_of

_ATEN = torch.ops.aten
_VIEWS = (
    *("view", "reshape", torch.reshape, "squeeze", torch.squeeze, "view_as", "reshape_as"),
    # Those with a size that torch.export left open, which are functions of no numbers.
    *(_ATEN.view.default, _ATEN.reshape.default),
)


@dataclass(frozen=True)
class FlattenViews(OperationPass):
    """Views become flatten, or unsqueeze."""

    backwards = True

    refuses = ("views that take channels apart, or move elements to another axis",)

    def spell(self, place: Place) -> Spelling | Skip | None:
        if not place.calls(*_VIEWS, operator.getitem):
            return None
        value, after = _chain(place.node), place.shape
        before = None if value is None else shape_of(value)
        if value is None or before is None or after is None or len(before) < 2:
            return None
        if all(each.op != "placeholder" for each in sources(value)):
            return None  # a weight, or made of weights, whose view no tool follows
        if before == after and place.node.target is not torch.reshape:
            inputs = (_single_position(value) or value,)
            return Spelling("its input", inputs, lambda: value)
        if _drops_a_batch_of_one(place.node, value):
            return Skip("squeeze() takes away a batch of one as well; name the axes")
        if _fixes_rows(place.node) and 0 in place.axes.rows(value):
            return Skip(f"it gives {after[0]} rows for any batch; write flatten(1), or -1 for them")
        if len(before) > 2 and after == (before[0], math.prod(before[1:])):
            inputs = (_single_position(value) or value,)
            flat = partial(place.call, torch.flatten, value, 1)
            fixes = _leaves_rows_open(place.node) and bool(place.axes.sized(value, len(before)))
            return Spelling("torch.flatten", inputs, flat, fixes_sizes=fixes)
        if len(before) > len(after) > 2 and after == (*before[:2], math.prod(before[2:])):
            return Spelling("torch.flatten", (value,), lambda: place.call(torch.flatten, value, 2))
        more = len(after) - len(before)
        if more > 0 and after == (*before, *(1,) * more):
            return Spelling("torch.unsqueeze", (value,), lambda: _unsqueezed(place, value, more))
        return None


def _single_position(value: fx.Node) -> fx.Node | None:
    """What was pooled to the one position of `value`, whose view is none of any other size."""
    shape = shape_of(value)
    while shape is not None and math.prod(shape[2:]) == 1:
        given = value.all_input_nodes
        if len(given) != 1:
            return None
        (value,) = given
        shape = shape_of(value)
        if shape is not None and math.prod(shape[2:]) != 1:
            return value
    return None


def _chain(node: fx.Node) -> fx.Node | None:
    """What is viewed: the start of a row of views and squeezes that nothing else reads."""
    value = node.args[0] if node.args else None
    if not isinstance(value, fx.Node):
        return None
    if node.target is operator.getitem:
        return value if _takes_single(node, value) or _adds_axes(node, value) else None
    squeezes = ("squeeze", torch.squeeze)
    while value.target in squeezes and value.op != "placeholder" and len(value.users) == 1:
        inner = value.args[0]
        if not isinstance(inner, fx.Node) or shape_of(inner) is None:
            break
        value = inner
    return value


def _drops_a_batch_of_one(node: fx.Node, value: fx.Node) -> bool:
    """Whether one of the squeezes back to `value` names no axis."""
    squeezes = ("squeeze", torch.squeeze)
    while node is not value:
        if node.target in squeezes and len(node.args) + len(node.kwargs) == 1:
            return True
        node = node.all_input_nodes[0]
    return False


def _leaves_rows_open(node: fx.Node) -> bool:
    """Whether it is `x.view(-1, 64)`, which makes rows of the positions that a larger image has."""
    sizes = _sizes(node)
    return sizes[:1] == (-1,) and all(type(size) is int for size in sizes)


def _fixes_rows(node: fx.Node) -> bool:
    """Whether it is `x.view(2, -1)`, which another batch runs through, and comes out otherwise."""
    sizes = _sizes(node)
    return len(sizes) > 1 and type(sizes[0]) is int and sizes[0] > 0 and -1 in sizes[1:]


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """Those of `x.view(2, -1)` and of `x.view((2, -1))`."""
    sizes = node.args[1:]
    one = len(sizes) == 1 and isinstance(sizes[0], tuple | list)
    return tuple(sizes[0]) if one else sizes  # type: ignore[arg-type]


def _takes_single(node: fx.Node, value: fx.Node) -> bool:
    """Whether it is `x[:, :, 0, 0]`, or `x[..., 0, 0]`, of an `[N, C, 1, 1]`."""
    shape, index = shape_of(value), node.args[1]
    if shape is None or not isinstance(index, tuple) or len(shape) < 3:
        return False
    whole = slice(None)
    if Ellipsis in index:
        place, missing = index.index(Ellipsis), len(shape) - len(index) + 1
        index = (*index[:place], *(whole,) * missing, *index[place + 1 :])
    if len(index) != len(shape):
        return False
    return index[:2] == (whole, whole) and index[2:] == (0,) * (len(shape) - 2) == tuple(
        size - 1 for size in shape[2:]
    )


def _adds_axes(node: fx.Node, value: fx.Node) -> bool:
    """Whether it is `x[..., None, None]`, or `x[:]`: new axes, and all of the others."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    shape = shape_of(value)
    if shape is None or any(each not in (slice(None), Ellipsis, None) for each in index):
        return False
    return index.count(None) == 0 or Ellipsis in index


def _unsqueezed(place: Place, value: fx.Node, more: int) -> fx.Node:
    shape = shape_of(value)
    assert shape is not None
    for axis in range(len(shape), len(shape) + more):
        value = place.call(torch.unsqueeze, value, axis)
    return value
