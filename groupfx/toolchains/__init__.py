"""What the toolchains that models are rewritten for accept, and what they would refuse."""

from .obstacle import Obstacle, told_together

__all__ = ["Obstacle", "told_together"]
