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
_VIEWS = ("view", "reshape", torch.reshape, "flatten", torch.flatten, "contiguous")
_SWAPS = ("transpose", torch.transpose, "permute", torch.permute)
_WHOLE = slice(None, None, None)


@dataclass(frozen=True)
class IndexChannels(OperationPass):
    """Channel shuffles, gathers, chunks and narrowings become indices of axis 1."""

    backwards = True

    refuses = ("parts along another axis than the channels",)

    def spell(self, place: Place) -> Spelling | None:
        if place.shape is None:
            return None
        found = _part(place) or _gather(place) or _viewed(place)
        if found is None:
            return None
        value, index = found
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
    return _slice(value, index)


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
        **dict.fromkeys(("chunk", torch.chunk), "chunk"),
        **dict.fromkeys(("split", torch.split, torch.functional.split), "split"),
        **dict.fromkeys(("tensor_split", torch.tensor_split), "tensor_split"),
    }
    kind = targets.get(pieces.target)
    by = given.get("by", given.get("chunks", given.get("split_size_or_sections")))
    by = given.get("split_size", by)
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
