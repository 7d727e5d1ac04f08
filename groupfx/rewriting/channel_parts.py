"""Parts of tensors in the words of the folding rules: indices, slices, splits, one of several.

What gives several tensors at once has no rule of its own: each is read by its number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..convs.calls import attribute
from ..plan.channels import takes_all
from .channel_calls import Call, Found, Numbers, Tensors, call_of, first_argument, name_of


def _index_select(call: Call) -> Found | None:
    dim, indices = call.dim(call.argument(1, "dim")), call.argument(2, "index")
    return _chosen(call, dim, indices)


def _chosen(call: Call, dim: int | None, indices: Any) -> Found | None:
    """Channels by a list, or by a tensor that the graph holds as a constant."""
    if isinstance(indices, fx.Node):
        # An export copies a constant before it is read.
        while indices.op == "call_function" and name_of(indices) in _COPIES:
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


_COPIES = frozenset({"alias", "clone", "detach", "lift_fresh", "lift_fresh_copy"})


def _untaken(dim: int | None, reason: str) -> Found:
    """A gather that stays; its name is told where it is one of channels."""
    return "barrier", {"untaken": reason} if dim == 1 else {}


def _getitem(call: Call) -> Found | None:
    source, index = call.node.args
    if not isinstance(source, fx.Node):
        return None
    if not call.tensors.shape(source):
        return _of_several(call, source, index)
    given = _spread(index if isinstance(index, tuple) else (index,), len(call.shape))
    if given is None:
        return None
    cut = [k for k, g in enumerate(given) if not _takes_all(g)]
    if len(cut) != 1:
        return None if any(not isinstance(given[k], slice) for k in cut) else _cut(call, given)
    (dim,), chosen = cut, given[cut[0]]
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        return _picked(call, dim, chosen)
    if isinstance(chosen, slice):
        return _sliced(call, dim, chosen)
    return _chosen(call, dim, chosen)


def _takes_all(given: Any) -> bool:
    """Whether one entry of an index is a slice of all."""
    if not isinstance(given, slice):
        return False
    bounds = (given.start, given.stop, given.step)
    return all(n is None or isinstance(n, int) for n in bounds) and takes_all(given)


def _spread(given: tuple[Any, ...], rank: int) -> tuple[Any, ...] | None:
    """An index with `...` as so many whole slices; None where it says something else."""
    if any(g is None or isinstance(g, bool) for g in given) or len(given) > rank + 1:
        return None
    places = [k for k, g in enumerate(given) if g is Ellipsis]
    if not places:
        return given if len(given) <= rank else None
    if len(places) > 1:
        return None
    fill = (slice(None),) * (rank - len(given) + 1)
    return (*given[: places[0]], *fill, *given[places[0] + 1 :])


def _cut(call: Call, given: tuple[Any, ...]) -> Found | None:
    if any(isinstance(part, fx.Node) for g in given for part in (g.start, g.stop, g.step)):
        return None
    return "elementwise", {"dims": [k for k, g in enumerate(given) if g != slice(None)]}


def _sliced(call: Call, dim: int, part: slice) -> Found | None:
    if any(not (n is None or isinstance(n, int)) for n in (part.start, part.stop, part.step)):
        return None
    reads = [np.arange(call.shape[dim])[part]]
    return "select", {"dim": dim, "reads": reads, "slice": True, "whole": takes_all(part)}


def _of_several(call: Call, source: fx.Node, index: Any) -> Found | None:
    """One of the values that `source` gives, by its number or its name."""
    several = call_of(source, call.tensors)
    if isinstance(index, str):
        index = _NAMES.get(index)
    if not isinstance(index, int):
        return None
    if several.name in _EXTREMES:
        return _extreme(several, index)
    if several.name == "unbind":
        data = several.argument(0, "input", "self")
        dim = several.dim(several.argument(1, "dim", default=0))
        if dim is None or not isinstance(data, fx.Node):
            return None
        found = _picked(several, dim, index)
        return None if found is None else (found[0], {**found[1], "source": data})
    parts = parts_of(several)
    if parts is None or not -len(parts[2]) <= index < len(parts[2]):
        return None
    data, dim, sizes = parts
    start, size = sum(sizes[: index % len(sizes)]), sizes[index]
    return "select", {
        "dim": dim,
        "reads": [np.arange(start, start + size)],
        "slice": True,
        "source": data,
    }


def _pick(call: Call) -> Found | None:
    """`x.select(dim, index)`."""
    dim, index = call.dim(call.argument(1, "dim")), call.argument(2, "index")
    return None if dim is None or not isinstance(index, int) else _picked(call, dim, index)


def _picked(call: Call, dim: int, index: int) -> Found | None:
    count = call.shape[dim]
    return ("pick", {"dim": dim, "picked": [index % count]}) if -count <= index < count else None


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


def is_several(node: fx.Node, tensors: Tensors) -> bool:
    """Whether a node gives several tensors, each of which a rule reads by its number."""
    if tensors.shape(node) or node.op == "call_module":
        return False
    several = call_of(node, tensors)
    known = several.name in (*_EXTREMES, "unbind") or parts_of(several) is not None
    return known and all(_reads_one(user, tensors) for user in node.users)


def _reads_one(user: fx.Node, tensors: Tensors) -> bool:
    read = PARTS.get(name_of(user)) if user.op == "call_function" else None
    return read is not None and read(call_of(user, tensors)) is not None


_EXTREMES = frozenset({"max", "min"})
_NAMES = {"values": 0, "indices": 1}


def _extreme(several: Call, index: int) -> Found | None:
    """`x.max(dim)`: the values, and where they are."""
    dim, data = several.dim(several.argument(1, "dim")), several.argument(0, "input", "self")
    if dim is None or not isinstance(data, fx.Node):
        return None
    keep = bool(several.argument(2, "keepdim", default=False))
    return "reduce", {"dims": [dim], "keep": keep, "ordered": index != 0, "source": data}


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


def read_by_number(call: Call) -> Numbers:
    """The dimensions that are read of a whole shape, where each is read by its number."""
    found = []
    for user in call.node.users:
        place = user.args[1] if user.target is operator.getitem else None
        if not isinstance(place, int):
            return {}
        found += [place % len(call.shape)] if user.users else []
    return {"dims": found}


def _attribute(call: Call) -> Found | None:
    name = call.argument(1)
    if name in ("ndim", "dtype", "device"):
        return "size", {"dims": []}
    if name == "shape":
        return "size", read_by_number(call)
    if name in ("T", "mT", "H", "mH") and len(call.shape) > 1:
        rank = len(call.shape)
        last = [*range(rank - 2), rank - 1, rank - 2]
        return "transpose", {"dims": last if name[0] == "m" else list(range(rank))[::-1]}
    source = call.node.args[0]
    return _of_several(call, source, name) if isinstance(source, fx.Node) else None


PARTS: Mapping[str, Callable[[Call], Found | None]] = {
    "getattr": _attribute,
    "getitem": _getitem,
    "index": _index,
    "index_select": _index_select,
    "narrow": _narrow,
    "select": _pick,
    "slice": _slice,
}
