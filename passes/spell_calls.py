"""Spell methods and operators as the functions that do the same.

Before:  y = x.sigmoid();  z = a * b;  u += v;  torch.concat([p, q], -3)
After:   y = torch.sigmoid(x);  z = torch.multiply(a, b);  u = u + v;  torch.cat([p, q], dim=1)

A call in place becomes one that is not, where nobody reads the old value afterwards. What gives its
input back as it is goes: `contiguous` where no view needs it, `clone`, a dropout that is off, and
`expand_as` in a product, which broadcasts anyway.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from groupfx.rewriting import OperationPass, Place, Skip, Spelling, has_node, shape_of
from groupfx.rewriting.memory_order import is_needed
from groupfx.rewriting.writes import is_written, why_kept, writes

_ONE: dict[Callable[..., Any], tuple[object, ...]] = {
    torch.sigmoid: (F.sigmoid, "sigmoid", "sigmoid_", torch.sigmoid_, torch.special.expit),
    torch.tanh: (F.tanh, "tanh", "tanh_", torch.tanh_),
    F.relu: ("relu", "relu_", F.relu_, torch.relu_, torch.relu),
    F.log_softmax: ("log_softmax", torch.log_softmax),
    torch.squeeze: ("squeeze",),
    torch.unsqueeze: ("unsqueeze",),
}
_TWO: dict[Callable[..., Any], tuple[object, ...]] = {
    torch.multiply: (
        *(operator.mul, operator.imul, torch.mul),
        *("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__"),
    ),
    operator.add: (operator.iadd, "add", "add_", "__add__", "__radd__", "__iadd__"),
    operator.sub: (
        *(operator.isub, "sub", "sub_", "__sub__"),
        *(torch.subtract, "subtract", "subtract_"),
    ),
}
_CATS = (torch.cat, torch.concat, torch.concatenate, torch.hstack)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_DROPOUT_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SAME = ("contiguous", "clone", torch.clone)
_SINGLE = {target: function for function, all_ in _ONE.items() for target in all_}
_DOUBLE = {target: function for function, all_ in _TWO.items() for target in all_}


@dataclass(frozen=True)
class SpellCalls(OperationPass):
    """Methods and operators become functions; calls in place do not write any more."""

    # A copy is needed as long as somebody writes.
    backwards = True

    refuses = ("calls in place whose old value is read afterwards",)

    def spell(self, place: Place) -> Spelling | Skip | None:
        node = place.node
        if _gives_its_input(place):
            (value,) = node.all_input_nodes
            return Spelling("its input", (value,), lambda: value)
        if node.op == "call_module":
            return _called_with_keywords(place)
        if node.op not in ("call_function", "call_method") or place.shape is None:
            return None
        written = writes(node, place.root)
        kept = why_kept(node, place.root) if written else None
        if kept is not None:
            return Skip(kept)
        if place.calls(*_CATS):
            return _cat(place)
        if node.target in _SINGLE:
            return _single(place, _SINGLE[node.target])
        if node.target in _DOUBLE:
            return _double(place, _DOUBLE[node.target])
        if place.calls(F.relu, F.relu6) and written:
            return _single(place, node.target)  # type: ignore[arg-type]
        return None


def _gives_its_input(place: Place) -> bool:
    """Whether its value is its input, whatever the mode."""
    if len(place.node.all_input_nodes) != 1:
        return False
    if place.calls(*_DROPOUTS):
        given = place.arguments("input", "p", "training")
        return given.get("training", True) is False or given.get("p", 0.5) == 0
    if isinstance(place.module, _DROPOUT_MODULES):
        return place.module.p == 0 and not place.store.hooks(place.module)
    if not place.calls(*_SAME) or place.node.kwargs or is_needed(place.node):
        return False
    held = (place.node, *place.node.all_input_nodes)
    return not any(is_written(each, place.root) for each in held)


def _single(place: Place, function: Callable[..., Any]) -> Spelling | None:
    value, *others = place.node.args
    if not isinstance(value, fx.Node) or has_node(others):
        return None
    kwargs = {name: given for name, given in place.node.kwargs.items() if name != "inplace"}
    room = "F" if function in (F.relu, F.relu6, F.log_softmax) else "torch"
    return Spelling(
        f"{room}.{function.__name__}",
        (value,),
        lambda: place.call(function, value, *others, **kwargs),
    )


def _double(place: Place, function: Callable[..., Any]) -> Spelling | None:
    """A sum or a product of two; the factor of `alpha` has no other spelling."""
    args = (*place.node.args, *place.node.kwargs.values())
    nodes = tuple(place.node.all_input_nodes)
    if len(args) != 2 or place.node.kwargs.keys() - {"other"}:
        return None
    if any(shape_of(node) is None for node in nodes):
        return None  # a product of sizes
    if function is operator.add and place.node.target == torch.add:
        return None
    if isinstance(place.node.target, str) and place.node.target.startswith("__r"):
        args = args[::-1]
    args = tuple(_unexpanded(place, each) for each in args)
    nodes = tuple(each for each in args if isinstance(each, fx.Node))
    name = function.__name__
    return Spelling(
        f"torch.{name}" if function is torch.multiply else name,
        tuple(node for node in nodes if node.op != "get_attr"),
        lambda: place.call(function, *args),
    )


def _unexpanded(place: Place, value: Any) -> Any:
    """What an operand is an expansion of: sums and products broadcast by themselves."""
    if not isinstance(value, fx.Node) or value.target not in ("expand_as", "expand"):
        return value
    inner, others = value.args[0], [n for n in place.node.all_input_nodes if n is not value]
    fits = any(shape_of(other) == place.shape for other in others)
    return inner if fits and isinstance(inner, fx.Node) and shape_of(inner) else value


def _cat(place: Place) -> Spelling | None:
    """A concatenation, along an axis that is counted from the front and called `dim`."""
    given = place.arguments("tensors", "dim")
    tensors, dim = given.get("tensors"), given.get("dim", given.get("axis", 0))
    if place.calls(torch.hstack):
        dim = min(1, len(place.shape or ()) - 1)
    if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or place.shape is None:
        return None
    axis = dim % len(place.shape)
    held = [node for node in tensors if isinstance(node, fx.Node)]
    plain = place.node.target is torch.cat and dim == axis
    if plain and not given.keys() & {"axis"} and "tensors" not in place.node.kwargs:
        return None
    return Spelling(
        f"torch.cat(dim={axis})",
        tuple(dict.fromkeys(held)),
        lambda: place.call(torch.cat, list(tensors), dim=axis),
        same_piece=True,
    )


def _called_with_keywords(place: Place) -> Spelling | None:
    """A module that is called with keywords: tools look for what it is called with among values."""
    node, module = place.node, place.module
    if module is None or node.args or len(node.kwargs) != 1:
        return None
    (value,) = node.kwargs.values()
    names = list(inspect.signature(module.forward).parameters)
    if not isinstance(value, fx.Node) or names[:1] != list(node.kwargs):
        return None
    path = str(node.target)
    return Spelling("called with a value", (value,), lambda: place.call_part(path, value))
