"""Fewer inputs than the block width: the blocked kernel reads them as they are, without padding.

y = conv(x[:, inputs])[: outputs]
"""

from ..channels import Slice
from .piece import Piece, padded


def pieces(inputs: int, outputs: int, width: int) -> tuple[Piece, ...]:
    """One, as wide as the bin; nothing where it has a block of inputs."""
    if inputs >= width:
        return ()
    return (Piece(Slice(0, inputs), inputs, padded(outputs, width)),)
