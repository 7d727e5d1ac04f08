"""Convolutions some of whose weights are 0 for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _MaskedConv(nn.modules.conv._ConvNd):
    """A convolution whose weight is 0 where `mask` is, and stays so in training.

    The mask, a buffer `[rows, columns]` over the first two axes of the weight, is structure and no
    part of the state_dict.

    A bool mask says where the weight holds zeros, so where no gradient is asked for this is the
    plain convolution. Where one is, the weight is multiplied by the mask, which gives the same
    value and no gradient to the zeros. A mask of integers multiplies the weight in every forward:
    folding a 3 into it would round.
    """

    mask: Tensor

    @classmethod
    def of(cls, conv: nn.Module, mask: Tensor) -> _MaskedConv:
        """A masked convolution with the fields and the tensors of `conv`."""
        made = cls.__new__(cls)
        made.__dict__.update(conv.__dict__)
        made._parameters = dict(conv._parameters)
        made._buffers = dict(conv._buffers)
        made._non_persistent_buffers_set = set(conv._non_persistent_buffers_set)
        made.register_buffer("mask", mask, persistent=False)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """As the convolution without a mask."""
        weight = self.weight
        if torch.is_grad_enabled() or self.mask.dtype != torch.bool:
            weight = weight * self.mask[(..., *(None,) * (weight.dim() - 2))]
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _MaskedConv:
        mask = self.mask
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `to_empty` leaves garbage, and no checkpoint would bring the mask back.
        if not mask.is_meta and not self.mask.is_meta:
            self.mask = mask.to(self.mask.device)
        return self

    def extra_repr(self) -> str:
        held = int(self.mask.count_nonzero()) / self.mask.numel()
        return f"{super().extra_repr()}, {held:.0%} of the weight"  # type: ignore[no-untyped-call]


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """A `Conv1d` some of whose weights are 0 for good; made with `MaskedConv1d.of`."""


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """A `Conv2d` some of whose weights are 0 for good; made with `MaskedConv2d.of`."""


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """A `Conv3d` some of whose weights are 0 for good; made with `MaskedConv3d.of`."""


MASKED: dict[type[nn.Module], Any] = {
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
