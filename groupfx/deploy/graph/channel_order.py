"""In which order the channels of a convolution lie, where folding permutations has changed that.

A convolution of a folded file says so in its metadata: channel i of its input (or output) is
channel `order[i]` of the original's. So it can be compared with the original's, as every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .metadata import PREFIX

_INPUT, _OUTPUT = f"{PREFIX}input-channels", f"{PREFIX}output-channels"

Order = tuple[int, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ChannelOrders:
    """The orders of a convolution's input and output; None where they are the original's."""

    input: Order | None = None
    output: Order | None = None


AS_THEY_WERE = ChannelOrders()


def note_orders(conv: ir.Node, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Write down that the channels of `conv` were put in these orders, after what it says."""
    before = orders_of(conv)
    for key, known, order in ((_INPUT, before.input, inputs), (_OUTPUT, before.output, outputs)):
        total = [int(channel) if known is None else known[channel] for channel in order]
        if total == list(range(len(total))):
            conv.metadata_props.pop(key, None)
        else:
            conv.metadata_props[key] = ",".join(map(str, total))


def orders_of(conv: ir.Node) -> ChannelOrders:
    """What `note_orders` wrote; what is no permutation counts for nothing."""
    return ChannelOrders(*(_read(conv.metadata_props.get(key)) for key in (_INPUT, _OUTPUT)))


def _read(text: str | None) -> Order | None:
    parts = (text or "").split(",")
    if not all(part.isdecimal() for part in parts):
        return None
    order = tuple(map(int, parts))
    return order if sorted(order) == list(range(len(order))) else None


def arranged(array: Array, have: Order | None, want: Order | None) -> Array:
    """`[batch, channels, ...]` whose channels are in the order `have`, in the order `want`."""
    orders = [order for order in (have, want) if order is not None]
    if have == want or any(len(order) != array.shape[1] for order in orders):
        return array
    if have is not None:
        array = array[:, np.argsort(have)]
    return array if want is None else array[:, list(want)]
