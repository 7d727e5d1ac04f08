"""Spell every choice of channels as an index.

Before:  y = shuffle(x);  a, b = x.chunk(2, 1);  z = x.narrow(1, 3, 4)
After:   y = x[:, [0, 4, 1, 5, ...]];  a, b = x[:, 0:4], x[:, 4:8];  z = x[:, 3:7]

A channel shuffle is the permutation `(g, n) -> (n, g)`, whether it is written as a module, as view,
transpose and view, or as a gather. A tool that follows channels reads an index, and neither of
these.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from groupfx.nn import ChannelGather, ChannelShuffle, ChannelTranspose
from groupfx.rewriting import OperationPass, Place, Spelling, has_node, shape_of

_SHUFFLES = (nn.ChannelShuffle, ChannelShuffle)
_VIEWS = (
    *("view", "reshape", torch.reshape, "flatten", torch.flatten, "contiguous"),
    *("unflatten", torch.unflatten),
)
_SWAPS = (
    *("transpose", torch.transpose, "permute", torch.permute, "swapaxes", torch.swapaxes),
    *("swapdims", torch.swapdims, "movedim", torch.movedim, "moveaxis", torch.moveaxis),
)
_WHOLE = slice(None, None, None)
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class IndexChannels(OperationPass):
    """Channel shuffles, gathers, chunks and narrowings become indices of axis 1."""

    backwards = True

    refuses = ("parts along another axis than the channels",)

    def spell(self, place: Place) -> Spelling | None:
        if place.shape is None:
            return None
        stacked = _stacked(place)
        if stacked is not None:
            return stacked
        found = _part(place) or _gather(place) or _viewed(place)
        if found is None:
            return None
        value, index = found
        if 1 in place.axes.sized(value, len(place.shape)):
            return None  # positions, such as of rows of an image
        if isinstance(index, list) and index == list(range(place.shape[1])):
            return Spelling("its input", (value,), lambda: value)
        told = "[:, [...]]" if isinstance(index, list) else f"[:, {index.start}:{index.stop}]"
        return Spelling(
            told, (value,), lambda: place.call(operator.getitem, value, (_WHOLE, index))
        )


Index = tuple[fx.Node, "slice[int, int, None] | list[int]"]


def _part(place: Place) -> Index | None:
    """A part of the channels: of a chunk or a split, narrowed, or sliced in another spelling."""
    node = place.node
    if place.calls("narrow", torch.narrow):
        given = place.arguments("input", "dim", "start", "length")
        value, start, length = given["input"], given["start"], given["length"]
        if has_node((start, length)) or not _is_axis_1(value, given["dim"]):
            return None
        return value, slice(start, start + length)
    if node.target is not operator.getitem or node.op != "call_function":
        return None
    value, index = node.args
    assert isinstance(value, fx.Node)
    if isinstance(index, int) and shape_of(value) is None:
        return _piece(value, index)
    return _slice(value, _numbers(place, index))


def _numbers(place: Place, index: Any) -> Any:
    """An index whose tensor of channels is a constant, with the numbers in it."""
    if not isinstance(index, tuple) or len(index) < 2 or not isinstance(index[1], fx.Node):
        return index
    chosen = place.parameter(index[1])
    plain = chosen is not None and chosen.dtype == torch.int64 and chosen.dim() == 1
    return (index[0], chosen.tolist(), *index[2:]) if plain and chosen is not None else index


def _piece(pieces: fx.Node, index: int) -> Index | None:
    """Number `index` of what chunk or split gives."""
    if pieces.op == "placeholder" or not pieces.args:
        return None
    value, *others = pieces.args
    shape = shape_of(value) if isinstance(value, fx.Node) else None
    given = dict(zip(("by", "dim"), others, strict=False)) | dict(pieces.kwargs)
    if shape is None or has_node(others) or not _is_axis_1(value, given.get("dim", 0)):
        return None
    targets: dict[object, str] = {
        **dict.fromkeys(("chunk", torch.chunk, _ATEN.chunk.default), "chunk"),
        **dict.fromkeys(("split", torch.split, torch.functional.split), "split"),
        **dict.fromkeys((_ATEN.split.Tensor, _ATEN.split_with_sizes.default), "split"),
        **dict.fromkeys(("tensor_split", torch.tensor_split), "tensor_split"),
    }
    kind = targets.get(pieces.target)
    by = given.get("by", given.get("chunks", given.get("split_size_or_sections")))
    by = given.get("split_size", given.get("split_sizes", by))
    if kind is None or by is None:
        return None
    probe = torch.empty((1, shape[1]), device="meta")
    sizes = [part.shape[1] for part in getattr(torch, kind)(probe, by, dim=1)]
    start = sum(sizes[: index % len(sizes)])
    assert isinstance(value, fx.Node)
    return value, slice(start, start + sizes[index])


def _slice(value: fx.Node, index: Any) -> Index | None:
    """`x[:, a:b]` in another spelling, such as `x[:, :b]` or `x[..., a:b, :, :]`."""
    shape = shape_of(value)
    if shape is None or not isinstance(index, tuple) or has_node(index):
        return None
    plain = Ellipsis not in index
    if not plain:
        place = index.index(Ellipsis)
        missing = len(shape) - len(index) + 1
        index = (*index[:place], *(_WHOLE,) * missing, *index[place + 1 :])
    if len(index) < 2 or any(each != _WHOLE for each in (index[0], *index[2:])):
        return None
    part = index[1]
    if isinstance(part, (list, tuple)):
        plain = plain and isinstance(part, fx.immutable_collections.immutable_list)
        listed = [int(channel) % shape[1] for channel in part]
        return None if plain and listed == part else (value, listed)
    if not isinstance(part, slice):
        return None
    start, stop, step = part.indices(shape[1])
    if step != 1:
        return value, list(range(start, stop, step))
    if (start, stop) == (0, shape[1]):
        return value, list(range(stop))
    settled = slice(start, stop)
    return None if plain and part == settled else (value, settled)


def _gather(place: Place) -> Index | None:
    """A permutation or a gather of channels: a module, or a function."""
    module, node = place.module, place.node
    value = node.args[0] if node.args else None
    if not isinstance(value, fx.Node):
        return None
    shape = shape_of(value)
    if shape is None or len(shape) < 2:
        return None
    if isinstance(module, ChannelGather):
        return value, list(module.channels)
    if isinstance(module, (*_SHUFFLES, ChannelTranspose)):
        return value, _order(module, shape[1])
    if place.calls(F.channel_shuffle, torch.channel_shuffle) and not has_node(node.args[1:]):
        groups = place.arguments("input", "groups")["groups"]
        return value, _order(nn.ChannelShuffle(groups), shape[1])
    if place.calls("index_select", torch.index_select) and _is_axis_1(value, node.args[1]):
        chosen = place.parameter(node.args[2]) if isinstance(node.args[2], fx.Node) else None
        return None if chosen is None or chosen.requires_grad else (value, chosen.tolist())
    if place.calls("flip", torch.flip):
        dims = place.arguments("input", "dims").get("dims")
        along = (dims,) if isinstance(dims, int) else tuple(dims or ())
        alone = len(along) == 1 and len(node.args) + len(node.kwargs) == len(("input", "dims"))
        return (value, [*range(shape[1])][::-1]) if alone and _is_axis_1(value, along[0]) else None
    if place.calls("roll", torch.roll):
        given = place.arguments("input", "shifts", "dims")
        dims, by = given.get("dims"), given.get("shifts")
        along = (dims,) if isinstance(dims, int) else tuple(dims or ())
        by = by[0] if isinstance(by, (list, tuple)) and len(by) == 1 else by
        if len(along) == 1 and isinstance(by, int) and _is_axis_1(value, along[0]):
            return value, [(channel - by) % shape[1] for channel in range(shape[1])]
    return None


def _order(module: nn.Module, channels: int) -> list[int]:
    """Where each channel comes from."""
    numbers = torch.arange(channels).reshape(1, channels, 1, 1)
    return [int(channel) for channel in module(numbers).flatten()]


def _viewed(place: Place) -> Index | None:
    """A permutation of channels by view, transpose and view."""
    if not place.calls(*_VIEWS):
        return None
    chain, value = [place.node], place.node.args[0]
    while isinstance(value, fx.Node) and value.target in (*_VIEWS, *_SWAPS):
        if value.op not in ("call_function", "call_method") or len(value.users) > 1:
            return None
        chain.append(value)
        value = value.args[0]
    swaps = [node for node in chain if node.target in _SWAPS]
    shape = shape_of(value) if isinstance(value, fx.Node) else None
    if shape is None or not swaps or place.shape != shape or len(shape) < 2:
        return None
    order = _followed(chain[::-1], shape)
    return None if order is None else (value, order)  # type: ignore[return-value]


def _stacked(place: Place) -> Spelling | None:
    """`stack([a, b], 2).flatten(1, 2)`: a concatenation, whose channels take turns."""
    stack = place.node.args[0] if place.calls(*_VIEWS) and place.node.args else None
    if not isinstance(stack, fx.Node) or stack.target is not torch.stack or len(stack.users) > 1:
        return None
    given: dict[str, Any] = dict(zip(("tensors", "dim"), stack.args, strict=False))
    given |= stack.kwargs
    parts, shape = given["tensors"], shape_of(stack)
    if shape is None or len(shape) < 3:
        return None
    axis = given.get("dim", 0) % len(shape)
    count = shape[axis]
    pieces = [_piece(parts, k) for k in range(count)] if isinstance(parts, fx.Node) else []
    if (
        None in pieces
        or axis not in (1, 2)
        or place.shape != (shape[0], shape[1] * shape[2], *shape[3:])
    ):
        return None
    width = shape[3 - axis]
    inputs = [piece[0] for piece in pieces if piece is not None] or list(parts)

    def emit() -> fx.Node:
        slices = [
            place.call(operator.getitem, value, (_WHOLE, part))
            for value, part in filter(None, pieces)
        ]
        joined = place.call(torch.cat, slices or inputs, dim=1)
        if axis == 1:
            return joined
        joined.meta["shape"] = place.shape
        order = [part * width + channel for channel in range(width) for part in range(count)]
        return place.call(operator.getitem, joined, (_WHOLE, order))

    told = "torch.cat" if axis == 1 else "torch.cat, [:, [...]]"
    return Spelling(told, tuple(dict.fromkeys(inputs)), emit)


def _followed(chain: list[fx.Node], shape: tuple[int, ...]) -> list[int] | None:
    """Where each channel comes from, by the shapes that were seen; None for anything else."""
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    moved = numbers
    for node in chain:
        seen = shape_of(node)
        if seen is None:
            return None
        if node.target in _SWAPS:
            if has_node(node.args[1:]):
                return None
            target = node.target
            name = target if isinstance(target, str) else getattr(target, "__name__", "")
            moved = getattr(moved, name)(*node.args[1:], **node.kwargs)
        else:
            moved = moved.reshape(seen)
    order = [int(channel) for channel in moved[0].flatten(1)[:, 0] // numbers[0, 0].numel()]
    return order if torch.equal(moved, numbers[:, order]) else None


def _is_axis_1(value: Any, dim: Any) -> bool:
    shape = shape_of(value) if isinstance(value, fx.Node) else None
    return shape is not None and isinstance(dim, int) and dim % len(shape) == 1
