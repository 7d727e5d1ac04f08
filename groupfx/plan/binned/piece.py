"""One convolution of a bin, in numbers."""

from dataclasses import dataclass

from ...errors import UsageError
from ..channels import Slice

WIDEST = 64
"""Four times the widest blocks of a CPU: what a recipe pads to more is a slip of the pen."""


@dataclass(frozen=True)
class Piece:
    """A convolution that reads `inputs`, places among the inputs of a bin, for all of its outputs.

    It has `columns` inputs and `rows` outputs, those of padding included. If `added`, its result is
    added to that of the piece before. Equal `grouped` pieces can be one grouped convolution.
    """

    inputs: Slice
    columns: int
    rows: int
    added: bool = False
    grouped: bool = False


def require_width(recipe: object, width: int) -> None:
    """Raise UsageError where a recipe would pad to blocks that no CPU has."""
    if not 1 <= width <= WIDEST:
        raise UsageError(f"{recipe}: blocks have 1 to {WIDEST} channels, 8 or 16 on most CPUs")


def padded(channels: int, width: int) -> int:
    """The next multiple of `width`."""
    return -(-channels // width) * width
