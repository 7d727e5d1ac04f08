"""Both sides padded to multiples of the block width.

y = conv(x[:, inputs + padding])[: outputs]

Bins that are equal then are one grouped convolution in the blocked layout.
"""

from ..channels import Slice
from .piece import Piece, padded


def pieces(inputs: int, outputs: int, width: int) -> tuple[Piece, ...]:
    """One, for whole blocks of inputs and outputs."""
    columns, rows = padded(inputs, width), padded(outputs, width)
    return (Piece(Slice(0, inputs), columns, rows, grouped=True),)
