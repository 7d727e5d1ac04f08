"""Whether a copy in the order of its axes is needed: a `view` takes no tensor that lies otherwise.

`contiguous` and `clone` give their input back, so a graph needs none of them, but for this.
"""

import operator

import torch
from torch import fx

from .operation_pass import has_node

_ATEN = torch.ops.aten
_TURNS = (
    *("transpose", "permute", "swapaxes", "movedim", "expand", "t", "flip", "unfold"),
    *(torch.transpose, torch.permute, torch.swapaxes, torch.movedim),
    *(_ATEN.transpose.int, _ATEN.permute.default, _ATEN.expand.default, _ATEN.t.default),
    *(_ATEN.unfold.default, _ATEN.slice.Tensor, _ATEN.select.int),
    *(operator.getitem, getattr),
)


def is_needed(copy: fx.Node) -> bool:
    """Whether a view behind `copy`, which copies its input, needs the order that it lies in."""
    return _is_viewed(copy) and _may_be_turned(copy)


def _is_viewed(value: fx.Node) -> bool:
    """Whether a view reads a value, or what elementwise calls make of it."""
    pending, seen = [value], {value}
    while pending:
        for user in pending.pop().users:
            if _is_view(user):
                return True
            if user.op in ("call_function", "call_method") and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("view", "view_as")
    # Of sizes that are numbers, a reshape can be made of it.
    return node.target is _ATEN.view.default and has_node(node.args[1])


def _may_be_turned(value: fx.Node) -> bool:
    """Whether what `value` is made of may lie in memory in another order than its axes say."""
    while value.all_input_nodes:
        value = value.all_input_nodes[0]
        if value.op not in ("call_function", "call_method"):
            return False
        if value.target in _TURNS:
            return True
    return False
