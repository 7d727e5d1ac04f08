"""A number of inputs that is no multiple of 4 leaves the blocked layout: im2col and one product.

y = conv(x[:, inputs + 1 of padding])

That is faster on small maps, where the blocked kernel reads its weights anew for each row.
"""

from ..channels import Slice
from .piece import Piece

_MULTIPLE = 4


def pieces(inputs: int, outputs: int, width: int) -> tuple[Piece, ...]:
    """One, exact; nothing with fewer inputs than a block, which are read as they are anyway."""
    if inputs < width:
        return ()
    columns = inputs if inputs % _MULTIPLE else inputs + 1
    return (Piece(Slice(0, inputs), columns, outputs),)
