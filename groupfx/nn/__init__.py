"""Modules that a rewrite puts into a model, and layers that learn their groups.

Tracers keep each of them as one leaf.
"""

from .channel_gather import ChannelGather
from .channel_shuffle import ChannelShuffle
from .channel_transpose import ChannelTranspose
from .constant_channels import ConstantChannels
from .flgc import Flgc1d, Flgc2d, Flgc3d
from .hooked_weight import HookedWeight, is_weight_hook
from .masked_conv import MaskedConv1d, MaskedConv2d, MaskedConv3d

__all__ = [
    "ChannelGather",
    "ChannelShuffle",
    "ChannelTranspose",
    "ConstantChannels",
    "Flgc1d",
    "Flgc2d",
    "Flgc3d",
    "HookedWeight",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "is_weight_hook",
]
