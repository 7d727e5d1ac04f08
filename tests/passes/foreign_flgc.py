"""A learned-group layer as other people's code has it, written from the description of FLGC.

It is no class of groupfx, it uses a custom autograd function, and it ignores `padding_mode`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Binarize(torch.autograd.Function):
    """1 where a row equals its maximum, else 0; the gradient passes where it is 1."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor) -> Tensor:
        chosen = probabilities == probabilities.max(dim=1, keepdim=True)[0]
        ctx.save_for_backward(chosen)
        return chosen.to(probabilities.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (chosen,) = ctx.saved_tensors
        return gradient * chosen


class ForeignFlgc(nn.Module):
    """A 2-d layer; further arguments are those of the convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, group_num: int, **conv: Any
    ) -> None:
        super().__init__()
        self.group_num = group_num
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, **conv)
        self.in_channels_in_group_assignment_map = nn.Parameter(torch.randn(in_channels, group_num))
        self.out_channels_in_group_assignment_map = nn.Parameter(
            torch.randn(out_channels, group_num)
        )

    def probabilities(self, scores: Tensor) -> Tensor:
        return F.softmax(scores, dim=1)

    def mask(self) -> Tensor:
        inputs = Binarize.apply(self.probabilities(self.in_channels_in_group_assignment_map))
        outputs = Binarize.apply(self.probabilities(self.out_channels_in_group_assignment_map))
        mask: Tensor = torch.mm(outputs, torch.t(inputs))
        return mask[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * self.mask().to(self.conv.weight.dtype)
        conv = self.conv
        return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


class WithTemperature(ForeignFlgc):
    """With a temperature, which decides ties, and a counter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.tensor(7))

    def probabilities(self, scores: Tensor) -> Tensor:
        return F.softmax(scores / self.temperature, dim=1)
