"""Layers with zeros in known places, and a check in float64 that asks nothing of groupfx."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Groups = Sequence[tuple[Sequence[int], Sequence[int]]]

# 11 inputs and 13 filters, primes both; input 4 is dead, filter 6 reads nothing.
UNEQUAL: Groups = [
    ((0, 5, 7), (1, 2, 9, 12)),
    ((1, 2), (0, 3, 8)),
    ((3, 6, 8, 9, 10), (4, 5, 7, 10, 11)),
]
EQUAL: Groups = [((0, 4, 6), (1, 5)), ((1, 3, 8), (0, 4)), ((2, 5, 7), (2, 3))]


def keep(layer: nn.Module, groups: Groups) -> Any:
    """`layer` with zeros in its weight everywhere but in the blocks."""
    weight = layer.get_parameter("weight")
    mask = torch.zeros(weight.shape[:2], dtype=torch.bool)
    for inputs, outputs in groups:
        mask[np.ix_(outputs, inputs)] = True
    with torch.no_grad():
        weight[~mask] = 0
    return layer


def macs_of(groups: Groups) -> int:
    return sum(len(inputs) * len(outputs) for inputs, outputs in groups)


def oracle(model: nn.Module, rewritten: nn.Module, *inputs: Tensor) -> None:
    """Both in float64 and eval mode, on inputs that the rewrite has not seen."""
    for module in model.modules():  # a pruned weight has a history, which cannot be copied
        vars(module).update({k: v.detach() for k, v in vars(module).items() if torch.is_tensor(v)})
    before, after = (copy.deepcopy(m).double().eval() for m in (model, rewritten))
    with torch.no_grad():
        expected = before(*(x.double() for x in inputs))
        found = after(*(x.double() for x in inputs))
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


CONVS: dict[str, Callable[[Groups], tuple[nn.Module, Tensor]]] = {
    "1d": lambda g: (keep(nn.Conv1d(11, 13, 3, stride=2, padding=1), g), torch.randn(2, 11, 17)),
    "2d": lambda g: (keep(nn.Conv2d(11, 13, 3), g), torch.randn(2, 11, 7, 5)),
    "3d": lambda g: (keep(nn.Conv3d(11, 13, 2), g), torch.randn(2, 11, 5, 3, 4)),
    "pointwise": lambda g: (keep(nn.Conv2d(11, 13, 1), g), torch.randn(2, 11, 3, 2)),
    "no-bias": lambda g: (keep(nn.Conv2d(11, 13, 3, bias=False), g), torch.randn(2, 11, 7, 5)),
    "edges": lambda g: (
        keep(nn.Conv2d(11, 13, (3, 2), padding=(1, 0), dilation=(2, 1), padding_mode="reflect"), g),
        torch.randn(2, 11, 9, 5),
    ),
    "same": lambda g: (keep(nn.Conv2d(11, 13, 3, padding="same"), g), torch.randn(2, 11, 7, 5)),
    "channels-last": lambda g: (
        keep(nn.Conv2d(11, 13, 3), g).to(memory_format=torch.channels_last),
        torch.randn(2, 11, 7, 5).to(memory_format=torch.channels_last),
    ),
    "double": lambda g: (keep(nn.Conv2d(11, 13, 3), g).double(), torch.randn(2, 11, 7, 5).double()),
    "frozen": lambda g: (
        keep(nn.Conv2d(11, 13, 3), g).requires_grad_(False),
        torch.randn(2, 11, 7, 5),
    ),
}
