"""Modules and parameters that a rewrite puts in place of others."""

import torch
from torch import Tensor, nn

from ..convs.spec import marked_like
from ..nn import ChannelGather, ChannelShuffle, ChannelTranspose
from ..plan.gathers import GatherPlan


def parameter_like(tensor: Tensor, value: Tensor) -> nn.Parameter:
    """A copy of `value` as a parameter with the memory format and `requires_grad` of `tensor`."""
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    plain = wanted is None or tensor.is_contiguous()
    if wanted is not None and not plain and tensor.is_contiguous(memory_format=wanted):
        value = value.contiguous(memory_format=wanted)
    made = nn.Parameter(value.detach().clone(), requires_grad=tensor.requires_grad)
    return marked_like(tensor, made)


def gather_module(gather: GatherPlan) -> nn.Module:
    """The leaf that does what `gather` plans."""
    if gather.kind == "shuffle":
        assert gather.groups is not None
        return ChannelShuffle(gather.groups)
    if gather.kind == "transpose":
        return ChannelTranspose(gather.shape, gather.axes)
    return ChannelGather(gather.indices)
