"""Pack the blocks of a convolution into bins, and execute each bin in the way that costs least.

A bin takes several blocks as one, with zeros between them: more products, fewer and larger
convolutions. The bins' convolutions gather straight from the input of the layer. For few blocks
every partition is tried, for many first-fit packings of several sizes, the best of them improved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from typing import Protocol

from .binned import WAYS, Pieces, Way
from .binned.piece import Piece
from .blocks import Block, BlockStructure
from .channels import Slice
from .forms import FormPlan
from .recipes import Binned, Bins, merge

# Bell(7) = 877 partitions, each looked at, and Bell(8) = 4,140.
_MOST_EXACT = 8
_MOST_IMPROVED = 24
_ALWAYS: Way = "merged"


class Price(Protocol):
    """What packing asks of a cost model: microseconds."""

    @property
    def block(self) -> int:
        """Width of the runtime's blocked layout, 0 where there is none."""

    def piece(self, piece: Piece, bins: int = 1) -> float:
        """One convolution of `bins` equal bins, with what is moved before and behind it."""


def pack(
    structure: BlockStructure, price: Price, ways: Collection[Way] = tuple(WAYS)
) -> FormPlan | None:
    """The plan of `pack_bins`."""
    binned = pack_bins(structure, price, ways)
    return None if binned is None else binned.plan(structure)


def pack_bins(
    structure: BlockStructure, price: Price, ways: Collection[Way] = tuple(WAYS)
) -> Binned | None:
    """The bins of `structure` that cost least, with `ways` of executing one; None without blocks.

    A bin to which none of them applies is `merged`.
    """
    if not structure.blocks:
        return None
    search = _Search(price, ways)
    carried = search.chosen(search.best(structure.blocks))
    return Binned(search.width, tuple((way, places(structure, bins)) for bins, way in carried))


def places(structure: BlockStructure, bins: Bins) -> tuple[tuple[int, ...], ...]:
    """The places of the blocks of each bin."""
    home = {row: place for place, block in enumerate(structure.blocks) for row in block.outputs}
    return tuple(tuple(sorted({home[row] for row in bin_.outputs})) for bin_ in bins)


_Carried = tuple[Bins, Way]
"""Equal bins that are executed by the same convolutions, and the way in which they are."""


