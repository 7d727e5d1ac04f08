"""Three small models, and the very text that they are written as."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tests.models import zoo_models as zm


class Small(nn.Module):
    """A bottleneck block, an assertion and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = zm.ResNeXtBlock(6, 64, 32)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.size(1) == 6, "wants 6 channels")
        return self.fc(self.block(x).mean((2, 3)))


MODEL = '''\
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def cut(tensor: Tensor, groups: Sequence[int]) -> Sequence[Tensor]:
    """The rows of a tensor, shared out in proportion to `groups`; a number goes to each."""
    if not tensor.dim():
        return [tensor] * len(groups)
    return tensor.split([len(tensor) * n // sum(groups) for n in groups])


def part(module: nn.Module, k: int, groups: Sequence[int]) -> nn.Module:
    """The k-th part of a convolution or a BatchNorm, with its rows of the tensors."""
    new = copy.deepcopy(module)
    for name, tensor in module.named_parameters():
        rows = cut(tensor.detach(), groups)[k].clone()
        setattr(new, name, nn.Parameter(rows, tensor.requires_grad))
    for name, tensor in module.named_buffers():
        setattr(new, name, cut(tensor, groups)[k].clone())
    for name in ("in_channels", "out_channels", "num_features", "groups"):
        if hasattr(new, name):
            setattr(new, name, getattr(new, name) * groups[k] // sum(groups))
    return new


class Branches(nn.Module):
    """A grouped convolution as several convolutions, each on a slice of the channels."""

    def __init__(
        self, conv: nn.Module, groups: Sequence[int], norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        # The model's own code may ask the convolution for its fields.
        vars(self).update({k: v for k, v in vars(conv).items() if not k.startswith("_")})
        count = range(len(groups))
        self.convs = nn.ModuleList([part(conv, k, groups) for k in count])
        self.norms = nn.ModuleList([part(norm, k, groups) for k in count if norm])
        self.widths = [
            c.weight.shape[0] if c.transposed else c.weight.shape[1] * c.groups for c in self.convs
        ]

    def forward(self, x: Tensor) -> Tensor:
        parts, start = [], 0
        for k, (conv, width) in enumerate(zip(self.convs, self.widths)):
            y = conv(x[:, start : start + width])
            parts.append(self.norms[k](y) if self.norms else y)
            start += width
        return torch.cat(parts, dim=1)


# Each convolution, the groups of its branches, the BatchNorm that goes along.
SITES = {
    "block.conv2": (Branches, [1] * 32, "block.bn2"),
}
# Where the parts of the tensors of a module lie.
PLACES = {
    **{path: (f"{path}.convs", n) for path, (kind, n, _) in SITES.items() if kind is Branches},
    **{norm: (f"{path}.norms", n) for path, (_, n, norm) in SITES.items() if norm},
}


def to_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the original model as one of the rewritten model."""
    new = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        if path in PLACES:
            place, groups = PLACES[path]
            parts = enumerate(cut(tensor, groups))
            new |= {f"{place}.{k}.{name}": part.clone() for k, part in parts}
            continue
        new[key] = tensor
    return new


def from_branches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    paths = {place: path for path, (place, _) in PLACES.items()}
    new: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        place, _, name = key.rpartition(".")
        place = place.rpartition(".")[0]
        key = f"{paths[place]}.{name}" if place in paths else key
        new.setdefault(key, []).append(tensor)
    whole = {key: torch.cat(parts) if parts[0].dim() else parts[0] for key, parts in new.items()}
    return whole


def rewrite(model: nn.Module) -> nn.Module:
    """Change `model` itself, its numbers taken over; returns it."""
    for path, (kind, groups, norm) in SITES.items():
        moved = [model.get_submodule(norm)] if norm else []
        model.set_submodule(path, kind(model.get_submodule(path), groups, *moved))
        if norm:
            model.set_submodule(norm, nn.Identity())
    return model
'''

GRAPH = """\
import torch
from torch import Tensor, nn


class ResNeXtBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(32)])
        self.bn2 = nn.ModuleList([nn.BatchNorm2d(2) for _ in range(32)])
        self.conv3 = nn.Conv2d(64, 6, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = torch.cat(
            [self.bn2[k](self.conv2[k](y[:, 2 * k : 2 * k + 2])) for k in range(32)], dim=1
        )
        y = self.bn3(self.conv3(self.relu(y))) + x
        return self.relu(y)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ResNeXtBlock()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.size(1) == 6, "wants 6 channels"
        return self.fc(self.block(x).mean((2, 3)))
"""

FUNCTIONAL = """\
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 2, 3))
        self.bias = nn.Parameter(torch.zeros(9))
        self.mask = nn.Buffer(torch.zeros(9, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight * self.mask
        return torch.cat(
            [
                F.conv1d(
                    x[:, 2 * k : 2 * k + 2], y[3 * k : 3 * k + 3], self.bias[3 * k : 3 * k + 3]
                )
                for k in range(3)
            ],
            dim=1,
        )
"""


# Model, its inputs, and the file below its docstring.
TEXTS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], str]] = {
    "model": (Small, (torch.ones(2, 6, 5, 5),), MODEL),
    "graph": (lambda: fx.symbolic_trace(Small()), (torch.ones(2, 6, 5, 5),), GRAPH),
    "functional": (zm.MaskedConv, (torch.ones(2, 6, 13),), FUNCTIONAL),
}
