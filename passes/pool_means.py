"""Spell a mean over all positions as the pooling that it is.

Before:  y = x.mean((2, 3))                           x [N, C, H, W]
After:   y = torch.flatten(pool(x), 1)                pool = nn.AdaptiveAvgPool2d(1)

    mean over H, W = adaptive average pooling to size 1

and so is an average pooling whose window is the whole image. In one and two dimensions; a mean over
some of the axes behind the channels, and any in three, stays a `torch.mean`, which needs no module.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from groupfx.rewriting import OperationPass, Place, Spelling, has_node, shape_of

_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}
_ADAPTIVE = (F.adaptive_avg_pool3d,)


@dataclass(frozen=True)
class PoolMeans(OperationPass):
    """Means over all positions become adaptive pooling; other means become torch.mean."""

    refuses = ("means over channels, or over the batch", "means in another dtype")

    def spell(self, place: Place) -> Spelling | None:
        if place.calls("mean", torch.mean):
            return _mean(place)
        if place.calls(F.avg_pool1d, F.avg_pool2d):
            return _whole_window(place)
        if isinstance(place.module, nn.AdaptiveAvgPool3d) or place.calls(*_ADAPTIVE):
            return _pool_3d(place)
        return None


def _mean(place: Place) -> Spelling | None:
    given = place.arguments("input", "dim", "keepdim")
    value, dim, keepdim = given.get("input"), given.get("dim"), given.get("keepdim", False)
    shape = shape_of(value) if isinstance(value, fx.Node) else None
    if shape is None or given.keys() - {"input", "dim", "keepdim"} or has_node((dim, keepdim)):
        return None
    assert isinstance(value, fx.Node)
    if place.node.op == "call_method" and isinstance(place.node.args[2:3], tuple):
        listed = place.node.args[1:]
        if len(listed) > 1 and all(type(each) is int for each in listed):
            dim, keepdim = listed, given.get("keepdim", False)
            keepdim = bool(place.node.kwargs.get("keepdim", False))
    if dim is None:
        return None
    axes = {axis % len(shape) for axis in ((dim,) if isinstance(dim, int) else dim)}
    positions = set(range(2, len(shape)))
    if not axes or not axes <= positions:
        return None
    pool = _POOLS.get(len(shape) - 2)
    if axes == positions and pool is not None:
        after = f"nn.{pool.__name__}(1)" + ("" if keepdim else " + torch.flatten")
        return Spelling(after, (value,), lambda: _pooled(place, value, pool(1), keepdim))
    if place.node.target is torch.mean:
        return None
    axis = sorted(axes)
    return Spelling(
        "torch.mean", (value,), lambda: place.call(torch.mean, value, axis, keepdim=keepdim)
    )


def _pooled(place: Place, value: fx.Node, pool: nn.Module, keepdim: bool) -> fx.Node:
    made = place.call_module(pool, value, stem="pool")
    if keepdim:
        return made
    shape = shape_of(value)
    assert shape is not None
    made.meta["shape"] = (*shape[:2], *(1,) * (len(shape) - 2))
    return place.call(torch.flatten, made, 1)


def _whole_window(place: Place) -> Spelling | None:
    """`F.avg_pool2d(x, x.shape[2:])`: a window that forward computes, and that is the image."""
    given = place.arguments("input", "kernel_size")
    value, after = given.pop("input", None), place.shape
    if not isinstance(value, fx.Node) or after is None or not has_node(tuple(given.values())):
        return None
    shape = shape_of(value)
    if shape is None or after != (*shape[:2], *(1,) * (len(shape) - 2)):
        return None
    pool = _POOLS[len(shape) - 2]
    return Spelling(
        f"nn.{pool.__name__}(1)",
        (value,),
        lambda: _pooled(place, value, pool(1), keepdim=True),
    )


def _pool_3d(place: Place) -> Spelling | None:
    """Pooling to one position in three dimensions is a mean."""
    value, after = place.node.args[0], place.shape
    if not isinstance(value, fx.Node) or after is None or after[2:] != (1, 1, 1):
        return None
    return Spelling(
        "torch.mean",
        (value,),
        lambda: place.call(torch.mean, value, [2, 3, 4], keepdim=True),
    )
