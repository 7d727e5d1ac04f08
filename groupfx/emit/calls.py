"""Calls of a graph as a person would write them: `a + b`, `x[:, 0:4]`, `F.relu(x)`.

`torch.export` leaves `aten` operators. The usual ones are written under their usual names, the
others as `torch.ops.aten....`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn import functional

from ..errors import RewriteError
from .imports import Imports
from .text import attribute, call, item, parsed
from .values import Write, index

_BINARY: Mapping[Any, type[ast.operator]] = {
    operator.add: ast.Add,
    operator.sub: ast.Sub,
    operator.mul: ast.Mult,
    operator.truediv: ast.Div,
    operator.floordiv: ast.FloorDiv,
    operator.mod: ast.Mod,
    operator.matmul: ast.MatMult,
    operator.pow: ast.Pow,
    operator.lshift: ast.LShift,
    operator.rshift: ast.RShift,
    operator.and_: ast.BitAnd,
    operator.xor: ast.BitXor,
    operator.or_: ast.BitOr,
}
_COMPARED: Mapping[Any, type[ast.cmpop]] = {
    operator.eq: ast.Eq,
    operator.ne: ast.NotEq,
    operator.lt: ast.Lt,
    operator.le: ast.LtE,
    operator.gt: ast.Gt,
    operator.ge: ast.GtE,
}
_UNARY: Mapping[Any, type[ast.unaryop]] = {
    operator.neg: ast.USub,
    operator.pos: ast.UAdd,
    operator.invert: ast.Invert,
    operator.not_: ast.Not,
}
INPLACE: Mapping[Any, type[ast.operator]] = {
    operator.iadd: ast.Add,
    operator.isub: ast.Sub,
    operator.imul: ast.Mult,
    operator.itruediv: ast.Div,
}
_ATEN_OPERATORS: Mapping[str, Any] = {
    "add.Tensor": operator.add,
    "sub.Tensor": operator.sub,
    "mul.Tensor": operator.mul,
    "div.Tensor": operator.truediv,
    "matmul.default": operator.matmul,
    "neg.default": operator.neg,
}
# Methods whose arguments are those of the operator, in its order.
_ATEN_METHODS = frozenset(
    """
    chunk.default contiguous.default expand.default flatten.using_ints mean.default mean.dim
    permute.default repeat.default reshape.default split.Tensor squeeze.dim sum.dim_IntList
    transpose.int unflatten.int unsqueeze.default view.default add_.Tensor mul_.Tensor
    """.split()  # noqa: SIM905
)
_ATEN_FUNCTIONS = frozenset(
    """
    linear.default relu.default relu_.default gelu.default silu.default hardtanh.default
    hardswish.default leaky_relu.default dropout.default max_pool2d.default avg_pool2d.default
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default pad.default
    cat.default softmax.int conv1d.default conv2d.default conv3d.default conv1d.padding
    conv2d.padding conv3d.padding conv_transpose1d.default conv_transpose2d.input
    conv_transpose3d.input
    """.split()  # noqa: SIM905
)
# Says of a tensor what is written nowhere else (its device among it); it computes nothing.
_SILENT = (torch.ops.aten._assert_tensor_metadata.default,)


class Calls:
    """Writes the calls of one file."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports

    def function(
        self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> ast.expr:
        """A call of the function `target`. Raises RewriteError for one that has no name."""
        if isinstance(target, HigherOrderOperator):
            raise RewriteError(
                f"{target.name()} runs a graph inside the graph (a part under autocast, in another "
                "grad mode, or on a condition), which cannot be written as Python"
            )
        if isinstance(target, OpOverload):
            return self._overload(target, args, kwargs, write)
        short = None if kwargs else _operator(target, args, write)
        if short is not None:
            return short
        name = self._imports.callable(target)
        return self.called(parsed(name), args, _told(target, kwargs), write)

    def called(
        self, head: ast.expr, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> ast.expr:
        """`head(...)`."""
        return call(head, map(write, args), {name: write(value) for name, value in kwargs.items()})

    def method(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> ast.expr:
        """`x.name(...)`."""
        receiver, *rest = args
        return self.called(attribute(write(receiver), name), rest, kwargs, write)

    def _overload(
        self, target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> ast.expr:
        namespace, packet = target._schema.name.split("::")
        name = f"{packet}.{target._overloadname}"
        if namespace not in ("aten", "prims"):
            raise RewriteError(
                f"the operator {target.name()} is not torch's own: a file that uses it would need "
                "the library that defines it"
            )
        short = None if kwargs else _operator(_ATEN_OPERATORS.get(name), args, write)
        if short is not None:
            return short
        if name == "sym_size.int":
            return self.method("size", args, kwargs, write)
        if name in _ATEN_METHODS:
            return self.method(packet, args, kwargs, write)
        if name in _ATEN_FUNCTIONS:
            room = "torch" if packet in ("cat", "softmax") else "F"
            return self.called(parsed(f"{room}.{packet}"), args, kwargs, write)
        if target._overloadname == "default" and _is_single(packet):
            return self.called(parsed(f"torch.{packet}"), args, kwargs, write)
        full = f"torch.ops.{namespace}.{packet}.{target._overloadname}"
        return self.called(parsed(full), args, kwargs, write)


def _operator(target: Any, args: Sequence[Any], write: Write) -> ast.expr | None:
    if target in _BINARY and len(args) == 2:
        return ast.BinOp(write(args[0]), _BINARY[target](), write(args[1]))
    # `x == None` asks for what nobody means.
    if target in _COMPARED and len(args) == 2 and not any(a is None for a in args):
        return ast.Compare(write(args[0]), [_COMPARED[target]()], [write(args[1])])
    if target in _UNARY and len(args) == 1:
        return ast.UnaryOp(_UNARY[target](), write(args[0]))
    if target is operator.getitem and len(args) == 2:
        return item(write(args[0]), index(args[1], write))
    if target is builtins.getattr and len(args) == 2 and isinstance(args[1], str):
        return attribute(write(args[0]), args[1])
    return None


@functools.cache
def _is_single(packet: str) -> bool:
    """Whether torch has a function of this name with the operator's one form: `out` aside."""
    found = getattr(torch.ops.aten, packet, None)
    overloads = [] if found is None else found.overloads()
    plain = [name for name in overloads if not name.endswith("out") and "name" not in name.lower()]
    return plain == ["default"] and hasattr(torch, packet) and not packet.startswith("_")


def _told(target: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keyword arguments that say something: tracing a torch function records defaults too."""
    if target in _CONVOLUTIONS:
        short = {name: _one_for_all(value) for name, value in kwargs.items()}
        defaults: Mapping[str, Any] = _CONV_DEFAULTS
    elif inspect.isfunction(target) and target.__module__ == functional.__name__:
        short = dict(kwargs)
        parameters = inspect.signature(target).parameters
        defaults = {name: p.default for name, p in parameters.items()}
    else:
        return kwargs
    return {
        name: value
        for name, value in short.items()
        if not (name in defaults and repr(value) == repr(defaults[name]))
    }


_CONV_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
_CONVOLUTIONS = frozenset(
    getattr(functional, f"conv{kind}{dims}d") for kind in ("", "_transpose") for dims in (1, 2, 3)
)


def _one_for_all(value: Any) -> Any:
    """`2` for `(2, 2)`."""
    listed = isinstance(value, list | tuple) and value and all(v == value[0] for v in value)
    return value[0] if listed and type(value[0]) is int else value


def is_silent(node: fx.Node) -> bool:
    """Whether the call computes nothing and is left out where nobody reads it."""
    looks = (operator.getitem, builtins.getattr, torch.ops.aten.sym_size.int, *_SILENT)
    return node.op == "get_attr" or node.target in looks or node.target in ("size", "dim")
