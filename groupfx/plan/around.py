"""What it costs that the layers around a site bring its channels in an order of its own.

They make channels of padding too: a convolution has as many filters more, a depthwise one, and who
reads them as many inputs more. On ONNX Runtime that is nothing where whole blocks of channels are
computed anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from .absorbed import Absorbed, Layout, Places
from .binned.piece import padded
from .blocks import BlockStructure
from .channel_order import Order
from .cost import OnnxRuntime, Work
from .packing import packings, partitions, places

_MOST_EXACT = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Neighbour:
    """A convolution beside a site: it has the site's channels as `inputs`, as `outputs`, or both,
    as a depthwise one does; a number stands for others, None for the site's.
    """

    inputs: int | None
    outputs: int | None
    work: Work

    def cost(self, price: OnnxRuntime, channels: int) -> float:
        """Microseconds with so many channels of the site."""
        there = price.work
        work = replace(self.work, batch=there.batch, model_values=there.model_values)
        own = replace(price, work=work)
        if self.inputs is None and self.outputs is None:
            return own.conv(channels, channels, channels)
        inputs, outputs = (channels if n is None else n for n in (self.inputs, self.outputs))
        return own.conv(inputs, outputs, 1)


@dataclass(frozen=True)
class Around:
    """The convolutions that take part in what a site reads, and in what it gives.

    `outputs` is None where the site's outputs must be as they were.
    """

    inputs: tuple[Neighbour, ...]
    outputs: tuple[Neighbour, ...] | None = None

    def order(self, layout: Layout) -> Order | None:
        """In which order the outputs of a site may stay; None for as they were."""
        return None if self.outputs is None else layout.outputs

    def cost(self, price: OnnxRuntime, structure: BlockStructure, absorbed: Absorbed) -> float:
        """Microseconds of the site, and of what the layers around it have to do more."""
        layout = absorbed.layout(structure)
        own = price.site(layout.in_order(self.order(layout)), len(layout.inputs))
        return own + self.beside(price, structure, layout)

    def beside(self, price: OnnxRuntime, structure: BlockStructure, layout: Layout) -> float:
        """Microseconds that the layers around take more than without padding."""
        sides = [(self.inputs, len(layout.inputs), structure.in_channels)]
        sides += [(self.outputs or (), len(layout.outputs), structure.out_channels)]
        return sum(
            near.cost(price, now) - near.cost(price, before)
            for beside, now, before in sides
            for near in beside
        )


def absorbed_bins(structure: BlockStructure, width: int) -> tuple[Absorbed, ...]:
    """For each number of bins those with the fewest products, and those with the fewest inputs."""
    number = len(structure.blocks)
    if width < 1 or not structure.partition or number < 2:
        return ()
    if number <= _MOST_EXACT and not structure.equal:
        return tuple(Absorbed(width, bins) for bins in _of_all(structure, width))
    found = _Fewest[Places](width)
    for bins in _candidates(structure, width):
        sides = ([sum(structure.shapes[p][side] for p in b) for b in bins] for side in (0, 1))
        found.see(bins, *map(max, sides))
    return tuple(Absorbed(width, bins) for bins in found.kept)


class _Fewest(Generic[T]):
    """Of all bins that are seen, those that need least, for each number of bins."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._found: dict[tuple[int, int], tuple[int, tuple[T, ...]]] = {}

    def see(self, bins: tuple[T, ...], inputs: int, outputs: int) -> None:
        """Bins of at most so many inputs and outputs."""
        columns = padded(inputs, self._width)
        for kind, size in enumerate((columns * padded(outputs, self._width), columns)):
            key = (len(bins), kind)
            if len(bins) > 1 and (key not in self._found or size < self._found[key][0]):
                self._found[key] = size, bins

    @property
    def kept(self) -> tuple[tuple[T, ...], ...]:
        """Each once."""
        return tuple(dict.fromkeys(bins for _, bins in self._found.values()))


def _of_all(structure: BlockStructure, width: int) -> Iterator[tuple[Places, ...]]:
    """The best of all partitions of few blocks."""
    number = len(structure.blocks)
    members = [tuple(p for p in range(number) if part >> p & 1) for part in range(1 << number)]
    inputs, outputs = (
        [sum(structure.shapes[p][side] for p in places) for places in members] for side in (0, 1)
    )
    found = _Fewest[int](width)
    for parts in partitions(number):
        found.see(parts, max(inputs[part] for part in parts), max(outputs[part] for part in parts))
    for parts in found.kept:
        yield tuple(members[part] for part in parts)


def _candidates(structure: BlockStructure, width: int) -> Iterator[tuple[Places, ...]]:
    number = len(structure.blocks)
    if structure.equal:
        # Neighbours, so that as few channels as can be change their place.
        for by in range(1, number):
            yield tuple(tuple(range(number)[at : at + by]) for at in range(0, number, by))
    else:
        yield from (places(structure, bins) for bins in packings(structure.blocks, width))
