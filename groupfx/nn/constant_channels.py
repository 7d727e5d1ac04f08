"""Channels that hold one value each: what a filter puts out that reads nothing."""

from __future__ import annotations

from torch import Tensor, nn


class ConstantChannels(nn.Module):
    """`[batch, channels, *size]` filled with the bias, like another tensor of that batch and size.

    A filter without inputs puts out its bias everywhere. This does the same without a convolution.

    Args:
        bias: one value a channel, `[channels]`: a parameter, or a tensor of zeros that is kept as a
            buffer outside the state_dict.
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
        return value.expand(like.shape[0], self.bias.shape[0], *like.shape[2:])

    def extra_repr(self) -> str:
        return f"channels={self.bias.shape[0]}"
