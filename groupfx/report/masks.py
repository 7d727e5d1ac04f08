"""Where the blocks of a mask lie in a picture of it, as it is and in the order of its blocks.

Every picture of a mask is made of this, whatever it is drawn with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..plan.blocks import Block, BlockStructure

BLOCK_COLOURS = ("4e79a7", "f28e2b", "59a14f", "e15759", "b07aa1", "9c755f", "76b7b2", "d4a017")
"""One after the other, and again from the first, as hexadecimal RGB."""

BACKGROUND, UNREAD = -1, -2
"""Places of a mask without an entry: of channels that meet in no block, and of dead ones."""

Labels = npt.NDArray[np.int32]
"""The number of the block that each place of a mask belongs to, `[filters, input channels]`."""


@dataclass(frozen=True)
class PlacedBlock:
    """Block number `number`, and where it begins with the channels in the order of the blocks."""

    number: int
    block: Block
    row: int
    column: int

    @property
    def colour(self) -> str:
        """As hexadecimal RGB."""
        return BLOCK_COLOURS[self.number % len(BLOCK_COLOURS)]


def placed_blocks(structure: BlockStructure) -> Iterator[PlacedBlock]:
    """The blocks from the upper left to the lower right, each where the one before it ends."""
    row = column = 0
    for number, block in enumerate(structure.blocks):
        yield PlacedBlock(number, block, row, column)
        inputs, outputs = block.shape
        row, column = row + outputs, column + inputs


def input_order(structure: BlockStructure) -> tuple[int, ...]:
    """The input channels in the order of the blocks, the dead ones last.

    A channel that several blocks read stands in each of them, as a gather with repeats has it.
    """
    read = (channel for block in structure.blocks for channel in block.inputs)
    return (*read, *structure.dead_inputs)


def output_order(structure: BlockStructure) -> tuple[int, ...]:
    """The filters in the order of the blocks, those that read nothing last."""
    written = (channel for block in structure.blocks for channel in block.outputs)
    return (*written, *structure.bias_only)


def labels_before(structure: BlockStructure) -> Labels:
    """The mask as it was learned."""
    labels = np.full((structure.out_channels, structure.in_channels), BACKGROUND, np.int32)
    labels[:, list(structure.dead_inputs)] = UNREAD
    labels[list(structure.bias_only)] = UNREAD
    for number, block in enumerate(structure.blocks):
        labels[np.ix_(block.outputs, block.inputs)] = number
    return labels


def labels_after(structure: BlockStructure) -> Labels:
    """The mask with its channels in the order of the blocks."""
    columns = len(input_order(structure)) - len(structure.dead_inputs)
    shape = (structure.out_channels, columns + len(structure.dead_inputs))
    labels = np.full(shape, BACKGROUND, np.int32)
    labels[:, columns:] = UNREAD
    labels[structure.out_channels - len(structure.bias_only) :] = UNREAD
    for placed in placed_blocks(structure):
        inputs, outputs = placed.block.shape
        rows = slice(placed.row, placed.row + outputs)
        labels[rows, placed.column : placed.column + inputs] = placed.number
    return labels
