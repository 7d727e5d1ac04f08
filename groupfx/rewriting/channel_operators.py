"""Operators of a torch graph in the words of the folding rules: functions, methods, aten.

Their arguments have the same places but where a reader below says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from ..convs.calls import Computed, ConvCall, Stored, attribute, read_conv
from ..folding.wiring import Parameter
from ..plan.channels import shuffle_permutation
from .channel_calls import Call, Found, Numbers, Tensors
from .channel_parts import PARTS, read_by_number
from .resizing import sizes_said


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    """
    _to_copy abs acos acosh alias alpha_dropout asin asinh atan atanh ceil celu clamp clamp_max
    clamp_min clip clone contiguous cos cosh dequantize_per_tensor detach double dropout
    dropout2d dropout3d elu erf exp expm1 fake_quantize_per_tensor_affine feature_dropout float
    floor frac gelu half hardshrink hardsigmoid hardswish hardtanh leaky_relu lift_fresh_copy
    log log1p logit logsigmoid mish nan_to_num neg quantize_per_tensor reciprocal relu relu6
    round rrelu rsqrt selu sigmoid sign silu sin sinh softplus softshrink softsign sqrt square
    tan tanh tanhshrink threshold to trunc type
    """
)
_SAME = _words(
    """
    alias clone contiguous detach dropout dropout2d dropout3d alpha_dropout feature_dropout
    lift_fresh_copy
    """
)
_BINARY = _words(
    """
    add addcdiv addcmul atan2 bitwise_and bitwise_or copysign div divide eq floor_divide fmod ge gt
    hypot iadd imul isub itruediv le lerp logaddexp logical_and logical_or logical_xor lt
    masked_fill maximum minimum mul multiply ne pow remainder rsub sub subtract truediv true_divide
    where
    """
)
_POOLS = _words(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
    max_pool1d max_pool2d max_pool3d interpolate upsample upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d
    """
)
_REDUCTIONS = _words("amax amin logsumexp mean norm prod std sum var")
_SHAPES = _words("flatten squeeze unflatten unsqueeze")
_ANY_SHAPE = _words("reshape reshape_as view view_as _reshape_alias _unsafe_view")
_EQUIVARIANT = _words("softmax log_softmax _softmax _log_softmax softmin")
_ALONG = _words("cummax cummin cumprod cumsum flip logcumsumexp roll")
_PRODUCTS = _words("bmm matmul mm")
_SIZES = _words("size dim numel sym_size")

DERIVED = _words(
    "dequantize_per_channel fake_quantize_per_channel_affine numpy_T permute swapaxes t transpose"
)
"""What makes another tensor of a stored one whose elements each come from one of it."""

Read = Callable[[Call], Found | None]


def rule_of(call: Call) -> Found | None:
    """The rule of a call, with what it needs to know; None for a barrier."""
    read = _READ.get(call.name)
    return convolution(call.node, call.tensors) if read is None else read(call)


def _always(rule: str, **numbers: Any) -> Read:
    return lambda call: (rule, dict(numbers))


def _pool(call: Call) -> Found | None:
    # Without a batch axis, all dimensions but the first are the window's.
    named = re.search(r"(\d)d$", call.name)
    first = 2 if named is None else len(call.shape) - int(named[1])
    return "elementwise", {"dims": {*call.resized, *range(first, len(call.shape))}}


def _equivariant(call: Call) -> Found | None:
    dim = call.dim(call.argument(1, "dim"))
    return "normalise", {} if dim is None else {"dims": [dim]}


def convolution(node: fx.Node, tensors: Tensors) -> Found | None:
    """A convolution in any dialect whose weight and bias are stored."""
    call = read_conv(node, tensors.module)
    if not isinstance(call, ConvCall) or call.output_size is not None:
        return None
    if len(tensors.shape(call.input)) != call.spec.dims + 2:
        return None  # without a batch axis, channels lie in dimension 0
    held: list[Parameter | None] = []
    for source in (call.weight, call.bias):
        found = None
        if isinstance(source, Stored):
            found = tensors.parameter(attribute(tensors.module, source.key))
        elif isinstance(source, Computed):
            found = tensors.stored(source.node)
        if source is not None and found is None:
            return None
        held.append(found)
    weight, bias = held
    numbers: Numbers = {"weight": weight, "bias": bias, "groups": call.spec.groups}
    return "convolution", {**numbers, "transposed": call.spec.transposed, "source": call.input}


