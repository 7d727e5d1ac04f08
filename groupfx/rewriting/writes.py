"""Operations that write to a tensor which they are given, and the values that lie in its memory."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx, nn

_IN_PLACE = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"}
    | {"ilshift", "irshift", "imatmul", "setitem"}
)
_NO_WRITES = frozenset({"detach_", "requires_grad_"})
# What may give a value that lies where its input lies.
_VIEWS = frozenset(
    {
        "getitem",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "t",
        "chunk",
        "split",
        "tensor_split",
        "narrow",
        "unbind",
        "select",
        "slice",
        "expand",
        "expand_as",
        "unfold",
        "diagonal",
        "contiguous",
        "detach",
        "alias",
        "to",
        "float",
        "double",
        "half",
        "type",
        "getattr",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
    }
)
_VIEWING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def writes(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` changes the tensor that is its first input."""
    if node.op == "call_module":
        return getattr(root.get_submodule(str(node.target)), "inplace", False) is True
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name(node)
    ends = name.endswith("_") and name not in _NO_WRITES
    if ends or name in _IN_PLACE:
        return True
    return node.kwargs.get("out") is not None or _is_asked_to(node)


def memory_of(node: fx.Node, root: nn.Module) -> set[fx.Node]:
    """The values of the graph that may share memory with that of `node`."""
    base = node
    while _may_lie_in(base, root):
        base = base.all_input_nodes[0]
    found = {base}
    if base.op == "get_attr":
        found |= {each for each in base.graph.nodes if _reads_the_same(each, base)}
    return _with_views(found, root)


def is_written(node: fx.Node, root: nn.Module) -> bool:
    """Whether an operation of the graph changes the value of `node`, or what it is a view of."""
    memory = memory_of(node, root)
    users = {user for each in memory for user in each.users}
    return any(writes(user, root) and user.all_input_nodes[0] in memory for user in users)


def is_stored(node: fx.Node, root: nn.Module) -> bool:
    """Whether the value of `node` lies in a tensor of the model."""
    return any(each.op == "get_attr" for each in memory_of(node, root))


def why_kept(node: fx.Node, root: nn.Module) -> str | None:
    """Why a call that writes must stay one: somebody reads what it writes to. None if nobody does.

    A reader in front of it is none of its concern.
    """
    held = node.all_input_nodes[0]
    if is_stored(held, root):
        return "it writes to a tensor of the model, which the next run reads"
    behind = set()
    current = node.next
    while current.op != "root":
        behind.add(current)
        current = current.next
    memory = memory_of(held, root) - _with_views({node}, root)
    if any(user in behind for each in memory for user in each.users):
        return "it writes to a value that is read again afterwards"
    return None


def _with_views(values: set[fx.Node], root: nn.Module) -> set[fx.Node]:
    """Values, and what is made of them in the same memory."""
    found, pending = set(values), list(values)
    while pending:
        for user in pending.pop().users:
            if user not in found and _may_lie_in(user, root):
                found.add(user)
                pending.append(user)
    return found


def _reads_the_same(node: fx.Node, other: fx.Node) -> bool:
    return node.op == "get_attr" and node.target == other.target


def _may_lie_in(node: fx.Node, root: nn.Module) -> bool:
    """Whether its value may lie in the memory of its first input."""
    if not node.all_input_nodes:
        return False
    if writes(node, root):
        return True
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _VIEWING)
    return _name(node) in _VIEWS


def _name(node: fx.Node) -> str:
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    # A method that an operator stands for may be called by its name.
    return name[2:-2] if name.startswith("__") and name.endswith("__") else name


def _is_asked_to(node: fx.Node) -> bool:
    """Whether `inplace` is given as true, by name or at its place."""
    if node.kwargs.get("inplace") is True:
        return True
    place = None if isinstance(node.target, str) else _place_of_inplace(node.target)
    return place is not None and node.args[place : place + 1] == (True,)


@cache
def _place_of_inplace(function: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None  # a builtin, of which none has such an argument
    return names.index("inplace") if "inplace" in names else None
