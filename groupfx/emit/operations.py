"""Calls of a graph as a person would write them: `a + b`, `x[:, 0:4]`, `F.relu(x)`.

`torch.export` leaves `aten` operators. Those that have a usual name, with the same arguments in the
same order, are written under that name; the others as `torch.ops.aten....`.
"""

from __future__ import annotations

import builtins
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from ..errors import RewriteError
from .aten import CONV_DEFAULTS, CONV_FUNCTIONS, one_for_all, usual_call
from .imports import Imports
from .layout import (
    ADD,
    AND,
    ATOM,
    COMPARE,
    MULTIPLY,
    NOT,
    OR,
    POWER,
    SHIFT,
    UNARY,
    XOR,
    Doc,
    call,
    within,
)
from .literals import attribute, named_arguments, subscript

Write = Callable[[Any], Doc]

_INFIX: Mapping[Any, tuple[str, int]] = {
    operator.add: ("+", ADD),
    operator.sub: ("-", ADD),
    operator.mul: ("*", MULTIPLY),
    operator.truediv: ("/", MULTIPLY),
    operator.floordiv: ("//", MULTIPLY),
    operator.mod: ("%", MULTIPLY),
    operator.matmul: ("@", MULTIPLY),
    operator.pow: ("**", POWER),
    operator.lshift: ("<<", SHIFT),
    operator.rshift: (">>", SHIFT),
    operator.and_: ("&", AND),
    operator.xor: ("^", XOR),
    operator.or_: ("|", OR),
    operator.eq: ("==", COMPARE),
    operator.ne: ("!=", COMPARE),
    operator.lt: ("<", COMPARE),
    operator.le: ("<=", COMPARE),
    operator.gt: (">", COMPARE),
    operator.ge: (">=", COMPARE),
}
_PREFIX: Mapping[Any, tuple[str, int]] = {
    operator.neg: ("-", UNARY),
    operator.pos: ("+", UNARY),
    operator.invert: ("~", UNARY),
    operator.not_: ("not ", NOT),
}
INPLACE: Mapping[Any, str] = {
    operator.iadd: "+=",
    operator.isub: "-=",
    operator.imul: "*=",
    operator.itruediv: "/=",
    operator.ifloordiv: "//=",
    operator.imod: "%=",
    operator.ipow: "**=",
    operator.iand: "&=",
    operator.ior: "|=",
    operator.ixor: "^=",
    operator.imatmul: "@=",
    operator.ilshift: "<<=",
    operator.irshift: ">>=",
}
_ATEN_INFIX = {
    "add.Tensor": operator.add,
    "sub.Tensor": operator.sub,
    "mul.Tensor": operator.mul,
    "div.Tensor": operator.truediv,
    "remainder.Tensor": operator.mod,
    "remainder.Scalar": operator.mod,
    "matmul.default": operator.matmul,
    "pow.Tensor_Scalar": operator.pow,
    "bitwise_and.Tensor": operator.and_,
    "bitwise_or.Tensor": operator.or_,
    "__and__.Tensor": operator.and_,
    "__or__.Tensor": operator.or_,
    "__xor__.Tensor": operator.xor,
    **{
        f"{name}.{kind}": getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind in ("Tensor", "Scalar")
    },
}
_ATEN_PREFIX = {"neg.default": operator.neg, "bitwise_not.default": operator.invert}
_WORD = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)

# Says of a tensor what is written nowhere else (its device among it); it computes nothing.
_SILENT = frozenset({"_assert_tensor_metadata.default"})


