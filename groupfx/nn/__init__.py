"""Modules that a rewrite puts into a model, and layers that learn their groups.

Tracers keep each of them as one leaf.
"""

from .channel_gather import ChannelGather
from .channel_shuffle import ChannelShuffle
from .flgc import Flgc1d, Flgc2d, Flgc3d
from .hooked_weight import HookedWeight, is_weight_hook

__all__ = [
    "ChannelGather",
    "ChannelShuffle",
    "Flgc1d",
    "Flgc2d",
    "Flgc3d",
    "HookedWeight",
    "is_weight_hook",
]