class _Search:
    def __init__(self, price: Price, ways: Collection[Way]) -> None:
        self.price = price
        self.ways = {way: WAYS[way] for way in ways}
        self.width = price.block or 1
        self._alone: dict[tuple[int, int], tuple[float, Way]] = {}
        self._together: dict[tuple[int, int, int], float] = {}

    def best(self, blocks: Bins) -> Bins:
        """The partition of `blocks` that costs least."""
        if len(blocks) <= _MOST_EXACT:
            return self._exact(blocks)
        bins = min(packings(blocks, self.width), key=self.cost)
        if len(bins) <= _MOST_EXACT:
            return self._exact(bins)
        return self._improved(bins) if len(bins) <= _MOST_IMPROVED else bins

    def chosen(self, bins: Bins) -> list[_Carried]:
        """How each of the bins is executed."""
        found: list[_Carried] = []
        for shape, alike in _by_shape(bins, self._grouped_shape).items():
            if shape is not None and self._groups_pay(shape, [b.shape for b in alike]):
                found.append((alike, _ALWAYS))
                continue
            found += [((block,), self._best_alone(block.shape)[1]) for block in alike]
        return found

    def cost(self, bins: Bins) -> float:
        """Microseconds of all bins."""
        shapes = [block.shape for block in bins]
        alone = [self._best_alone(shape)[0] for shape in shapes]
        return self._cost(alone, [self._grouped_shape(shape) for shape in shapes])

    def _cost(self, alone: Sequence[float], aligned: Sequence[tuple[int, int] | None]) -> float:
        """What bins cost one by one, less what equal ones save together."""
        total = sum(alone)
        for shape in set(aligned) if len(set(aligned)) < len(aligned) else ():
            apart = [c for c, own in zip(alone, aligned, strict=True) if own == shape]
            if shape is not None and len(apart) > 1:
                total -= max(0.0, sum(apart) - self._grouped(shape, len(apart)))
        return total

    def _groups_pay(self, shape: tuple[int, int], shapes: Sequence[tuple[int, int]]) -> bool:
        if len(shapes) < 2:
            return False
        apart = sum(self._best_alone(own)[0] for own in shapes)
        return self._grouped(shape, len(shapes)) < apart

    def _best_alone(self, shape: tuple[int, int]) -> tuple[float, Way]:
        """The cheapest way for one bin of `shape`, and what it costs."""
        if shape not in self._alone:
            made: dict[Way, Pieces] = {
                way: make(*shape, self.width) for way, make in self.ways.items()
            }
            if not any(made.values()):
                made = {_ALWAYS: WAYS[_ALWAYS](*shape, self.width)}
            self._alone[shape] = min(
                (sum(map(self.price.piece, pieces)), way) for way, pieces in made.items() if pieces
            )
        return self._alone[shape]

    def _grouped_shape(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        """The sides of a bin that may share a grouped convolution with equal ones."""
        if _ALWAYS not in self.ways:
            return None
        (piece,) = WAYS[_ALWAYS](*shape, self.width)
        return piece.columns, piece.rows

    def _grouped(self, shape: tuple[int, int], bins: int) -> float:
        key = (*shape, bins)
        if key not in self._together:
            piece = Piece(Slice(0, shape[0]), *shape, grouped=True)
            self._together[key] = self.price.piece(piece, bins)
        return self._together[key]

    def _exact(self, blocks: Bins) -> Bins:
        """The best of all partitions."""
        every = range(1 << len(blocks))
        bins = [merge(_members(blocks, part)) if part else None for part in every]
        alone = [self._best_alone(bin_.shape)[0] if bin_ else 0.0 for bin_ in bins]
        aligned = [self._grouped_shape(bin_.shape) if bin_ else None for bin_ in bins]

        def cost(parts: tuple[int, ...]) -> float:
            return self._cost([alone[part] for part in parts], [aligned[part] for part in parts])

        best = min(partitions(len(blocks)), key=cost)
        return tuple(merge(_members(blocks, part)) for part in best)

    def _improved(self, bins: Bins) -> Bins:
        """Merge pairs of bins as long as that pays."""
        while len(bins) > 1:
            pairs = [
                (*(b for k, b in enumerate(bins) if k not in (i, j)), merge([bins[i], bins[j]]))
                for i in range(len(bins))
                for j in range(i)
            ]
            best = min(pairs, key=self.cost)
            if self.cost(best) >= self.cost(bins):
                break
            bins = best
        return bins


def packings(blocks: Bins, width: int) -> Iterator[Bins]:
    """First-fit packings, largest block first, into bins of several sizes."""
    order = sorted(blocks, key=lambda block: -sum(block.shape))
    inputs = sum(len(block.inputs) for block in blocks)
    outputs = sum(len(block.outputs) for block in blocks)
    yield blocks
    size = width
    while size < 2 * max(inputs, outputs):
        for room in {(size, size), (size, _scaled(size, outputs / inputs, width))}:
            yield _first_fit(order, room)
        size += max(width, size // 2 // width * width)


def _members(blocks: Bins, chosen: int) -> list[Block]:
    return [block for place, block in enumerate(blocks) if chosen >> place & 1]


@cache
def partitions(number: int) -> tuple[tuple[int, ...], ...]:
    """All partitions of so few members; a part is given as bits."""
    return tuple(_parts((1 << number) - 1))


def _parts(members: int) -> Iterator[tuple[int, ...]]:
    if not members:
        yield ()
        return
    first = members & -members
    others = members ^ first
    chosen = others
    while True:
        part = chosen | first
        for rest in _parts(members ^ part):
            yield (part, *rest)
        if not chosen:
            return
        chosen = (chosen - 1) & others


def _first_fit(order: Sequence[Block], room: tuple[int, int]) -> Bins:
    """Blocks in bins of at most `room` inputs and outputs; one that is larger is a bin itself."""
    bins: list[tuple[list[Block], int, int]] = []
    for block in order:
        inputs, outputs = block.shape
        for place, (members, used, put_out) in enumerate(bins):
            if used + inputs <= room[0] and put_out + outputs <= room[1]:
                bins[place] = ([*members, block], used + inputs, put_out + outputs)
                break
        else:
            bins.append(([block], inputs, outputs))
    return tuple(merge(members) for members, _, _ in bins)


def _scaled(size: int, factor: float, width: int) -> int:
    return max(width, round(size * factor / width) * width)


def _by_shape(
    bins: Bins, shape_of: Callable[[tuple[int, int]], tuple[int, int] | None]
) -> dict[tuple[int, int] | None, Bins]:
    found: dict[tuple[int, int] | None, Bins] = {}
    for block in sorted(bins, key=lambda block: block.outputs[0]):
        shape = shape_of(block.shape)
        found[shape] = (*found.get(shape, ()), block)
    return found
