"""In which order the channels of a convolution lie, where folding permutations has changed that.

Channel i of its input (or output) is channel `order[i]` of the original's. So it can be compared
with the original's, as every other. A torch graph says it under the key of our notes in its `meta`,
an ONNX file in the metadata of the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .channels import is_identity, is_permutation
from .site_plan import NOTE

Order = tuple[int, ...]


@dataclass(frozen=True)
class ChannelOrders:
    """The orders of a convolution's input and output; None where they are the original's."""

    input: Order | None = None
    output: Order | None = None

    def then(self, inputs: Sequence[int], outputs: Sequence[int]) -> ChannelOrders:
        """The orders after its channels, as they lie, were put in these."""
        return ChannelOrders(_after(self.input, inputs), _after(self.output, outputs))


AS_THEY_WERE = ChannelOrders()


def _after(known: Order | None, order: Sequence[int]) -> Order | None:
    total = tuple(int(channel) if known is None else known[channel] for channel in order)
    return None if is_identity(total) else total


def permutation_or_none(numbers: Sequence[int]) -> Order | None:
    """Numbers from a file as an order; what is no permutation counts for nothing."""
    return tuple(numbers) if is_permutation(numbers) else None


@dataclass(frozen=True)
class FoldNote:
    """That a graph was folded, and the orders of its convolutions, by their paths in it."""

    orders: Mapping[str, ChannelOrders] = field(default_factory=dict)

    def write(self, meta: dict[str, Any]) -> None:
        """Put it into the `meta` of a graph module, as plain data."""
        data = {path: (found.input, found.output) for path, found in self.orders.items()}
        meta[NOTE] = {"folded": data}


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
    return permutation_or_none(numbers)
