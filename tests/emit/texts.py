"""Three small models, and the very text that they are written as."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import zoo_models as zm
from tests.models import zoo_traps as traps


class Small(nn.Module):
    """A bottleneck block, an assertion and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = zm.ResNeXtBlock(6, 64, 32)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.size(1) == 6, "wants 6 channels")
        return self.fc(self.block(x).mean((2, 3)))


BLOCK = '''\
import torch
from torch import Tensor, nn


class Parts(nn.Module):
    """Holds modules under their names."""

    def __init__(self, /, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Parts(
            conv1=nn.Conv2d(6, 64, 1, bias=False),
            bn1=nn.BatchNorm2d(64),
            conv2=nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(32)),
            bn2=nn.ModuleList(nn.BatchNorm2d(2) for _ in range(32)),
            conv3=nn.Conv2d(64, 6, 1, bias=False),
            bn3=nn.BatchNorm2d(6),
            relu=nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.size(1) == 6, "wants 6 channels"
        y = self.block.relu(self.block.bn1(self.block.conv1(x)))
        # block.conv2: Conv2d 64->64, kernel 3x3, groups 32
        y = torch.cat(
            [
                bn(conv(y[:, 2 * i : 2 * i + 2]))
                for i, (conv, bn) in enumerate(zip(self.block.conv2, self.block.bn2))
            ],
            dim=1,
        )
        x = self.block.bn3(self.block.conv3(self.block.relu(y))) + x
        return self.fc(self.block.relu(x).mean((2, 3)))
'''

FUNCTIONAL = """\
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 2, 3))
        self.bias = nn.Parameter(torch.zeros(9))
        self.register_buffer("mask", torch.zeros(9, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight * self.mask
        # weight: Conv1d 6->9, kernel 3, groups 3
        return torch.cat(
            [
                F.conv1d(
                    x[:, 2 * i : 2 * i + 2], y[3 * i : 3 * i + 3], self.bias[3 * i : 3 * i + 3]
                )
                for i in range(3)
            ],
            dim=1,
        )
"""

SWAPPED = '''\
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def keep_fields(new: nn.Module, conv: nn.Module) -> None:
    """The model's own code may ask a convolution for its fields: `groups`, `stride`, ..."""
    for name, value in vars(conv).items():
        if not name.startswith("_") and not isinstance(value, Tensor):
            setattr(new, name, value)


class SplitConv(nn.ModuleList):
    """Convolutions side by side in place of a grouped one, each with its rows of the weights."""

    def __init__(self, conv: nn.Module, branches: Iterable[nn.Module]) -> None:
        super().__init__(branches)
        keep_fields(self, conv)
        for name, tensor in conv.named_parameters():
            for branch, rows in zip(self, tensor.detach().chunk(len(self))):
                setattr(branch, name, nn.Parameter(rows.clone(), tensor.requires_grad))
        self.train(conv.training)

    @property
    def weight(self) -> Tensor:
        return torch.cat([branch.weight for branch in self])

    @property
    def bias(self) -> Tensor | None:
        parts = [branch.bias for branch in self]
        return None if parts[0] is None else torch.cat(parts)


class SplitConv1d(SplitConv):
    """Conv1d 6->9, kernel 3, groups 3."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__(conv, (nn.Conv1d(2, 3, 3) for _ in range(3)))

    def forward(self, input):
        return torch.cat([conv(input[:, 2 * i : 2 * i + 2]) for i, conv in enumerate(self)], dim=1)


SITES = {
    "conv": SplitConv1d,
}


def rewrite(model: nn.Module) -> nn.Module:
    """Swap the convolutions of `model` itself for split ones, which take its weights over."""
    for path, split in SITES.items():
        model.set_submodule(path, split(model.get_submodule(path)))
    return model
'''


# Model, its inputs, and the file below its docstring.
TEXTS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], str]] = {
    "block": (Small, (torch.ones(2, 6, 5, 5),), BLOCK),
    "functional": (zm.MaskedConv, (torch.ones(2, 6, 13),), FUNCTIONAL),
    "swapped": (traps.ReadsFields, (torch.ones(2, 6, 13),), SWAPPED),
}
