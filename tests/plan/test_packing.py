"""Blocks packed into bins: each packing computes the masked conv, and the cheapest one is found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.plan.binned import WAYS
from groupfx.plan.binned.piece import Piece
from groupfx.plan.blocks import Block, BlockStructure, find_blocks
from groupfx.plan.channels import Slice
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.forms import FormPlan, plan
from groupfx.plan.packing import pack
from tests.plan.block_execution import problem_with_plan
from tests.plan.test_forms import cover, equal_masks, group_mask, masks

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counted:
    """A price with round numbers: so much a convolution, a product, and a channel read."""

    block: int = 4
    call: float = 30
    product: float = 1
    channel: float = 2

    def piece(self, piece: Piece, bins: int = 1) -> float:
        products = piece.columns * piece.rows * bins
        return self.call + self.product * products + self.channel * piece.columns * bins


def shapes_of(found: FormPlan) -> list[tuple[int, int, int]]:
    """Inputs and outputs a group, and groups, of each convolution."""
    return [
        (conv.in_channels // conv.groups, conv.out_channels // conv.groups, conv.groups)
        for conv in found.convs
    ]


def in_a_row(*shapes: tuple[int, int]) -> BlockStructure:
    """Blocks of these shapes, their channels one after another."""
    blocks, inputs, outputs = [], 0, 0
    for width, height in shapes:
        reads, writes = range(inputs, inputs + width), range(outputs, outputs + height)
        blocks.append(Block(tuple(reads), tuple(writes)))
        inputs, outputs = inputs + width, outputs + height
    return BlockStructure(inputs, outputs, tuple(blocks))


@given(
    masks() | equal_masks(),
    st.sampled_from([(way,) for way in WAYS] + [tuple(WAYS)]),
    st.sampled_from([0, 2, 4, 16]),
    st.sampled_from([0, 30, 1000]),
)
def test_every_packing_computes_the_masked_conv(
    mask: Ints, ways: tuple[str, ...], block: int, call: float
) -> None:
    structure = cover(mask)
    found = pack(structure, Counted(block, call), ways)
    if not structure.blocks:
        assert found is None
        return
    assert found is not None
    assert problem_with_plan(found, mask) is None
    if found.form != "mixed":
        assert found.form in (*ways, "merged")


@given(masks())
def test_pads_follow_the_way(mask: Ints) -> None:
    structure = cover(mask)
    for way in WAYS:
        found = pack(structure, Counted(4), (way,))
        for conv in () if found is None or found.form != way else found.convs:
            width = conv.in_channels // conv.groups
            if way == "merged":
                assert width % 4 == (conv.out_channels // conv.groups) % 4 == 0
            elif way == "odd":
                assert width > 4
                assert width % 4
            elif way == "direct" or conv.added:
                assert width < 4
                assert not conv.padded or None in conv.rows


def partitions(members: list[int]) -> Iterator[list[list[int]]]:
    """All partitions, by putting the last member everywhere."""
    if not members:
        yield []
        return
    *others, last = members
    for parts in partitions(others):
        yield [*parts, [last]]
        for place in range(len(parts)):
            yield [*parts[:place], [*parts[place], last], *parts[place + 1 :]]


def aligned(shape: Sequence[int], block: int) -> tuple[int, int]:
    width, height = (-(-side // block) * block for side in shape)
    return width, height


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from([0.0, 30.0, 200.0]),
)
def test_no_partition_is_cheaper_than_the_one_that_is_found(
    shapes: list[tuple[int, int]], call: float
) -> None:
    price = Counted(4, call)
    found = pack(in_a_row(*shapes), price, ("merged",))
    assert found is not None
    taken = [
        price.piece(Piece(Slice(0, 1), width, height), groups)
        for width, height, groups in shapes_of(found)
    ]
    cheapest = float("inf")
    for parts in partitions(list(range(len(shapes)))):
        bins = [aligned(np.sum([shapes[k] for k in part], axis=0), 4) for part in parts]
        cost = sum(
            price.piece(Piece(Slice(0, 1), *shape), bins.count(shape)) for shape in set(bins)
        )
        cheapest = min(cheapest, cost)
    assert sum(taken) == cheapest


PACKED = {
    "equal-bins-are-grouped": ([(3, 4), (4, 3), (4, 4)], ("merged",), 30, [(4, 4, 3)]),
    "small-ones-share-a-bin": ([(1, 2), (3, 2), (8, 8)], ("merged",), 30, [(4, 4, 1), (8, 8, 1)]),
    "calls-are-dear": ([(4, 4), (8, 8)], ("merged",), 1000, [(12, 12, 1)]),
    "accumulated": (
        [(5, 4), (20, 8)],
        ("merged", "accumulated"),
        1,
        [(4, 4, 1), (1, 4, 1), (20, 8, 1)],
    ),
    "direct": ([(3, 4), (20, 8)], tuple(WAYS), 1, [(3, 4, 1), (20, 8, 1)]),
    "odd": ([(8, 3)], ("odd",), 1, [(9, 3, 1)]),
    "odd-already": ([(7, 3)], ("odd",), 1, [(7, 3, 1)]),
}


@pytest.mark.parametrize(("shapes", "ways", "call", "expected"), PACKED.values(), ids=PACKED)
def test_bins_written_by_hand(
    shapes: list[tuple[int, int]],
    ways: tuple[str, ...],
    call: float,
    expected: list[tuple[int, int, int]],
) -> None:
    found = pack(in_a_row(*shapes), Counted(4, call), ways)
    assert found is not None
    assert shapes_of(found) == expected


def test_a_bin_reads_straight_from_the_input() -> None:
    mask = group_mask([0, 1, 0, 1, 0], [1, 0, 0, 1, 1])
    found = pack(cover(mask), Counted(2, 0))
    assert found is not None
    assert found.input_gather.kind == "identity"
    assert all(conv.source is not None for conv in found.convs)


@dataclass
class Asked:
    """A price that counts how often it is asked."""

    price: OnnxRuntime
    times: int = 0

    @property
    def block(self) -> int:
        return self.price.block

    def piece(self, piece: Piece, bins: int = 1) -> float:
        self.times += 1
        return self.price.piece(piece, bins)


@pytest.mark.parametrize("groups", [8, 9, 64, 256])
def test_many_blocks_are_packed_with_few_looks_at_prices(groups: int) -> None:
    draw = np.random.default_rng(groups)
    mask = group_mask(draw.integers(groups, size=1024), draw.integers(groups, size=1024))
    structure = find_blocks(mask, max_blocks=1024, min_saving=0)
    price = Asked(OnnxRuntime(Work(9, 196)))
    found = pack(structure, price)
    # About 50 ms.
    assert price.times < 4000
    assert found is not None
    assert problem_with_plan(found, mask) is None
    split = plan(structure, "split")
    assert price.price.site(found, 1024) < price.price.site(split, 1024)
