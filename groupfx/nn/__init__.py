"""Modules that a rewrite puts into a model. Tracers keep each of them as one leaf."""

from .channel_gather import ChannelGather
from .channel_shuffle import ChannelShuffle
from .hooked_weight import HookedWeight, is_weight_hook

__all__ = ["ChannelGather", "ChannelShuffle", "HookedWeight", "is_weight_hook"]
