"""Which BatchNorm belongs to a convolution in an fx graph."""

from typing import Any

import torch
from torch import fx, nn

from .spec import BATCHNORMS

_OPERATOR = torch.ops.aten.batch_norm.default


def is_batchnorm(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` calls a plain BatchNorm module on one value."""
    if node.op != "call_module" or len(node.args) + len(node.kwargs) != 1:
        return False
    return type(root.get_submodule(str(node.target))) in BATCHNORMS


def norm_behind(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The BatchNorm that takes the value of `node`, which nothing else does; None without one.

    A call of a module, or, as `torch.export` leaves it, of the operator: then in eval mode and on
    stored tensors alone.
    """
    users = list(node.users)
    if len(users) != 1 or users[0].all_input_nodes[0] is not node:
        return None
    return users[0] if is_batchnorm(users[0], root) or _is_operator(users[0]) else None


def _is_operator(node: fx.Node) -> bool:
    if node.target is not _OPERATOR:
        return False
    tensors, training = node.args[1:5], node.args[5]
    stored = all(tensor is None or _is_stored(tensor) for tensor in tensors)
    return stored and not training and tensors[2] is not None


def _is_stored(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"