def _reduction(call: Call) -> Found | None:
    dims = call.argument(2 if call.name == "norm" else 1, "dim", "axis")
    given: Any = [dims] if isinstance(dims, int) else dims
    if given is None or given == []:
        given = list(range(len(call.shape)))
    if not all(isinstance(dim, int) for dim in given):
        return None
    keep = len(call.result) == len(call.shape)
    return "reduce", {"dims": [dim % len(call.shape) for dim in given], "keep": keep}


def _along(call: Call) -> Found | None:
    """What moves or adds up positions along dimensions, and leaves the others alone."""
    dims = call.argument(2 if call.name == "roll" else 1, "dims", "dim", "axis")
    given: Any = [dims] if isinstance(dims, int) else dims
    if not isinstance(given, (list, tuple)) or not all(isinstance(dim, int) for dim in given):
        return None
    return "elementwise", {"dims": [dim % len(call.shape) for dim in given]}


def _product(call: Call) -> Found | None:
    """A product of two tensors, or of one with a stored matrix."""
    first, weight = call.parameter(0, "input", "self"), call.parameter(1, "other", "mat2")
    if first is None and weight is None:
        return "product", {}
    if weight is None or first is not None or len(weight.shape) != 2 or len(call.shape) < 2:
        return None
    return "linear", {"weight": weight, "bias": None, "transposed": True}


def _scaled_product(call: Call) -> Found | None:
    """`F.scaled_dot_product_attention(query, key, value, attn_mask, ...)`."""
    if call.argument(7, "enable_gqa"):
        return None
    names = ("query", "key", "value")
    order = [call.argument(place, name) for place, name in enumerate(names)]
    return None if len(set(order)) < len(order) else ("attention", {"order": order})


def _normalize(call: Call) -> Found | None:
    dim = call.dim(call.argument(2, "dim", default=1))
    return None if dim is None else ("normalise", {"dims": [dim]})


def _linear(call: Call) -> Found | None:
    weight, bias = call.parameter(1, "weight"), call.parameter(2, "bias")
    if weight is None or (bias is None and call.argument(2, "bias") is not None):
        return None
    return "linear", {"weight": weight, "bias": bias}


def _batch_norm(call: Call) -> Found | None:
    """`F.batch_norm(x, mean, var, weight, bias, ...)`; aten has weight and bias first."""
    aten = isinstance(call.node.target, torch._ops.OpOverload)
    places = {"weight": 1, "bias": 2, "mean": 3, "variance": 4}
    if not aten:
        places = {"mean": 1, "variance": 2, "weight": 3, "bias": 4}
    names = {"mean": "running_mean", "variance": "running_var", "weight": "weight", "bias": "bias"}
    found = {role: call.parameter(place, names[role]) for role, place in places.items()}
    for role, place in places.items():
        if found[role] is None and call.argument(place, names[role]) is not None:
            return None
    return "per channel", found


def _instance_norm(call: Call) -> Found | None:
    """As `_batch_norm`; statistics that are those of the input are none of a channel."""
    return _batch_norm(call)


def _rms_norm(call: Call) -> Found | None:
    shape, weight = call.argument(1, "normalized_shape"), call.parameter(2, "weight")
    if not isinstance(shape, (list, tuple)) or (
        weight is None and call.argument(2, "weight") is not None
    ):
        return None
    return "layer norm", {"weight": weight, "last": len(shape)}


def _layer_norm(call: Call) -> Found | None:
    shape = call.argument(1, "normalized_shape")
    found = {"weight": call.parameter(2, "weight"), "bias": call.parameter(3, "bias")}
    if not isinstance(shape, (list, tuple)) or any(
        found[name] is None and call.argument(k, name) is not None
        for k, name in ((2, "weight"), (3, "bias"))
    ):
        return None
    return "layer norm", {**found, "last": len(shape)}


def _group_norm(call: Call) -> Found | None:
    groups = call.argument(1, "num_groups")
    found = {"weight": call.parameter(2, "weight"), "bias": call.parameter(3, "bias")}
    if not isinstance(groups, int) or any(
        found[name] is None and call.argument(k, name) is not None
        for k, name in ((2, "weight"), (3, "bias"))
    ):
        return None
    return "group norm", {**found, "groups": groups}


def _prelu(call: Call) -> Found | None:
    weight = call.parameter(1, "weight")
    return None if weight is None else ("prelu", {"weight": weight})


