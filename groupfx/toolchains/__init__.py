"""What the toolchains that models are rewritten for accept, and what they would refuse."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UsageError
from .obstacle import WHOLE_MODEL, Obstacle, told_together

if TYPE_CHECKING:
    from torch import nn

    from ..running.inputs import ExampleInputs

Grammar = Callable[["nn.Module", "ExampleInputs"], tuple[Obstacle, ...]]

__all__ = ["WHOLE_MODEL", "Grammar", "Obstacle", "grammar", "told_together"]


def grammar(name: str) -> Grammar:
    """What judges every operation of a model for a toolchain; `UsageError` if there is none."""
    if name != "plinio":
        raise UsageError(f"there is no grammar {name!r}: there is one of plinio")
    from .plinio import obstacles

    return obstacles
