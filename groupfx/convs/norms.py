"""Which BatchNorm belongs to a convolution in an fx graph."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .spec import BATCHNORMS

_OPERATOR = torch.ops.aten.batch_norm.default
_COUNT = torch.ops.aten.add_.Tensor
_STATISTICS = ("running_mean", "running_var")
_AFFINE = ("weight", "bias")
# Function -> names of its arguments, in their order.
_FUNCTIONS = {
    F.batch_norm: ("input", *_STATISTICS, *_AFFINE, "training", "momentum", "eps"),
    torch.batch_norm: ("input", *_AFFINE, *_STATISTICS, "training", "momentum", "eps"),
    _OPERATOR: ("input", *_AFFINE, *_STATISTICS, "training", "momentum", "eps"),
}
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class NormCall:
    """A call of a function of batch normalisation, by its arguments.

    `tensors` are by their names in a layer; `training` and `momentum` may be values of the graph.
    """

    input: Any
    tensors: dict[str, Any]
    training: Any
    momentum: Any
    eps: Any


def read_norm_function(node: fx.Node) -> NormCall | None:
    """The call of a function that normalises by batches; None for any other node."""
    names = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if names is None:
        return None
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return NormCall(
        input=given.get("input"),
        tensors={name: given.get(name) for name in (*_AFFINE, *_STATISTICS)},
        training=given.get("training", False),
        momentum=given.get("momentum", 0.1),
        eps=given.get("eps", 1e-5),
    )


def counters(graph: fx.Graph, path: str) -> list[fx.Node]:
    """Where an export counts the batches that the norm at `path` sees, in place."""
    return [node for node in graph.nodes if counted_norm(node) == path]


def counted_norm(node: fx.Node) -> str | None:
    """The path of the norm whose batches a node counts; None for any other node."""
    if node.target is not _COUNT or node.users or not isinstance(node.args[0], fx.Node):
        return None
    path, _, name = str(node.args[0].target).rpartition(".")
    return path if node.args[0].op == "get_attr" and name == COUNTER else None


def is_batchnorm(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` calls a plain BatchNorm module on one value."""
    if node.op != "call_module" or len(node.args) + len(node.kwargs) != 1:
        return False
    return type(root.get_submodule(str(node.target))) in BATCHNORMS


def norm_behind(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The BatchNorm that takes the value of `node`, which nothing else does; None without one.

    A call of a module, or, as `torch.export` leaves it, of the operator: then in eval mode and on
    tensors that no input bears on.
    """
    users = list(node.users)
    if len(users) != 1 or users[0].all_input_nodes[0] is not node:
        return None
    return users[0] if is_batchnorm(users[0], root) or _is_operator(users[0]) else None


def _is_operator(node: fx.Node) -> bool:
    if node.target is not _OPERATOR:
        return False
    tensors, training = node.args[1:5], node.args[5]
    constant = all(tensor is None or _is_constant(tensor) for tensor in tensors)
    return constant and not training and tensors[2] is not None


def _is_constant(value: Any) -> bool:
    """Whether it is stored, or computed of what is, or made anew the same in each run."""
    if not isinstance(value, fx.Node) or value.op == "placeholder":
        return False
    if value.op == "get_attr":
        return True
    drawn = torch.Tag.nondeterministic_seeded in getattr(value.target, "tags", ())
    return not drawn and all(map(_is_constant, value.all_input_nodes))
