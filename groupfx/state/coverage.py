"""Which elements of an original tensor the entries of a map take, and how large it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .rows import Entry, Rows


def coverage(entries: Collection[Entry], shape: Sequence[int]) -> Tensor:
    """How often each element of an original tensor of this `shape` is taken by `entries`.

    int32; by rows where all entries take whole rows, else by rows and columns; 0-d for a 0-d
    tensor. Axes behind those are always taken whole.
    """
    return _count(entries, torch.zeros(_axes(entries, shape), dtype=torch.int32, device="cpu"))


def held_by(entries: Collection[Entry], others: Collection[Entry], shape: Sequence[int]) -> Tensor:
    """Bool: which elements `entries` take, in a table with enough axes for `others` as well."""
    axes = _axes([*entries, *others], shape)
    return _count(entries, torch.zeros(axes, dtype=torch.int32, device="cpu")) > 0


def taken_by(entries: Collection[Entry], like: Tensor) -> Tensor:
    """Bool, of the shape of `like`: which elements `entries` take."""
    return _count(entries, torch.zeros_like(like, dtype=torch.int32)) > 0


def original_shape(entry: Entry, shape: Sequence[int]) -> tuple[int, ...]:
    """The least shape of the original's tensor, given that of the tensor that `entry` describes."""
    if isinstance(entry, Rows):
        return tuple(shape) if entry.stop is None else (entry.stop, *shape[1:])
    return (*entry.size, *shape[len(entry.size) :])


def _axes(entries: Collection[Entry], shape: Sequence[int]) -> tuple[int, ...]:
    by_rows = all(isinstance(entry, Rows) or len(entry.size) == 1 for entry in entries)
    return tuple(shape[: 1 if by_rows else 2])


def _count(entries: Collection[Entry], table: Tensor) -> Tensor:
    for entry in entries:
        entry.count(table)
    return table
