"""The channel shuffle of ShuffleNet as a module."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import UsageError
from ..plan.channels import channels_per_group


class ChannelShuffle(nn.Module):
    """Read channels laid out as (groups, n) in the order (n, groups).

    Input and output: `[batch, channels, ...]`, any number of spatial dimensions; the batch may be
    dynamic. `forward` raises UsageError if `groups` does not divide the channels.
    Source: Zhang et al., ShuffleNet (2017), section 3.1.

    Args:
        groups: number of groups of the layout that comes in, at least 1.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        if groups < 1:
            raise UsageError(f"ChannelShuffle(groups={groups}): groups must be at least 1")
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Shuffle dimension 1 of `x`."""
        channels = x.shape[1]
        # A tracer hands in a symbolic size, which cannot be tested; unflatten checks that one.
        if isinstance(channels, int):
            channels_per_group(channels, self.groups)
        grouped: Tensor = x.unflatten(1, (self.groups, -1))
        return grouped.transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
