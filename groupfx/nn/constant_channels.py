"""Channels that hold one value each: what a filter puts out that reads nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConstantChannels(nn.Module):
    """`[batch, channels, *size]` filled with the bias, like another tensor of that batch and size.

    A filter without inputs puts out its bias everywhere. This does the same without a convolution.

    Args:
        bias: one value a channel, `[channels]`: a parameter, or a tensor of zeros that is kept as a
            buffer outside the state_dict, and stays zeros whatever is loaded or emptied.
    """

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        if isinstance(bias, nn.Parameter):
            self.bias = bias
        else:
            self.register_buffer("bias", bias, persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """The channels for the batch and the size of `like`, `[batch, any, *size]`."""
        value = self.bias[(None, slice(None), *(None,) * (like.dim() - 2))]
        # Autocast casts the convolutions beside this, and a concatenation takes the widest dtype.
        return value.to(like.dtype).expand(like.shape[0], self.bias.shape[0], *like.shape[2:])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantChannels:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not isinstance(self.bias, nn.Parameter):
            # `to_empty` leaves garbage, and no checkpoint would bring the zeros back.
            self.bias = torch.zeros_like(self.bias)
        return self

    def extra_repr(self) -> str:
        return f"channels={self.bias.shape[0]}"
