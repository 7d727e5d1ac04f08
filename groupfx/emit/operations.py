"""Function and method calls of a graph as a person would write them: `a + b`, `x[:, 0:4]`, `F.relu(x)`.

`torch.export` leaves `aten` operators. Those that have a usual name, with the same arguments in the
same order, are written under that name; the others as `torch.ops.aten....`.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from ..errors import RewriteError
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
from .literals import attribute, is_name, named_arguments, quoted, subscript

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
    **{
        f"{name}.{kind}": getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind in ("Tensor", "Scalar")
    },
}
_ATEN_PREFIX = {"neg.default": operator.neg, "bitwise_not.default": operator.invert}
_ATEN_METHODS = frozenset(
    """
    view.default reshape.default flatten.using_ints unflatten.int transpose.int permute.default
    unsqueeze.default squeeze.default squeeze.dim squeeze.dims expand.default contiguous.default
    clone.default detach.default chunk.default split.Tensor mean.default mean.dim sum.default
    sum.dim_IntList add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor copy_.default fill_.Scalar
    zero_.default masked_fill.Scalar masked_fill_.Scalar square.default argmax.default
    to.dtype type_as.default view_as.default expand_as.default repeat.default select.int
    """.split()
)
_ATEN_FUNCTIONS: Mapping[str, str] = {
    name: f"{room}.{name.partition('.')[0]}"
    for room, names in (
        (
            "F",
            """
            conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
            conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
            linear.default relu.default relu_.default gelu.default silu.default hardtanh.default
            hardswish.default hardsigmoid.default leaky_relu.default elu.default softplus.default
            dropout.default max_pool1d.default max_pool2d.default max_pool3d.default
            avg_pool1d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool1d.default
            adaptive_avg_pool2d.default adaptive_avg_pool3d.default pad.default
            scaled_dot_product_attention.default
            """,
        ),
        (
            "torch",
            """
            cat.default stack.default tanh.default sigmoid.default exp.default log.default
            sqrt.default rsqrt.default abs.default sin.default cos.default softmax.int
            log_softmax.int where.self where.ScalarSelf where.ScalarOther where.Scalar clamp.default
            maximum.default minimum.default addmm.default bmm.default einsum.default
            arange.default arange.start zeros.default ones.default full.default zeros_like.default
            ones_like.default full_like.default embedding.default batch_norm.default
            layer_norm.default group_norm.default std.correction var.correction
            """,
        ),
    )
    for name in names.split()
}

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
        if isinstance(target, OpOverload):
            return self._overload(target, args, kwargs, write)
        if not kwargs:
            short = self._operator(target, args, write)
            if short is not None:
                return short
        name = self._imports.callable(target)
        return call(name, self._arguments(args, kwargs, write))

    def _operator(self, target: Any, args: Sequence[Any], write: Write) -> Doc | None:
        if target in _INFIX and len(args) == 2:
            return _infix(target, write(args[0]), write(args[1]))
        if target in _PREFIX and len(args) == 1:
            sign, level = _PREFIX[target]
            return Doc(f"{sign}{within(write(args[0]), level)}", level)
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
        if name == "sym_size.int":
            return self.method("size", args, kwargs, write)
        if name in _ATEN_METHODS and args:
            return self.method(packet, args, kwargs, write)
        if name in _ATEN_FUNCTIONS and name not in _ATEN_INFIX:
            room, _, function = _ATEN_FUNCTIONS[name].partition(".")
            self._imports.module(room)
            return call(f"{room}.{function}", self._arguments(args, kwargs, write))
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
        if namespace not in ("aten", "prims") or not all(is_name(part) for part in parts):
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


def assertion(target: Any, args: Sequence[Any], write: Write) -> tuple[Doc, str] | None:
    """Condition and message, where a call of `target` is what an `assert` becomes in a graph."""
    name = getattr(target, "__name__", "")
    if target is torch._assert and len(args) == 2:
        return write(args[0]), quoted(str(args[1]))
    if name == "_assert_is_none" and target.__module__ == "torch.fx._symbolic_trace":
        return Doc(f"{within(write(args[0]), COMPARE + 1)} is None", COMPARE), quoted(args[1])
    return None
