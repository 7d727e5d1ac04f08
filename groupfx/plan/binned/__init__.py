"""Ways to execute a bin, several blocks taken as one: a file each, from numbers to pieces."""

from collections.abc import Callable, Mapping
from typing import Literal

from . import accumulated, direct, merged, odd
from .piece import Piece

Pieces = tuple[Piece, ...]

Way = Literal["merged", "accumulated", "direct", "odd"]

WAYS: Mapping[Way, Callable[[int, int, int], Pieces]] = {
    "merged": merged.pieces,
    "accumulated": accumulated.pieces,
    "direct": direct.pieces,
    "odd": odd.pieces,
}
"""What each makes of a bin of so many inputs and outputs, given the width of the runtime's blocked
layout; nothing where it does not apply."""
