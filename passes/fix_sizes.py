"""Write numbers that forward computes of the sizes of images as the numbers that they are.

Before:  y = F.pad(x, (0, p));  z = F.interpolate(y, size=s.shape[2:])     p = x.size(3) % 2
After:   y = F.pad(x, (0, 1));  z = F.interpolate(y, size=(14, 14))        for images of 27 x 27

A tool that has no rule for sizes reads constants. The result computes the same for images of the
example's size, and something else for others, which the report says. What depends on how many rows
a batch has is left, and so are views: what they are can often be said without a size.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from groupfx.rewriting import OperationPass, Place, Spelling, reads_size, shape_of
from groupfx.tracing.varying import VaryingAxes

_ARITHMETIC = (
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
    *(operator.mod, operator.neg, operator.pow, operator.getitem),
    *(math.ceil, math.floor, math.trunc, int, float, max, min, round, abs),
    *(torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min),
)
_VIEWS = (
    *("view", "reshape", "expand", "repeat", "unflatten", "new_zeros", "new_ones"),
    *(torch.reshape, torch.unflatten, torch.ops.aten.view.default, torch.ops.aten.expand.default),
    torch.ops.aten.reshape.default,
)
# Of no number: whatever is computed with it is none either.
_ROWS = object()
_LONGER = (1, 2, 3, 8, 13, 100, 1000, 10007)


@dataclass(frozen=True)
class FixSizes(OperationPass):
    """Numbers that forward computes of the sizes of images become those of the example."""

    refuses = ("numbers that depend on the batch, or on values", "views")

    def spell(self, place: Place) -> Spelling | None:
        node = place.node
        if place.shape is None or not node.args or place.calls(*_VIEWS):
            return None
        numbers = [each for each in node.all_input_nodes if _is_number(each)]
        found = {each: _value(each, place.axes) for each in numbers}
        if not numbers or None in found.values():
            return None

        def constant(given: fx.Node) -> Any:
            return found.get(given, given)

        return Spelling(
            f"the same with {', '.join(str(value) for value in found.values())}",
            # What is neither a size nor a tensor, such as an item of a constant, stays inside.
            tuple(
                n
                for n in node.all_input_nodes
                if n not in found and n.op != "get_attr" and shape_of(n) is not None
            ),
            lambda: place.copy(*fx.node.map_arg((node.args, node.kwargs), constant)),
            fixes_sizes=any(_follows_sizes(each, place.axes) for each in numbers),
        )


def _is_number(node: fx.Node) -> bool:
    """Whether it is a size, or computed of sizes alone."""
    if node.op in ("placeholder", "get_attr") or shape_of(node) is not None:
        return False
    if reads_size(node):
        return True
    return node.target in _ARITHMETIC and all(map(_is_number, node.all_input_nodes))


def _follows_sizes(number: fx.Node, axes: VaryingAxes) -> bool:
    """Whether it is another number for images of other sizes; a half of one more is the same."""
    value = _value(number, axes)
    return any(_value(number, axes, longer) != value for longer in _LONGER)


def _value(node: fx.Node, axes: VaryingAxes, longer: int = 0) -> Any:
    """What it is on the example, with `longer` images; None where it depends on the batch."""
    try:
        value = _computed(node, axes, longer)
    except (TypeError, ValueError, ArithmeticError, IndexError, KeyError):
        return None
    return None if value is _ROWS or (isinstance(value, tuple) and _ROWS in value) else value


def _computed(node: fx.Node, axes: VaryingAxes, longer: int) -> Any:
    args, kwargs = node.args, node.kwargs
    if reads_size(node):
        (tensor,) = node.all_input_nodes
        shape = shape_of(tensor)
        if shape is None:
            raise ValueError(f"{node} is a size of something else than a tensor")
        rows, sized = axes.rows(tensor), axes.sized(tensor, len(shape))
        sizes = tuple(
            _ROWS if axis in rows else size + longer * (axis in sized)
            for axis, size in enumerate(shape)
        )
        axis: Any = kwargs.get("dim", args[1] if node.target is not getattr and args[1:] else None)
        return sizes if axis is None else sizes[axis]
    given = fx.node.map_arg((args, kwargs), lambda each: _computed(each, axes, longer))
    function: Any = node.target
    return function(*given[0], **given[1])
