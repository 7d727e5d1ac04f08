"""No padding on the side of the inputs, of which there are a w + r, for a block width w.

y = conv(x[:, first a w inputs]) + conv'(x[:, last r inputs])

Fewer than w inputs are read as they are, without a change of the layout, and the runtime fuses the
Add into the second convolution.
"""

from ..channels import Slice
from .piece import Piece, padded


def pieces(inputs: int, outputs: int, width: int) -> tuple[Piece, ...]:
    """The whole blocks of inputs, and the rest; nothing without either."""
    rest, rows = inputs % width, padded(outputs, width)
    whole = inputs - rest
    if not whole or not rest:
        return ()
    return (
        Piece(Slice(0, whole), whole, rows),
        Piece(Slice(whole, inputs), rest, rows, added=True),
    )
