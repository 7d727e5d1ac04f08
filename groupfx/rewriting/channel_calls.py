"""Calls of a torch graph in the words of the folding rules: functions, methods, aten operators.

They are known by name, the same for `torch`, `torch.nn.functional`, methods and `aten`, and their
arguments have the same places but where a reader below says otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..convs.calls import ConvCall, Stored, attribute, read_conv
from ..folding.wiring import Parameter
from ..plan.channels import shuffle_permutation
from .resizing import sizes_said


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE = _words(
    """
    abs acos acosh alias asin asinh atan atanh celu ceil clamp clamp_max clamp_min clip clone
    contiguous cos cosh detach double dropout dropout2d dropout3d alpha_dropout elu erf exp expm1
    feature_dropout float floor frac gelu half hardshrink hardsigmoid hardswish hardtanh
    leaky_relu lift_fresh_copy log log1p logit logsigmoid mish nan_to_num neg reciprocal relu
    relu6 round rrelu rsqrt selu sigmoid sign silu sin sinh softplus softshrink softsign sqrt
    square tan tanh tanhshrink threshold to trunc type _to_copy
    """
)
_BINARY = _words(
    """
    add div divide eq floor_divide fmod ge gt iadd imul isub itruediv le lt maximum minimum mul
    multiply ne pow remainder rsub sub subtract truediv true_divide where
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
_SHAPES = _words("flatten reshape squeeze unflatten unsqueeze view view_as _unsafe_view")
_EQUIVARIANT = _words("softmax log_softmax _softmax _log_softmax normalize softmin")
_SIZES = _words("size dim numel sym_size")

Numbers = dict[str, Any]
Found = tuple[str, Numbers]


@dataclass(frozen=True)
class Call:
    """A node of a graph, by the name of what it calls."""

    node: fx.Node
    name: str
    tensors: Tensors

    def argument(self, place: int, *names: str, default: Any = None) -> Any:
        """An argument by its place or one of its names."""
        if place < len(self.node.args):
            return self.node.args[place]
        return next((self.node.kwargs[n] for n in names if n in self.node.kwargs), default)

    def parameter(self, place: int, *names: str) -> Parameter | None:
        """An argument that is a stored tensor."""
        held = self.argument(place, *names)
        return self.tensors.stored(held) if isinstance(held, fx.Node) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first input."""
        first = self.argument(0, "input", "self", "x")
        return self.tensors.shape(first) if isinstance(first, fx.Node) else ()

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the output."""
        return self.tensors.shape(self.node)

    def dim(self, value: Any) -> int | None:
        """A dimension of the first input, counted from the front."""
        return value % len(self.shape) if isinstance(value, int) and self.shape else None

    @property
    def resized(self) -> list[int]:
        """The dimensions whose size the output does not have; all where their number differs."""
        if len(self.shape) != len(self.result):
            return list(range(len(self.shape)))
        return [k for k, n in enumerate(self.shape) if n != self.result[k]]


