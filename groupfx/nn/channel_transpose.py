"""A channel permutation that is a transpose of the channels seen as several axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import UsageError


class ChannelTranspose(nn.Module):
    """Read channels laid out as `shape` with their axes in the order `axes`.

    Input and output: `[batch, channels, ...]` with `channels` the product of `shape`. A channel
    shuffle is the case of two axes; the groups of a DGConv layer give more. Raises UsageError if
    `axes` is no order of the axes of `shape`.

    Args:
        shape: how the channels that come in are laid out.
        axes: their new order.
    """

    def __init__(self, shape: Sequence[int], axes: Sequence[int]) -> None:
        super().__init__()
        if sorted(axes) != list(range(len(shape))):
            raise UsageError(f"ChannelTranspose: {tuple(axes)} is no order of the axes of {shape}")
        self.shape = tuple(shape)
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        """Permute dimension 1 of `x`."""
        if isinstance(x.shape[1], int) and x.shape[1] != math.prod(self.shape):
            raise UsageError(
                f"ChannelTranspose of {self.shape} takes {math.prod(self.shape)} channels, "
                f"and its input {list(x.shape)} has {x.shape[1]}"
            )
        last = len(self.shape)
        laid_out: Tensor = x.unflatten(1, self.shape)
        order = (0, *(1 + axis for axis in self.axes), *range(last + 1, laid_out.dim()))
        return laid_out.permute(order).flatten(1, last)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, axes={self.axes}"
