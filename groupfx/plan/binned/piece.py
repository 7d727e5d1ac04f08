"""One convolution of a bin, in numbers."""

from dataclasses import dataclass

from ..channels import Slice


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


def padded(channels: int, width: int) -> int:
    """The next multiple of `width`."""
    return -(-channels // width) * width