class Operations:
    """Writes calls for one file; `write` gives the source of an argument."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports

    def method(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> Doc:
        """`x.name(...)`."""
        receiver, *rest = args
        head = attribute(within(write(receiver), ATOM), name)
        return call(head, self._arguments(rest, kwargs, write))

    def module(
        self, head: str, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> Doc:
        """`self.name(...)`, where `head` names the module."""
        return call(head, self._arguments(args, kwargs, write))

    def function(
        self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> Doc:
        """A call of the function `target`. Raises RewriteError for one that has no name."""
        if isinstance(target, HigherOrderOperator):
            raise RewriteError(
                f"{target.name()} runs a graph inside the graph (a part under autocast, in another "
                "grad mode, or on a condition), which cannot be written as Python"
            )
        if isinstance(target, OpOverload):
            return self._overload(target, args, kwargs, write)
        if not kwargs:
            short = self._operator(target, args, write)
            if short is not None:
                return short
        name = self._imports.callable(target)
        return call(name, self._arguments(args, _told(target, kwargs), write))

    def _operator(self, target: Any, args: Sequence[Any], write: Write) -> Doc | None:
        if target in _INFIX and len(args) == 2:
            return _infix(target, write(args[0]), write(args[1]))
        if target in _PREFIX and len(args) == 1:
            sign, level = _PREFIX[target]
            operand = write(args[0])
            # `-x**2` is right and misread.
            inner = within(operand, ATOM if operand.level == POWER else level)
            return Doc(f"{sign}{inner}", level)
        if target is operator.getitem and len(args) == 2:
            return subscript(within(write(args[0]), ATOM), args[1], write)
        if target is builtins.getattr and len(args) == 2 and isinstance(args[1], str):
            return Doc(attribute(within(write(args[0]), ATOM), args[1]))
        return None

    def _overload(
        self, target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write
    ) -> Doc:
        namespace, packet = target._schema.name.split("::")
        name = f"{packet}.{target._overloadname}"
        if namespace != "aten":
            return self._verbatim(namespace, packet, target, self._arguments(args, kwargs, write))
        usual = usual_call(name, args, kwargs)
        if usual is not None:
            room, _, function = usual.name.partition(".")
            if not function:
                return self.method(usual.name, usual.args, usual.kwargs, write)
            self._imports.module(room)
            return call(usual.name, self._arguments(usual.args, usual.kwargs, write))
        if not kwargs:
            short = self._operator(_ATEN_INFIX.get(name, _ATEN_PREFIX.get(name)), args, write)
            sliced = _sliced(name, args, write)
            if short is not None or sliced is not None:
                return short or sliced or Doc("")
        return self._verbatim(namespace, packet, target, self._arguments(args, kwargs, write))

    def _verbatim(
        self, namespace: str, packet: str, target: OpOverload, arguments: list[Doc]
    ) -> Doc:
        known = getattr(getattr(torch.ops, namespace), packet, None)
        parts = (namespace, packet, target._overloadname)
        if namespace not in ("aten", "prims") or not all(_WORD.match(part) for part in parts):
            raise RewriteError(
                f"the operator {target.name()} is not torch's own: a file that uses it would need "
                "the library that defines it"
            )
        assert getattr(known, target._overloadname) is target
        self._imports.module("torch")
        return call(f"torch.ops.{'.'.join(parts)}", arguments)

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write) -> list[Doc]:
        named = {name: write(value) for name, value in kwargs.items()}
        return [*(write(value) for value in args), *named_arguments(named)]


def _told(target: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keyword arguments that say something: tracing a torch function records defaults too."""
    if target in CONV_FUNCTIONS:
        short = {name: one_for_all(value) for name, value in kwargs.items()}
        return {
            name: value
            for name, value in short.items()
            if name not in CONV_DEFAULTS or value != CONV_DEFAULTS[name]
        }
    if not inspect.isfunction(target) or target.__module__ != torch.nn.functional.__name__:
        return kwargs
    parameters = inspect.signature(target).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    def is_default(name: str, value: Any) -> bool:
        same = name in defaults and type(value) is type(defaults[name])
        return same and bool(value == defaults[name])

    return {name: value for name, value in kwargs.items() if not is_default(name, value)}


def is_silent(target: Any) -> bool:
    """Whether a call of `target` computes nothing and is left out."""
    if not isinstance(target, OpOverload):
        return False
    return f"{target._schema.name.partition('::')[2]}.{target._overloadname}" in _SILENT


def _infix(target: Any, left: Doc, right: Doc) -> Doc | None:
    sign, level = _INFIX[target]
    if level == COMPARE:
        if {left.flat, right.flat} & {"None", "True", "False"}:
            return None
        return Doc(f"{within(left, level + 1)} {sign} {within(right, level + 1)}", level)
    if target is operator.pow:
        base, exponent = within(left, ATOM), within(right, UNARY)
        simple = all(part.replace(".", "").isalnum() for part in (base, exponent))
        return Doc(f"{base}**{exponent}" if simple else f"{base} ** {exponent}", level)
    return Doc(f"{within(left, level)} {sign} {within(right, level + 1)}", level)


def _sliced(name: str, args: Sequence[Any], write: Write) -> Doc | None:
    """`aten.slice(x, dim, start, stop)` as a subscript."""
    if name != "slice.Tensor" or len(args) < 4 or not isinstance(args[1], int) or args[1] < 0:
        return None
    start = None if args[2] == 0 else args[2]
    stop = None if args[3] == 2**63 - 1 else args[3]
    index = (*[slice(None)] * args[1], slice(start, stop, *args[4:]))
    return subscript(within(write(args[0]), ATOM), index if len(index) > 1 else index[0], write)


def is_assertion(target: Any) -> bool:
    """Whether a call of `target` is what an `assert` becomes in a graph."""
    return target is torch._assert or _asks_for_none(target)


def _asks_for_none(target: Any) -> bool:
    name, module = getattr(target, "__name__", ""), getattr(target, "__module__", "")
    return (module, name) == ("torch.fx._symbolic_trace", "_assert_is_none")


def condition(target: Any, value: Doc) -> Doc:
    """What an assertion about `value` asks for."""
    if not _asks_for_none(target):
        return value
    return Doc(f"{within(value, COMPARE + 1)} is None", COMPARE)


def is_arithmetic(node: fx.Node) -> bool:
    """Whether `node` is an operator between two values."""
    return node.target in _INFIX or node.target in INPLACE
