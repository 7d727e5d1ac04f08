"""One grouped convolution whose channels the layers around it bring in order, padding included.

    y = conv(x[:, inputs + padding])[:, places]     becomes     y = conv(x'), x' made as it is read

A bin takes several blocks as one, with zeros between them, and all bins are padded to one size, a
multiple of the block width: in an inverted bottleneck the expansion, the depthwise convolution and
their norms make the channels in the order of the bins, with filters of zeros where padding is, so
that nothing is gathered in front. Groups that an author wrote, of an odd number of 8 channels, get
one group of zeros more in the same way, and can be merged in pairs.

    absorbed 16: 0+3 1+2                two bins of two blocks each
    absorbed 16, by product: 0+3 1+2    a 1x1 convolution brings the outputs in order, no gather

Where the layers around do not take the order, the same convolution gathers for itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .binned.piece import padded, require_width
from .blocks import BlockStructure
from .channel_order import PADDING, Order
from .channels import Slice
from .forms import ConvPlan, FormPlan
from .gathers import GatherPlan, plan_gather

Places = tuple[int, ...]

_BIN = r"\d{1,9}(?:\+\d{1,9})*"
_RECIPE = re.compile(rf"absorbed (\d{{1,4}})(, by product)?: ({_BIN}(?: {_BIN})*)")


@dataclass(frozen=True)
class Absorbed:
    """Bins of blocks, named by their places, all padded to multiples of `width`.

    `by_product` is how the outputs get their order, where they must have it; see `FormPlan`.
    """

    width: int
    bins: tuple[Places, ...]
    by_product: bool = False

    def __str__(self) -> str:
        how = ", by product" if self.by_product else ""
        return f"absorbed {self.width}{how}: {' '.join('+'.join(map(str, b)) for b in self.bins)}"

    @classmethod
    def read(cls, recipe: str) -> Absorbed | None:
        """What `str` wrote; None for another kind of recipe."""
        found = _RECIPE.fullmatch(recipe)
        if found is None:
            return None
        bins = tuple(tuple(map(int, b.split("+"))) for b in found[3].split(" "))
        return cls(max(int(found[1]), 1), bins, found[2] is not None)

    def layout(self, structure: BlockStructure) -> Layout:
        """Where each channel lies. Raises UsageError unless each block is in one bin."""
        require_width(self, self.width)
        if sorted(p for bin_ in self.bins for p in bin_) != list(range(len(structure.blocks))):
            raise UsageError(
                f"{self}: each of the {len(structure.blocks)} blocks, from 0 on, must be in one bin"
            )
        reads = [[c for p in b for c in structure.blocks[p].inputs] for b in self.bins]
        writes = [[c for p in b for c in structure.blocks[p].outputs] for b in self.bins]
        if not structure.partition:
            raise UsageError(f"{self}: some inputs are in several blocks")
        # What nothing reads, or reads nothing, takes the place of padding.
        for channels, spare in ((reads, structure.dead_inputs), (writes, structure.bias_only)):
            for channel in spare:
                min(channels, key=len).append(channel)
        inputs, outputs = (_filled(side, self.width) for side in (reads, writes))
        return Layout(inputs, outputs, len(self.bins), self.by_product)

    def plan(self, structure: BlockStructure) -> FormPlan:
        """The same convolution where nothing around it is changed."""
        layout = self.layout(structure)
        size = len(layout.inputs) // layout.groups
        reads, columns = list[int](), list[tuple[int | None, ...]]()
        for start in range(0, len(layout.inputs), size):
            own = layout.inputs[start : start + size]
            last = next(c for c in reversed(own) if c != PADDING)
            reads += [last if c == PADDING else c for c in own]
            columns.append(_places(own))
        conv = ConvPlan(Slice(0, len(reads)), _places(layout.outputs), tuple(columns))
        gather = plan_gather(reads, structure.in_channels)
        return layout.form(gather, conv, None)


@dataclass(frozen=True)
class Layout:
    """The channels of both sides, group by group, `PADDING` among them; see `Absorbed`."""

    inputs: Order
    outputs: Order
    groups: int
    by_product: bool = False

    def form(self, gather: GatherPlan, conv: ConvPlan, outputs: Order | None) -> FormPlan:
        """The plan of `conv`, whose result is brought into the order `outputs`."""
        behind = self.gathered(outputs)
        picks = self.by_product and behind.kind != "identity"
        return FormPlan("absorbed", gather, (conv,), (), behind, picks)

    def in_order(self, outputs: Order | None) -> FormPlan:
        """The plan of a dense convolution that reads `inputs` as they are here.

        Its outputs are in the order `outputs`, None for as they were.
        """
        rows: Sequence[int | None] = range(len(self.outputs))
        if outputs != self.outputs:
            have = range(sum(c != PADDING for c in self.outputs)) if outputs is None else outputs
            place = {channel: at for at, channel in enumerate(have)}
            rows = [None if c == PADDING else place[c] for c in self.outputs]
        size, number = len(self.inputs) // self.groups, range(len(self.inputs))
        columns = tuple(tuple(number[at : at + size]) for at in number[::size])
        conv = ConvPlan(Slice(0, len(number)), tuple(rows), columns)
        gather = plan_gather(tuple(number), len(number))
        return self.form(gather, conv, outputs)

    def gathered(self, outputs: Order | None) -> GatherPlan:
        """What brings the result into the order `outputs`."""
        if outputs == self.outputs:
            return plan_gather(range(len(self.outputs)), len(self.outputs))
        place = {channel: at for at, channel in enumerate(self.outputs)}
        wanted = range(sum(c != PADDING for c in self.outputs)) if outputs is None else outputs
        # Whatever stands for padding is read by columns of zeros.
        return plan_gather([place.get(channel, 0) for channel in wanted], len(self.outputs))


def _filled(channels: Sequence[Sequence[int]], width: int) -> Order:
    """Each list padded to a multiple of `width`, as long as the longest of them."""
    size = padded(max(map(len, channels)), width)
    return tuple(c for own in channels for c in (*own, *[PADDING] * (size - len(own))))


def _places(channels: Sequence[int]) -> tuple[int | None, ...]:
    return tuple(None if channel == PADDING else channel for channel in channels)
