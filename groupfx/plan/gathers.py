"""What a fixed choice of channels is at run time: nothing, a shuffle, a transpose, or a gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .channels import as_shuffle, is_identity, is_permutation

GatherKind = Literal["identity", "shuffle", "transpose", "gather"]


@dataclass(frozen=True)
class GatherPlan:
    """`y = x[:, indices]`, and the cheapest way to do it.

    - `identity`: nothing to do; `indices` are all channels of x in order.
    - `shuffle`: the channel shuffle of `groups`, as `groupfx.nn.ChannelShuffle` does it.
    - `transpose`: the channels seen as `shape`, axes in the order `axes`, seen as one axis again:
      `x.unflatten(1, shape)`, permute, flatten. A shuffle is the one with two axes.
    - `gather`: none of these; `indices` may repeat or omit channels.

    `indices` says the same in every case. `groups`, `shape` and `axes` are only given where the
    kind says so.
    """

    kind: GatherKind
    indices: tuple[int, ...]
    groups: int | None = None
    shape: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()


def plan_gather(indices: Sequence[int], channels: int) -> GatherPlan:
    """How to read `indices` of a tensor of `channels` channels."""
    chosen = tuple(indices)
    if len(chosen) != channels:
        return GatherPlan("gather", chosen)
    if is_identity(chosen):
        return GatherPlan("identity", chosen)
    groups = as_shuffle(chosen)
    if groups is not None:
        return GatherPlan("shuffle", chosen, groups=groups)
    found = as_transpose(chosen)
    if found is None:
        return GatherPlan("gather", chosen)
    shape, axes = found
    return GatherPlan("transpose", chosen, shape=shape, axes=axes)


def as_transpose(indices: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The `shape` and `axes` with `indices == arange(n).reshape(shape).transpose(axes).ravel()`.

    With the fewest axes, so that the answer is unique: one axis for the identity, two for a
    channel shuffle. None if there are none.
    """
    if not is_permutation(indices):
        return None
    # Read as nested loops: the innermost one runs as long as the steps are equal, the next one
    # steps over whole runs of it, and so on.
    loops: list[tuple[int, int]] = []
    total, done = len(indices), 1
    while done < total:
        stride, count = indices[done], 1
        while done * count < total and indices[done * count] == stride * count:
            count += 1
        if total % (done * count):
            return None
        loops.append((stride, count))
        done *= count
    loops = loops or [(1, total)]
    outermost_first = sorted(loops, reverse=True)
    shape = tuple(count for _, count in outermost_first)
    axes = tuple(outermost_first.index(loop) for loop in reversed(loops))
    result = np.arange(total).reshape(shape).transpose(axes).ravel()
    return (shape, axes) if result.tolist() == list(indices) else None
