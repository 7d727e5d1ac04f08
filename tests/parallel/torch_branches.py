"""Models of convolutions side by side, each on a part of one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Parts = Callable[[Tensor], Sequence[Tensor]]
X = torch.randn(2, 12, 9, 7)


class SideBySide(nn.Module):
    """Three convolutions, each on a part, with something behind each."""

    def __init__(self, parts: Parts, convs: Sequence[nn.Module], behind: Any = None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.behind = nn.ModuleList(behind or [])
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        values = [conv(part) for conv, part in zip(self.convs, self.parts(x), strict=True)]
        if len(self.behind):
            values = [self.behind[k](value) for k, value in enumerate(values)]
        return torch.cat(values, 1)


def three(**options: Any) -> list[nn.Module]:
    return [nn.Conv2d(4, 6, 3, **options) for _ in range(3)]
