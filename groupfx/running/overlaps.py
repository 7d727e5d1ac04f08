"""Tensors of a model that lie on one another in memory, though each is a tensor of its own.

`b.weight.data = a.weight.data` makes two parameters of one memory: a step of an optimiser on either
moves both. Such are not tied as one `Parameter` is, and Python's own copy parts them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .float64 import storage


def overlapping(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """Tensors that share elements, a parameter among them, by their names: each group on its own.

    Views of one memory that lie side by side share none.
    """
    behind: dict[int, list[tuple[int, int, str, Tensor]]] = defaultdict(list)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is torch.strided and tensor.numel() and not tensor.is_meta:
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            start = int(tensor.storage_offset()) * tensor.itemsize
            stop = start + (last + 1) * tensor.itemsize
            behind[storage(tensor)].append((start, stop, name, tensor))
    behind.pop(0, None)  # no memory that torch lets us see
    for placed in behind.values():
        group: dict[str, Tensor] = {}
        end = -1
        for start, stop, name, tensor in sorted(placed, key=lambda each: each[:3]):
            if start >= end:
                yield from _with_a_parameter(group)
                group = {}
            group[name] = tensor
            end = max(end, stop)
        yield from _with_a_parameter(group)


def lying_on(model: nn.Module) -> dict[int, str]:
    """For the id of each tensor that lies on another one, the name of such another."""
    found: dict[int, str] = {}
    for group in overlapping(model):
        first, second, *_ = group
        found |= {id(each): second if name == first else first for name, each in group.items()}
    return found


def _with_a_parameter(group: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    if len(group) > 1 and any(isinstance(tensor, nn.Parameter) for tensor in group.values()):
        yield group
