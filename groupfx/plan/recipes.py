"""How a site is executed, as a line of text that can be read, edited and carried out again.

    dense | grouped | bucketed | padded | split        a form, for the site's blocks as they are
    merge 4                                            each 4 groups of a grouped convolution as one
    bins of 16: merged 0+3 1+2; accumulated 4          two bins of two blocks each, in one grouped
                                                       convolution; then block 4
    bins of 16, one gather: merged 0+3 1+2             their channels in one gather that is cut, in
                                                       place of a gather for each convolution
    absorbed 16: 0+3 1+2                               two bins, whose channels the layers around
                                                       bring in order (`groupfx.plan.absorbed`)
    absorbed 16, by product: 0+3 1+2                   the same, its outputs brought in order by a
                                                       1x1 convolution in place of a gather

A recipe knows blocks by their places and nothing of channels or times: on another site with blocks
of the same sizes it means the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ..errors import UsageError
from .absorbed import Absorbed
from .binned import WAYS, Way
from .binned.piece import require_width
from .blocks import Block, BlockStructure
from .channels import Slice
from .forms import FORMS, BinForm, ConvPlan, FormPlan, plan
from .gathers import GatherPlan, plan_gather

Bins = tuple[Block, ...]
Places = tuple[int, ...]

_MERGE = re.compile(r"merge (\d{1,9})")
_BINS = re.compile(r"bins of (\d{1,4})(, one gather)?: (.+)")
# No place has more digits; Python reads no number of thousands of them.
_BIN = re.compile(r"\d{1,9}(\+\d{1,9})*")
_MEANT = f"write {', '.join(FORMS)}, 'merge 4', or 'bins of 16: merged 0+3 1+2; accumulated 4'"


@dataclass(frozen=True)
class Binned:
    """Bins for a blocked layout of this `width`: a way, and the bins that it executes together.

    A bin is the places of its blocks. `at_once` gathers the channels of all before they are cut,
    in fewer nodes, and moves them twice.
    """

    width: int
    carried: tuple[tuple[Way, tuple[Places, ...]], ...]
    at_once: bool = False

    def __str__(self) -> str:
        parts = [
            " ".join([way, *("+".join(map(str, places)) for places in bins)])
            for way, bins in self.carried
        ]
        at_once = ", one gather" if self.at_once else ""
        return f"bins of {self.width}{at_once}: {'; '.join(parts)}"

    def plan(self, structure: BlockStructure) -> FormPlan:
        """The blocks of `structure` in these bins.

        Raises UsageError unless each block is in one bin, and each way applies to its bins.
        """
        require_width(self, self.width)
        written = sorted(place for _, bins in self.carried for bin_ in bins for place in bin_)
        if written != list(range(len(structure.blocks))):
            raise UsageError(
                f"{self}: each of the {len(structure.blocks)} blocks, from 0 on, must be in one bin"
            )
        in_channels = structure.in_channels
        convs = [conv for group in self.carried for conv in self._convs(structure, *group)]
        result = [row for conv in convs if not conv.added for row in conv.rows]
        result += structure.bias_only
        place = {row: place for place, row in enumerate(result) if row is not None}
        output_gather = plan_gather([place[row] for row in range(len(place))], len(result))
        ways = {way for way, _ in self.carried}
        form: BinForm = ways.pop() if len(ways) == 1 else "mixed"
        input_gather = plan_gather(range(in_channels), in_channels)
        if self.at_once:
            input_gather, convs = _gathered_at_once(convs, in_channels)
        return FormPlan(form, input_gather, tuple(convs), structure.bias_only, output_gather)

    def _convs(
        self, structure: BlockStructure, way: Way, bins: Sequence[Places]
    ) -> Iterator[ConvPlan]:
        blocks = [merge([structure.blocks[place] for place in places]) for places in bins]
        pieces = WAYS[way](*blocks[0].shape, self.width)
        others = [WAYS[way](*block.shape, self.width) for block in blocks[1:]]
        alike = all(
            [(p.columns, p.rows) for p in other] == [(p.columns, p.rows) for p in pieces]
            for other in others
        )
        if not pieces or not alike or (others and not all(piece.grouped for piece in pieces)):
            sizes = ", ".join(f"{inputs}->{outputs}" for inputs, outputs in _shapes(blocks))
            raise UsageError(f"{self}: {way!r} does not apply to bins of {sizes} together")
        for piece in pieces:
            reads: list[int] = []
            rows: list[int | None] = []
            columns: list[Sequence[int | None]] = []
            for block in blocks:
                part = piece.inputs
                own = block.inputs if piece.grouped else block.inputs[part.start : part.stop]
                missing = piece.columns - len(own)
                reads += [*own, *[own[-1]] * missing]
                columns.append((*own, *[None] * missing))
                rows += [*block.outputs, *[None] * (piece.rows - len(block.outputs))]
            source = plan_gather(reads, structure.in_channels)
            yield ConvPlan(
                Slice(0, len(reads)),
                tuple(rows),
                tuple(map(tuple, columns)),
                source=None if source.kind == "identity" else source,
                added=piece.added,
            )


def _gathered_at_once(
    convs: Sequence[ConvPlan], channels: int
) -> tuple[GatherPlan, list[ConvPlan]]:
    """One gather of `channels` for all convolutions, which read slices of it."""
    reads, placed = list[int](), list[ConvPlan]()
    for conv in convs:
        own = range(channels) if conv.source is None else conv.source.indices
        placed.append(replace(conv, inputs=Slice(len(reads), len(reads) + len(own)), source=None))
        reads += own
    return plan_gather(reads, channels), placed


def merge(blocks: Sequence[Block]) -> Block:
    """Several blocks as one, their channels ascending."""
    inputs = sorted({channel for block in blocks for channel in block.inputs})
    return Block(tuple(inputs), tuple(sorted(c for block in blocks for c in block.outputs)))


def recipe_plan(recipe: str, structure: BlockStructure) -> FormPlan:
    """What `recipe` makes of the blocks. Raises UsageError where it does not fit them."""
    if recipe in FORMS:
        return plan(structure, recipe)
    absorbed = Absorbed.read(recipe)
    if absorbed is not None:
        return absorbed.plan(structure)
    merged = _MERGE.fullmatch(recipe)
    if merged is not None:
        return _merged_groups(structure, int(merged[1]))
    return _binned(recipe).plan(structure)


def merge_counts(structure: BlockStructure, width: int) -> tuple[int, ...]:
    """How many groups to merge: the fewest that make both sides multiples of `width`, and twice so.

    Nothing for blocks that are no groups of neighbours, or are multiples as they are.
    """
    groups = len(structure.blocks)
    if not _are_groups(structure) or width < 1:
        return ()
    inputs, outputs = structure.blocks[0].shape
    if inputs % width == 0 and outputs % width == 0:
        return ()
    fits = [
        by
        for by in range(2, groups)
        if groups % by == 0 and not inputs * by % width and not outputs * by % width
    ]
    return tuple(fits[:2])


def _merged_groups(structure: BlockStructure, by: int) -> FormPlan:
    """Each `by` neighbouring groups as one, with zeros between them: no channel is moved."""
    groups = len(structure.blocks)
    if not _are_groups(structure) or by < 1 or groups % by:
        raise UsageError(
            f"merge {by}: it takes groups of neighbours, whose number {by} divides, and here are "
            f"{groups} blocks"
        )
    channels, rows = structure.in_channels, structure.out_channels
    width = channels // groups * by
    columns = tuple(tuple(range(at, at + width)) for at in range(0, channels, width))
    conv = ConvPlan(Slice(0, channels), tuple(range(rows)), columns)
    same = (plan_gather(range(channels), channels), plan_gather(range(rows), rows))
    return FormPlan("grouped" if len(columns) > 1 else "dense", same[0], (conv,), (), same[1])


def _are_groups(structure: BlockStructure) -> bool:
    """Whether the blocks are those of an ordinary grouped convolution."""
    if not structure.equal or structure.bias_only or structure.dead_inputs:
        return False
    sides = zip(*((block.inputs, block.outputs) for block in structure.blocks), strict=True)
    return all(
        [channel for own in side for channel in own] == list(range(total))
        for side, total in zip(sides, (structure.in_channels, structure.out_channels), strict=True)
    )


def _binned(recipe: str) -> Binned:
    found = _BINS.fullmatch(recipe)
    if found is None or int(found[1]) < 1:
        raise UsageError(f"{recipe!r} is no way to execute a site: {_MEANT}")
    carried: list[tuple[Way, tuple[Places, ...]]] = []
    for part in found[3].split("; "):
        way, *bins = part.split(" ")
        if way not in WAYS or not bins or not all(_BIN.fullmatch(b) for b in bins):
            raise UsageError(f"{recipe!r}: {part!r} is no way and its bins; {_MEANT}")
        places = tuple(tuple(map(int, bin_.split("+"))) for bin_ in bins)
        carried.append((cast(Way, way), places))
    return Binned(int(found[1]), tuple(carried), found[2] is not None)


def _shapes(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    return [block.shape for block in blocks]