def _pad(call: Call) -> Found | None:
    pads = call.argument(1, "pad", "padding")
    if not isinstance(pads, (list, tuple)) or not all(isinstance(n, int) for n in pads):
        return None
    last = len(call.shape) - 1
    return "elementwise", {"dims": [last - k // 2 for k, n in enumerate(pads) if n]}


def _cat(call: Call) -> Found | None:
    dim = call.argument(1, "dim", "axis", default=0)
    values = call.argument(0, "tensors")
    if not isinstance(dim, int) or not isinstance(values, (list, tuple)):
        return None
    if len(set(values)) < len(values):
        return None
    return "concat", {"dim": dim % len(call.result)}


def _permute(call: Call) -> Found | None:
    rank = len(call.shape)
    dims = call.argument(1, "dims")
    given: Any = dims if isinstance(dims, (list, tuple)) else call.node.args[1:]
    if len(given) != rank or not all(isinstance(dim, int) for dim in given):
        return None
    return "transpose", {"dims": [dim % rank for dim in given]}


def _matrix_transpose(call: Call) -> Found | None:
    return "transpose", {"dims": list(range(len(call.shape)))[::-1]}


def _transpose(call: Call) -> Found | None:
    first, second = call.argument(1, "dim0"), call.argument(2, "dim1")
    if not isinstance(first, int) or not isinstance(second, int):
        return None
    dims = list(range(len(call.shape)))
    first, second = first % len(dims), second % len(dims)
    dims[first], dims[second] = dims[second], dims[first]
    return "transpose", {"dims": dims}


def _expand(call: Call) -> Found | None:
    return "elementwise", {"dims": call.resized, **_sizes_of(call)}


def _reshape(call: Call) -> Found | None:
    any_shape: Numbers = {"copied": ()} if call.name in _ANY_SHAPE else {}
    return "reshape", {**any_shape, **_sizes_of(call)}


def _sizes_of(call: Call) -> Numbers:
    """The sizes that the call names, None for those that it computes in a way of its own."""
    if call.name in ("flatten", "squeeze", "unsqueeze"):
        return {}
    said = None if call.name in ("view_as", "unflatten") else sizes_said(call.node)
    return {"sizes": [None] * len(call.result) if said is None else said}


def _size(call: Call) -> Found | None:
    """Of which dimensions a size is asked; nothing said is all."""
    if call.name == "dim":
        return "size", {"dims": []}
    dim = call.argument(1, "dim")
    if call.name == "numel" or (dim is not None and not isinstance(dim, int)):
        return "size", {}
    return "size", read_by_number(call) if dim is None else {"dims": [dim % len(call.shape)]}


def _pixel_shuffle(call: Call) -> Found | None:
    factor = call.argument(1, "upscale_factor", "downscale_factor")
    if not isinstance(factor, int) or len(call.shape) != 4:
        return None
    return "pixel shuffle", {"block": factor**2, "up": call.name == "pixel_shuffle"}


def _quantize(call: Call) -> Found | None:
    """One scale a channel, of a fixed axis."""
    axis = call.dim(call.argument(3, "axis"))
    scale, zero = (
        call.parameter(1, "scale", "scales"),
        call.parameter(2, "zero_point", "zero_points"),
    )
    if axis is None or scale is None or zero is None:
        return None
    return "quantize", {"dim": axis, "scale": scale, "zero": zero}


def _channel_shuffle(call: Call) -> Found | None:
    groups = call.argument(1, "groups")
    if not isinstance(groups, int) or len(call.shape) < 2:
        return None
    return "select", {"dim": 1, "reads": [np.array(shuffle_permutation(call.shape[1], groups))]}


_READ: Mapping[str, Read] = {
    **dict.fromkeys(_BINARY, _always("binary")),
    **dict.fromkeys(_ELEMENTWISE, _always("elementwise")),
    **dict.fromkeys(_SAME, _always("elementwise", same=True)),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_EQUIVARIANT, _equivariant),
    **dict.fromkeys(_SHAPES, _reshape),
    **dict.fromkeys(_ANY_SHAPE, _reshape),
    **dict.fromkeys(_SIZES, _size),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_PRODUCTS, _product),
    **PARTS,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "channel_shuffle": _channel_shuffle,
    "concat": _cat,
    "concatenate": _cat,
    "expand": _expand,
    "dequantize_per_channel": _quantize,
    "fake_quantize_per_channel_affine": _quantize,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "normalize": _normalize,
    "pad": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_shuffle,
    "prelu": _prelu,
    "quantize_per_channel": _quantize,
    "rms_norm": _rms_norm,
    "scaled_dot_product_attention": _scaled_product,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "t": _matrix_transpose,
    "numpy_T": _matrix_transpose,
    "transpose": _transpose,
}