class Tensors(Protocol):
    """What is known of the tensors of a graph."""

    module: fx.GraphModule

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node gives; nothing where it gives no tensor."""

    def stored(self, node: fx.Node) -> Parameter | None:
        """The stored tensor that a node reads."""

    def parameter(self, tensor: Tensor) -> Parameter:
        """A stored tensor, by the first of its names."""


def rule_of(call: Call) -> Found | None:
    """The rule of a call, with what it needs to know; None for a barrier."""
    name = call.name
    if name in _BINARY:
        return "binary", {}
    if name in _ELEMENTWISE:
        return "elementwise", {}
    if name in _POOLS:
        return "elementwise", {"dims": {*call.resized, *range(2, len(call.shape))}}
    if name in _EQUIVARIANT:
        return "normalise", {}
    if name in _SHAPES:
        return "reshape", _sizes_of(call)
    if name in _SIZES:
        return "size", _asked(call)
    if name in _REDUCTIONS:
        return _reduction(call)
    read = _READ.get(name)
    return convolution(call.node, call.tensors) if read is None else read(call)


def first_argument(node: fx.Node) -> fx.Node:
    """The first argument, as most operations have their tensor there."""
    named = (node.kwargs.get(name) for name in ("input", "self", "x"))
    first = node.args[0] if node.args else next((n for n in named if n is not None), None)
    return first if isinstance(first, fx.Node) else node.all_input_nodes[0]


def _name_of(node: fx.Node) -> str:
    """The name of a function, a method or an aten operator, in place or not."""
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.rpartition("::")[2]
    else:
        name = getattr(target, "__name__", str(target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def convolution(node: fx.Node, tensors: Tensors) -> Found | None:
    """A convolution in any dialect whose weight and bias are stored."""
    call = read_conv(node, tensors.module)
    if not isinstance(call, ConvCall) or call.output_size is not None:
        return None
    held: list[Parameter | None] = []
    for source in (call.weight, call.bias):
        if source is not None and not isinstance(source, Stored):
            return None
        key = None if source is None else source.key
        held.append(None if key is None else tensors.parameter(attribute(tensors.module, key)))
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


def _sizes_of(call: Call) -> Numbers:
    """The sizes that the call names, None for those that it computes in a way of its own."""
    if call.name in ("flatten", "squeeze", "unsqueeze"):
        return {}
    said = None if call.name in ("view_as", "unflatten") else sizes_said(call.node)
    return {"sizes": [None] * len(call.result) if said is None else said}


def _asked(call: Call) -> Numbers:
    """Of which dimensions a size is asked; nothing said is all."""
    if call.name == "dim":
        return {"dims": []}
    dim = call.argument(1, "dim")
    if call.name == "numel" or (dim is not None and not isinstance(dim, int)):
        return {}
    return _read_by_number(call) if dim is None else {"dims": [dim % len(call.shape)]}


def _read_by_number(call: Call) -> Numbers:
    """The dimensions that are read of a whole shape, where each is read by its number."""
    found = []
    for user in call.node.users:
        place = user.args[1] if user.target is operator.getitem else None
        if not isinstance(place, int):
            return {}
        found += [place % len(call.shape)] if user.users else []
    return {"dims": found}


def _index_select(call: Call) -> Found | None:
    dim, indices = call.dim(call.argument(1, "dim")), call.argument(2, "index")
    return _chosen(call, dim, indices)


def _chosen(call: Call, dim: int | None, indices: Any) -> Found | None:
    """Channels by a list, or by a tensor that the graph holds as a constant."""
    if isinstance(indices, fx.Node):
        # An export copies a constant before it is read.
        while indices.op == "call_function" and _name_of(indices) in _COPIES:
            indices = first_argument(indices)
        held = indices.op == "get_attr"
        found = attribute(call.tensors.module, str(indices.target)) if held else None
        if not isinstance(found, Tensor) or isinstance(found, nn.Parameter):
            return _untaken(dim, "its indices are computed")
        indices = found
    if isinstance(indices, Tensor):
        if indices.dtype not in (torch.int64, torch.int32) or indices.dim() != 1:
            return None
        indices = indices.tolist()
    if dim is None or not isinstance(indices, (list, tuple)) or not indices:
        return None
    if any(isinstance(k, fx.Node) for k in indices):
        return _untaken(dim, "its indices are computed")
    count = call.shape[dim]
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in indices):
        return None
    beyond = next((k for k in indices if not -count <= k < count), None)
    if beyond is not None:
        return _untaken(dim, f"there is no channel {beyond} among {count}")
    return "select", {"dim": dim, "reads": [np.array(indices) % count]}


_COPIES = _words("alias clone detach lift_fresh lift_fresh_copy")


def _untaken(dim: int | None, reason: str) -> Found:
    """A gather that stays; its name is told where it is one of channels."""
    return "barrier", {"untaken": reason} if dim == 1 else {}


def _getitem(call: Call) -> Found | None:
    source, index = call.node.args
    assert isinstance(source, fx.Node)
    if isinstance(index, int) and not call.tensors.shape(source):
        return _part(call, source, index)
    given = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [g for g in given if not isinstance(g, fx.Node)] or len(given) > len(call.shape):
        return None
    cut = [k for k, g in enumerate(given) if g != slice(None)]
    if len(cut) != 1:
        return None if any(not isinstance(given[k], slice) for k in cut) else _cut(call, given)
    (dim,), chosen = cut, given[cut[0]]
    if isinstance(chosen, slice):
        return _cut(call, given) if dim != 1 and len(call.shape) > 2 else _sliced(call, dim, chosen)
    return _chosen(call, dim, chosen)


def _cut(call: Call, given: tuple[Any, ...]) -> Found | None:
    if any(isinstance(part, fx.Node) for g in given for part in (g.start, g.stop, g.step)):
        return None
    return "elementwise", {"dims": [k for k, g in enumerate(given) if g != slice(None)]}


def _sliced(call: Call, dim: int, part: slice) -> Found | None:
    if any(not (n is None or isinstance(n, int)) for n in (part.start, part.stop, part.step)):
        return None
    return "select", {"dim": dim, "reads": [np.arange(call.shape[dim])[part]]}


def _part(call: Call, source: fx.Node, index: int) -> Found | None:
    found = parts_of(call_of(source, call.tensors))
    if found is None:
        return None
    data, dim, sizes = found
    if not -len(sizes) <= index < len(sizes):
        return None
    place = index % len(sizes)
    start = sum(sizes[:place])
    return "select", {"dim": dim, "reads": [np.arange(start, start + sizes[place])], "source": data}


def _slice(call: Call) -> Found | None:
    """`aten.slice(x, dim, start, end, step)`."""
    dim = call.dim(call.argument(1, "dim", default=0))
    part = slice(*(call.argument(k, name) for k, name in ((2, "start"), (3, "end"), (4, "step"))))
    return None if dim is None else _sliced(call, dim, part)


def _narrow(call: Call) -> Found | None:
    dim, start, length = (
        call.dim(call.argument(1, "dim")),
        call.argument(2, "start"),
        call.argument(3, "length"),
    )
    if dim is None or not isinstance(start, int) or not isinstance(length, int):
        return None
    return _sliced(call, dim, slice(start, start + length))


def _index(call: Call) -> Found | None:
    """`aten.index(x, [None, indices])`."""
    given = call.argument(1, "indices")
    if not isinstance(given, (list, tuple)):
        return None
    cut = [k for k, g in enumerate(given) if g is not None]
    return _chosen(call, cut[0], given[cut[0]]) if len(cut) == 1 else None


def _pixel_shuffle(call: Call) -> Found | None:
    factor = call.argument(1, "upscale_factor", "downscale_factor")
    if not isinstance(factor, int):
        return None
    return "pixel shuffle", {"block": factor**2, "up": call.name == "pixel_shuffle"}


def _channel_shuffle(call: Call) -> Found | None:
    groups = call.argument(1, "groups")
    if not isinstance(groups, int) or len(call.shape) < 2:
        return None
    return "select", {"dim": 1, "reads": [np.array(shuffle_permutation(call.shape[1], groups))]}


def _attribute(call: Call) -> Found | None:
    name = call.argument(1)
    if name in ("ndim", "dtype", "device"):
        return "size", {"dims": []}
    return ("size", _read_by_number(call)) if name == "shape" else None


_READ: Mapping[str, Callable[[Call], Found | None]] = {
    "batch_norm": _batch_norm,
    "cat": _cat,
    "channel_shuffle": _channel_shuffle,
    "concat": _cat,
    "concatenate": _cat,
    "expand": _expand,
    "getattr": _attribute,
    "getitem": _getitem,
    "group_norm": _group_norm,
    "index": _index,
    "index_select": _index_select,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "narrow": _narrow,
    "pad": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_shuffle,
    "prelu": _prelu,
    "slice": _slice,
    "transpose": _transpose,
}


def parts_of(call: Call) -> tuple[fx.Node, int, list[int]] | None:
    """Of a split or chunk: its input, the dimension and the sizes of the parts."""
    if call.name not in ("chunk", "split", "split_with_sizes", "tensor_split") or not call.shape:
        return None
    dim = call.dim(call.argument(2, "dim", default=0))
    amount = call.argument(1, "split_size_or_sections", "split_size", "split_sizes", "chunks")
    source = call.argument(0, "input", "self", "tensor")
    if dim is None or not isinstance(source, fx.Node):
        return None
    total = call.shape[dim]
    try:
        if call.name == "chunk":
            parts = torch.empty(total).chunk(amount)
        elif call.name == "tensor_split":
            parts = torch.empty(total).tensor_split(amount)
        else:
            parts = torch.empty(total).split(amount)
    except (RuntimeError, TypeError):
        return None
    return source, dim, [len(part) for part in parts]


def call_of(node: fx.Node, tensors: Tensors) -> Call:
    """A node by the name of what it calls."""
    return Call(node, _name_of(node), tensors)
