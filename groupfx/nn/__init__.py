"""Modules that a rewrite puts into a model, and layers that learn their groups.

Tracers keep each of them as one leaf.
"""

from .channel_gather import ChannelGather
from .channel_shuffle import ChannelShuffle
from .channel_transpose import ChannelTranspose
from .constant_channels import ConstantChannels
from .flgc import Flgc1d, Flgc2d, Flgc3d
from .hooked_weight import HookedWeight, hooked_names, is_weight_hook
from .masked_conv import MaskedConv1d, MaskedConv2d, MaskedConv3d
from .modes import ByMode, TrainingMode

__all__ = [
    "ByMode",
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
    "TrainingMode",
    "hooked_names",
    "is_weight_hook",
]
