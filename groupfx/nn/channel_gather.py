"""A fixed choice of channels, in any order, as a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index as as_int

import torch
from torch import Tensor, nn

from ..errors import UsageError

_SHOWN = 4


class ChannelGather(nn.Module):
    """`x[:, indices]` as one `index_select` (one Gather in ONNX).

    Input `[batch, channels, ...]`, output `[batch, len(indices), ...]`. Indices may repeat channels
    or leave some out. They are structure, like `groups` of a convolution: `channels` holds them
    as a tuple, and the buffer made of it moves with `.to(device)` but is no part of the state_dict,
    so that checkpoints of the original model keep loading.

    Raises UsageError for an empty choice or a negative index, and in `forward` for an input with
    too few channels.

    Args:
        indices: for each output channel, the input channel that it reads.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[int] | Tensor) -> None:
        super().__init__()
        chosen = indices.tolist() if isinstance(indices, Tensor) else indices
        self.channels = tuple(as_int(channel) for channel in chosen)
        if not self.channels:
            raise UsageError("ChannelGather: no indices given; at least one channel must be read")
        if min(self.channels) < 0:
            raise UsageError(
                f"ChannelGather: index {min(self.channels)} is negative; "
                "count channels from 0 at the front"
            )
        self._last = max(self.channels)
        self.register_buffer("indices", torch.tensor(self.channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gather dimension 1 of `x`."""
        available = x.shape[1]
        # A tracer hands in a symbolic size, which cannot be tested; index_select checks that one.
        if isinstance(available, int) and available <= self._last:
            raise UsageError(
                f"ChannelGather reads channel {self._last}, and its input {list(x.shape)} has only "
                f"the channels 0 ... {available - 1} in dimension 1"
            )
        return x.index_select(1, self.indices)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ChannelGather:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `to_empty` leaves garbage, and no checkpoint would bring the indices back.
        self.indices = torch.tensor(self.channels, device=self.indices.device)
        return self

    def extra_repr(self) -> str:
        if len(self.channels) <= 2 * _SHOWN:
            return ", ".join(map(str, self.channels))
        first = ", ".join(map(str, self.channels[:_SHOWN]))
        return f"{first}, ..., {self.channels[-1]}; {len(self.channels)} channels"
