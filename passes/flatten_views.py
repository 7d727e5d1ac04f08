"""Spell a change of shape that only joins, adds or removes axes behind the channels.

Before:  y = x.view(x.size(0), -1)             x [N, C, H, W]
After:   y = torch.flatten(x, 1)

Before:  y = x.view(n, c, 1, 1)                x [N, C]
After:   y = torch.unsqueeze(torch.unsqueeze(x, 2), 3)

Both keep the order of the elements. A tool that follows channels reads a flatten, which says that a
channel becomes H*W features, and cannot read a view, whose sizes say nothing of channels.
"""

import math
import operator
from dataclasses import dataclass

import torch
from torch import fx

from groupfx.rewriting import OperationPass, Place, Spelling, shape_of

_VIEWS = ("view", "reshape", torch.reshape, "squeeze", torch.squeeze, "view_as", "reshape_as")


@dataclass(frozen=True)
class FlattenViews(OperationPass):
    """Views become flatten, or unsqueeze."""

    backwards = True

    refuses = ("views that take channels apart, or move elements to another axis",)

    def spell(self, place: Place) -> Spelling | None:
        if not place.calls(*_VIEWS, operator.getitem):
            return None
        value, after = _chain(place.node), place.shape
        before = None if value is None else shape_of(value)
        if value is None or before is None or after is None or len(before) < 2:
            return None
        if before == after and place.node.op != "call_function":
            return Spelling("its input", (value,), lambda: value)
        if len(before) > 2 and after == (before[0], math.prod(before[1:])):
            inputs = (_single_position(value) or value,)
            return Spelling("torch.flatten", inputs, lambda: place.call(torch.flatten, value, 1))
        more = len(after) - len(before)
        if more > 0 and after == (*before, *(1,) * more):
            return Spelling("torch.unsqueeze", (value,), lambda: _unsqueezed(place, value, more))
        return None


def _single_position(value: fx.Node) -> fx.Node | None:
    """What was pooled to the one position of `value`: a squeeze is no flatten of any other."""
    shape = shape_of(value)
    given = value.all_input_nodes
    if shape is None or math.prod(shape[2:]) != 1 or len(given) != 1 or not shape_of(given[0]):
        return None
    return given[0]


def _chain(node: fx.Node) -> fx.Node | None:
    """What is viewed: the start of a row of views and squeezes that nothing else reads."""
    value = node.args[0] if node.args else None
    if not isinstance(value, fx.Node):
        return None
    if node.target is operator.getitem:
        return value if _takes_single(node, value) else None
    squeezes = ("squeeze", torch.squeeze)
    while value.target in squeezes and value.op != "placeholder" and len(value.users) == 1:
        inner = value.args[0]
        if not isinstance(inner, fx.Node) or shape_of(inner) is None:
            break
        value = inner
    return value


def _takes_single(node: fx.Node, value: fx.Node) -> bool:
    """Whether it is `x[:, :, 0, 0]` of an `[N, C, 1, 1]`."""
    shape, index = shape_of(value), node.args[1]
    if shape is None or not isinstance(index, tuple) or len(index) != len(shape) or len(shape) < 3:
        return False
    whole = slice(None)
    return index[:2] == (whole, whole) and index[2:] == (0,) * (len(shape) - 2) == tuple(
        size - 1 for size in shape[2:]
    )


def _unsqueezed(place: Place, value: fx.Node, more: int) -> fx.Node:
    shape = shape_of(value)
    assert shape is not None
    for axis in range(len(shape), len(shape) + more):
        value = place.call(torch.unsqueeze, value, axis)
    return value
