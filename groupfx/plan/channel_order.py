"""In which order the channels of a convolution lie, where folding permutations has changed that.

Channel i of its input (or output) is channel `order[i]` of the original's, which may have more; it
is `PADDING` where the original has none, and then 0 or without effect. So it can be compared with
the original's, as every other. A torch graph says it under the key of our notes in its `meta`,
an ONNX file in the metadata of the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .channels import is_identity, is_permutation
from .site_plan import NOTE

Order = tuple[int, ...]
PADDING = -1
NOTE_FILE = "groupfx.json"
"""Beside the graph in a `.pt2` that we write."""
Numbers = Sequence[int] | npt.NDArray[np.intp]


@dataclass(frozen=True)
class ChannelOrders:
    """The orders of a convolution's input and output; None where they are the original's."""

    input: Order | None = None
    output: Order | None = None

    def then(self, inputs: Numbers | None, outputs: Numbers | None) -> ChannelOrders:
        """The orders after its channels, as they lie, were put in these; None for as they lie."""
        return ChannelOrders(_after(self.input, inputs), _after(self.output, outputs))


AS_THEY_WERE = ChannelOrders()


def _after(known: Order | None, order: Numbers | None) -> Order | None:
    if order is None:
        return known
    if known is None:
        return tuple(int(channel) for channel in order)
    total = tuple(PADDING if channel == PADDING else known[int(channel)] for channel in order)
    whole = len(total) == len(known) and is_permutation(known)
    return None if whole and is_identity(total) else total


def order_or_none(numbers: Sequence[int]) -> Order | None:
    """Numbers from a file as an order; what names a channel twice counts for nothing."""
    held = [number for number in numbers if number != PADDING]
    sensible = len(set(held)) == len(held) > 0 and min(held) >= 0
    return tuple(numbers) if sensible else None


@dataclass(frozen=True)
class FoldNote:
    """That a graph was folded, and the orders of its convolutions, by their paths in it."""

    orders: Mapping[str, ChannelOrders] = field(default_factory=dict)

    def write(self, meta: dict[str, Any]) -> None:
        """Put it into the `meta` of a graph module, as plain data."""
        meta[NOTE] = self.to_plain()

    def to_plain(self) -> dict[str, Any]:
        """Plain data."""
        data = {path: (found.input, found.output) for path, found in self.orders.items()}
        return {"folded": data}


def fold_note(meta: Mapping[str, Any]) -> FoldNote | None:
    """What `FoldNote.write` wrote, or None; an order that makes no sense counts for nothing."""
    found = meta.get(NOTE)
    data = found.get("folded") if isinstance(found, Mapping) else None
    if not isinstance(data, Mapping):
        return None
    return FoldNote({str(path): _of_data(sides) for path, sides in data.items()})


def _of_data(sides: Any) -> ChannelOrders:
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        return AS_THEY_WERE
    return ChannelOrders(*(_side(side) for side in sides))


def _side(numbers: Any) -> Order | None:
    if not isinstance(numbers, (tuple, list)) or any(type(n) is not int for n in numbers):
        return None
    return order_or_none(numbers)
