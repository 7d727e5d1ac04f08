"""Write an operation as sums, products and ReLUs that a toolchain knows.

    hardswish(x) = x * relu6(x + 3) / 6        hardsigmoid(x) = relu6(x + 3) / 6
    leaky_relu(x; s) = s x + (1 - s) relu(x)   hardtanh(x; 0, 6) = clamp(x, 0, 6) = relu6(x)
    clamp(x, 0) = threshold(x; 0, 0) = relu(x)
    x / n = x * (1 / n)      -x = x * (-1)     x ** 2 = x * x             rsub(a, b) = b - a
    addcmul(x, a, b; v) = x + v a b            glu(x) = x[:, :n] * sigmoid(x[:, n:])
    stack([a, b]).sum(0) = a + b

Equal in real numbers; the last bits may be rounded otherwise.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn

from groupfx.rewriting import OperationPass, Place, Skip, Spelling, shape_of
from groupfx.rewriting.writes import why_kept, writes
from groupfx.verify import Rounding

Found = tuple[str, Callable[[], fx.Node]]
"""What is to stand there, in words, and what emits it."""

_WHOLE = slice(None, None, None)
_RELU6, _RELU = (0, 6), (0, None)
# hardswish: two sums or products on either side, and a quotient that is rounded twice.
_ROUNDING = Rounding(terms=7)
# The backward of torch's own multiplies with a sixth as float32 has it, in every dtype.
_HARDSIGMOID = Rounding(terms=7, constants=torch.float32)


@dataclass(frozen=True)
class PartOperations(OperationPass):
    """Hard activations, quotients, powers and their kin become sums, products and ReLUs."""

    exact = False
    # A call in place may write to what an operation behind it reads.
    backwards = True

    refuses = ("hooks on the module", "calls in place whose old value is read afterwards")

    def spell(self, place: Place) -> Spelling | Skip | None:
        if place.shape is None:
            return None
        found = _activation(place) or _arithmetic(place)
        if found is None:
            return None
        if place.module is not None:
            if place.store.hooks(place.module):
                return Skip("it has hooks, which would be lost; remove them")
        elif writes(place.node, place.root):
            kept = why_kept(place.node, place.root)
            if kept is not None:
                return Skip(kept)
        told, emit = found
        inputs = tuple(n for n in _operands(place.node) if n.op != "get_attr")
        hard = isinstance(place.module, nn.Hardsigmoid) or _name(place) == "hardsigmoid"
        return Spelling(told, inputs, emit, rounding=_HARDSIGMOID if hard else _ROUNDING)


def _operands(node: fx.Node) -> list[fx.Node]:
    """What it is made of: of a sum over a stack, what was stacked."""
    found = node.all_input_nodes
    return found[0].all_input_nodes if found[0].target is torch.stack else found


def _name(place: Place) -> str:
    """What is called, without the underscore of a call in place; empty for a function of others."""
    node = place.node
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    name = str(getattr(node.target, "__name__", ""))
    known = any(getattr(room, name, None) is node.target for room in (torch, F, operator))
    return name.removesuffix("_") if known and node.op == "call_function" else ""


def _activation(place: Place) -> Found | None:
    """An activation that is made of ReLUs."""
    value, module = place.arguments("input").get("input"), place.module
    if not isinstance(value, fx.Node) or place.node.all_input_nodes != [value]:
        return None
    name = _name(place)
    if isinstance(module, nn.Tanh):
        return "torch.tanh", lambda: place.call(torch.tanh, value)
    if isinstance(module, nn.LogSoftmax) and module.dim is not None:
        dim = module.dim
        return "F.log_softmax", lambda: place.call(F.log_softmax, value, dim)
    if isinstance(module, nn.Hardswish) or name == "hardswish":
        return "x * relu6(x + 3) / 6", lambda: _hardswish(place, value)
    if isinstance(module, nn.Hardsigmoid) or name == "hardsigmoid":
        return "relu6(x + 3) / 6", lambda: _hardsigmoid(place, value)
    slope = _slope(place, name)
    if slope is not None:
        return f"{slope:g} x + {1 - slope:g} relu(x)", lambda: _leaky(place, value, slope)
    bounds = _bounds(place, name)
    if bounds == _RELU6:
        return "F.relu6", lambda: place.call(F.relu6, value)
    return ("F.relu", lambda: place.call(F.relu, value)) if bounds == _RELU else None


def _slope(place: Place, name: str) -> float | None:
    """What a leaky ReLU multiplies negative numbers with."""
    if type(place.module) is nn.LeakyReLU:
        return place.module.negative_slope
    if name != "leaky_relu":
        return None
    return float(place.arguments("input", "negative_slope").get("negative_slope", 0.01))


def _bounds(place: Place, name: str) -> tuple[object, object] | None:
    """Below and above what numbers are cut off."""
    module = place.module
    if type(module) is nn.Hardtanh:
        return module.min_val, module.max_val
    if type(module) is nn.Threshold:
        return (0, None) if (module.threshold, module.value) == (0, 0) else None
    given = place.arguments("input", "min", "max")
    if name in ("clamp", "clip", "clamp_min"):
        return given.get("min"), given.get("max")
    if name == "hardtanh":
        given = place.arguments("input", "min_val", "max_val")
        return given.get("min_val", -1.0), given.get("max_val", 1.0)
    if name in ("threshold", "_threshold"):
        given = place.arguments("input", "threshold", "value")
        return (0, None) if (given.get("threshold"), given.get("value")) == (0, 0) else None
    return None


def _hardsigmoid(place: Place, value: fx.Node) -> fx.Node:
    return place.call(torch.multiply, _shifted(place, value), 1 / 6)


def _hardswish(place: Place, value: fx.Node) -> fx.Node:
    gated = place.call(torch.multiply, value, _shifted(place, value))
    return place.call(torch.multiply, gated, 1 / 6)


def _shifted(place: Place, value: fx.Node) -> fx.Node:
    return place.call(F.relu6, place.call(operator.add, value, 3))


def _leaky(place: Place, value: fx.Node, slope: float) -> fx.Node:
    negative = place.call(torch.multiply, value, slope)
    positive = place.call(torch.multiply, place.call(F.relu, value), 1 - slope)
    return place.call(operator.add, negative, positive)


def _arithmetic(place: Place) -> Found | None:
    """A quotient, a power, a sum or a difference that is made of simpler ones."""
    name, given = _name(place), place.arguments("input", "other")
    value = given.get("input", given.get("self"))
    if name == "rsub" and len(given) == len(("a", "b")):
        return "b - a", lambda: place.call(operator.sub, given["other"], value)
    if name == "addcmul":
        return _addcmul(place)
    if not isinstance(value, fx.Node) or shape_of(value) is None:
        return None
    other = given.get("other", given.get("exponent"))
    if name in ("neg", "negative", "__neg__"):
        return _product(place, value, -1)
    if name in _QUOTIENTS and len(given) == len(("a", "b")) and _is_number(other) and other > 0:
        return _product(place, value, 1 / other)
    if name == "square" or (name in ("pow", "ipow", "__pow__") and other == _SQUARE):
        return _product(place, value, value)
    if name in ("add", "sub", "subtract") and _is_number(given.get("alpha")):
        return _with_factor(place, given)
    rules = {"glu": _glu, "sum": _stacked}
    return rules[name](place, value) if name in rules else None


_SQUARE = 2
_QUOTIENTS = ("div", "divide", "true_divide", "truediv", "itruediv", "__truediv__")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _product(place: Place, value: fx.Node, factor: fx.Node | float) -> Found:
    told = "x * x" if factor is value else f"x * {factor:g}"
    return f"torch.multiply, {told}", lambda: place.call(torch.multiply, value, factor)


def _with_factor(place: Place, given: dict[str, Any]) -> Found | None:
    """`a.add(b, alpha=k)`; as a function, toolchains read it as it is."""
    if place.node.op == "call_function" and place.node.target in (torch.add, torch.sub):
        return None
    function = operator.add if _name(place) == "add" else operator.sub
    other, alpha = given["other"], given["alpha"]

    def emit() -> fx.Node:
        return place.call(function, given["input"], place.call(torch.multiply, other, alpha))

    return f"a {'+' if function is operator.add else '-'} {alpha:g} b", emit


def _addcmul(place: Place) -> Found | None:
    given = place.arguments("input", "tensor1", "tensor2")
    factor = given.get("value", 1)
    if (
        len(given.keys() - {"value"}) != len(("x", "a", "b"))
        or not _is_number(factor)
        or factor <= 0
    ):
        return None

    def emit() -> fx.Node:
        product = place.call(torch.multiply, given["tensor1"], given["tensor2"])
        if factor != 1:
            product = place.call(torch.multiply, product, factor)
        return place.call(operator.add, given["input"], product)

    return "x + a * b" if factor == 1 else f"x + {factor:g} a * b", emit


def _glu(place: Place, value: fx.Node) -> Found | None:
    given, shape = place.arguments("input", "dim"), shape_of(value) or ()
    half, dim = (place.shape or (0, 0))[1], given.get("dim", -1)
    if not shape or dim % len(shape) != 1:
        return None

    def emit() -> fx.Node:
        low, high = (
            place.call(operator.getitem, value, (_WHOLE, slice(start, start + half)))
            for start in (0, half)
        )
        return place.call(torch.multiply, low, place.call(torch.sigmoid, high))

    return f"x[:, :{half}] * sigmoid(x[:, {half}:])", emit


def _stacked(place: Place, value: fx.Node) -> Found | None:
    """A sum over what was stacked."""
    given = place.arguments("input", "dim")
    stack: dict[str, Any] = dict(zip(("tensors", "dim"), value.args, strict=False))
    stack |= value.kwargs
    parts, dim = stack.get("tensors"), given.get("dim")
    if value.target is not torch.stack or len(value.users) > 1 or set(given) != {"input", "dim"}:
        return None
    rank = len(shape_of(value) or ())
    if not isinstance(dim, int) or dim % rank != stack.get("dim", 0) % rank:
        return None
    assert isinstance(parts, (list, tuple))
    return "a + b", lambda: reduce(partial(place.call, operator.add), parts)
