"""The usual names of `aten` operators, which are what `torch.export` leaves of a model's calls."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from ..convs.calls import CONV_ARGUMENTS, TRANSPOSED_ARGUMENTS


@dataclass(frozen=True)
class Usual:
    """A call by its usual name: `F.relu`, `torch.tanh`, or a method's name."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def usual_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Usual | None:
    """The usual form of a call of the overload `name`, such as `flatten.using_ints`, if any."""
    packet, _, overload = name.partition(".")
    kwargs = {key: value for key, value in kwargs.items() if (key, value) != ("pin_memory", False)}
    if name in _CONVOLUTIONS:
        return _with_names(f"F.{packet}", _CONVOLUTIONS[name], args, kwargs)
    if name in _NORMALISATIONS:
        return _normalisation(packet, args) if not kwargs else None
    if name == "embedding.default" and len(args) == 2 and not kwargs:
        return Usual("F.embedding", (args[1], args[0]))
    if name == "sym_size.int":
        return Usual("size", args, kwargs)
    if name in _METHODS and args:
        return Usual(packet, args, kwargs)
    if name in _FUNCTIONS:
        return Usual(_FUNCTIONS[name], args, kwargs)
    if overload == "default" and not packet.startswith("_") and _is_single(packet):
        return _by_its_own_name(packet, args, kwargs)
    return None


def _by_its_own_name(packet: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Usual | None:
    """Without a second overload, name and order of arguments are those of the binding."""
    if packet.endswith("_"):
        # What changes a tensor in place is known as a method.
        return Usual(packet, args, kwargs) if args and hasattr(torch.Tensor, packet) else None
    if hasattr(torch, packet):
        return Usual(f"torch.{packet}", args, kwargs)
    return None


@functools.cache
def _is_single(packet: str) -> bool:
    """Whether an operator has one form, those with `out` or with names of dimensions aside."""
    found = getattr(torch.ops.aten, packet, None)
    overloads = [] if found is None else found.overloads()
    plain = [name for name in overloads if not name.endswith("out") and "name" not in name.lower()]
    return plain == ["default"]


def _with_names(
    function: str, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Usual:
    """Tensors by position, the rest by name where it is not the default."""
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    tensors = [given.pop(name) for name in names[:2]]
    bias = given.pop("bias", None)
    if bias is not None:
        tensors.append(bias)
    short = {name: one_for_all(value) for name, value in given.items()}
    told = {name: v for name, v in short.items() if v != CONV_DEFAULTS[name]}
    return Usual(function, tensors, told)


def _normalisation(packet: str, args: Sequence[Any]) -> Usual | None:
    """`F.batch_norm`, `F.layer_norm` and `F.group_norm`, which say less."""
    tensors: tuple[Any, ...]
    if packet == "batch_norm":
        data, weight, bias, mean, variance, training, momentum, eps, _ = args
        if training is not False:
            # In train mode the function of torch.nn checks the size of the batch.
            return None
        options = {"momentum": momentum, "eps": eps}
        defaults = {"momentum": 0.1, "eps": 1e-5}
        tensors = (data, mean, variance, weight, bias)
    else:
        tensors = tuple(args[:4])
        options, defaults = {"eps": args[4] if len(args) > 4 else 1e-5}, {"eps": 1e-5}
    told = {name: value for name, value in options.items() if value != defaults[name]}
    while len(tensors) > 2 and tensors[-1] is None:
        tensors = tensors[:-1]
    return Usual(f"F.{packet}", tensors, told)


def one_for_all(value: Any) -> Any:
    """`2` for `(2, 2)`."""
    listed = isinstance(value, list | tuple) and value and all(v == value[0] for v in value)
    return value[0] if listed and type(value[0]) is int else value


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONV_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
CONV_FUNCTIONS = frozenset(
    getattr(functional, f"conv{kind}{dims}d") for kind in ("", "_transpose") for dims in (1, 2, 3)
)

_CONVOLUTIONS: Mapping[str, Sequence[str]] = {
    **{
        f"conv{dims}d.{kind}": CONV_ARGUMENTS
        for dims in (1, 2, 3)
        for kind in ("default", "padding")
    },
    "conv_transpose1d.default": TRANSPOSED_ARGUMENTS,
    "conv_transpose2d.input": TRANSPOSED_ARGUMENTS,
    "conv_transpose3d.input": TRANSPOSED_ARGUMENTS,
}
_NORMALISATIONS = frozenset({"batch_norm.default", "layer_norm.default", "group_norm.default"})
_METHODS = _words(
    """
    argmax.default chunk.default clone.default contiguous.default copy_.default detach.default
    expand.default expand_as.default fill_.Scalar flatten.using_ints masked_fill.Scalar
    masked_fill_.Scalar mean.default mean.dim permute.default repeat.default reshape.default
    select.int split.Tensor square.default squeeze.default squeeze.dim squeeze.dims sum.default
    sum.dim_IntList to.dtype transpose.int type_as.default unflatten.int unsqueeze.default
    view.default view_as.default zero_.default add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor
    """
)
_FUNCTIONS: Mapping[str, str] = {
    name: f"{room}.{name.partition('.')[0]}"
    for room, names in (
        (
            "F",
            """
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
            arange.default arange.start cat.default clamp.default einsum.default full.default
            log_softmax.int ones.default softmax.int stack.default std.correction var.correction
            where.Scalar where.ScalarOther where.ScalarSelf where.self zeros.default
            """,
        ),
    )
    for name in _words(names)
}
