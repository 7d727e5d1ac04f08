"""Blocks of a mask, against a search through the channel graph and tables written by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan import blocks
from groupfx.plan.blocks import Block, BlockStructure, find_blocks, spread_mask
from tests.step_counts import steps_of

Ints = npt.NDArray[np.int64]
Members = tuple[tuple[int, ...], tuple[int, ...]]

sizes = st.integers(min_value=1, max_value=11)


@st.composite
def masks(draw: st.DrawFn) -> Ints:
    """Masks of groups that overlap or leave channels out, whole or pruned at random."""
    rows, columns, groups = draw(sizes), draw(sizes), draw(st.integers(1, 5))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    members = draw(st.sampled_from([0.1, 0.3, 0.6]))
    outputs = chance.random((rows, groups)) < members
    inputs = chance.random((groups, columns)) < members
    mask: Ints = outputs.astype(np.int64) @ inputs.astype(np.int64)
    return mask * (chance.random(mask.shape) < draw(st.sampled_from([1.0, 0.9, 0.5])))


def group_mask(out_groups: list[int], in_groups: list[int]) -> Ints:
    """1 where filter and input have the same group; a negative group meets none."""
    outputs, inputs = np.array(out_groups), np.array(in_groups)
    return ((outputs[:, None] == inputs) & (outputs[:, None] >= 0)).astype(np.int64)


def tied_mask(out_groups: list[set[int]], in_groups: list[set[int]]) -> Ints:
    """How many groups filter and input share."""
    return np.array([[len(outs & ins) for ins in in_groups] for outs in out_groups])


def components_by_search(mask: Ints) -> set[Members]:
    """Connected components of the channel graph that have an edge, by walking along the edges."""
    found = set()
    for start in range(len(mask)):
        rows, columns = {start}, set()
        while True:
            read = {c for c in range(mask.shape[1]) if any(mask[r, c] for r in rows)}
            wider = rows | {r for r in range(len(mask)) if any(mask[r, c] for c in read)}
            if (read, wider) == (columns, rows):
                break
            rows, columns = wider, read
        if columns:
            found.add((tuple(sorted(columns)), tuple(sorted(rows))))
    return found


def classes_by_comparison(mask: Ints) -> set[Members]:
    """Rows of equal support with that support, by comparing each with each."""
    found = set()
    for row in range(len(mask)):
        alike = [r for r in range(len(mask)) if ((mask[r] != 0) == (mask[row] != 0)).all()]
        if mask[row].any():
            found.add((tuple(np.flatnonzero(mask[row]).tolist()), tuple(alike)))
    return found


def members(structure: BlockStructure) -> set[Members]:
    return {(block.inputs, block.outputs) for block in structure.blocks}


@given(masks())
def test_without_limits_the_blocks_are_the_cover(mask: Ints) -> None:
    found = find_blocks(mask, max_blocks=len(mask), min_saving=0)
    assert members(found) == classes_by_comparison(mask)
    assert found.exact_macs == np.count_nonzero(mask)


@given(masks())
def test_with_one_block_a_component_the_blocks_are_the_partition(mask: Ints) -> None:
    found = find_blocks(mask, max_blocks=1)
    assert members(found) == components_by_search(mask)
    assert found.partition


@given(masks(), st.integers(1, 11) | st.none(), st.sampled_from([0.0, 0.1, 0.4, 0.9]))
def test_each_component_is_covered_by_the_stated_rule(
    mask: Ints, max_blocks: int | None, min_saving: float
) -> None:
    found = members(find_blocks(mask, max_blocks=max_blocks, min_saving=min_saving))
    for inputs, outputs in components_by_search(mask):
        part = {block for block in found if set(block[1]) <= set(outputs)}
        cover = {block for block in classes_by_comparison(mask) if set(block[1]) <= set(outputs)}
        limit = len(outputs) // 2 if max_blocks is None else max_blocks
        macs = len(inputs) * len(outputs)
        saved = macs - np.count_nonzero(mask[list(outputs)])
        take_cover = len(cover) <= limit and saved > 0 and saved >= min_saving * macs
        assert part == (cover if take_cover else {(inputs, outputs)})
        found -= part
    assert not found


@given(masks(), st.integers(1, 11) | st.none())
def test_every_entry_is_in_a_block_and_the_rest_is_named(
    mask: Ints, max_blocks: int | None
) -> None:
    found = find_blocks(mask, max_blocks=max_blocks)
    kept = np.zeros_like(mask)
    for block in found.blocks:
        kept[np.ix_(block.outputs, block.inputs)] += 1
    assert kept.max(initial=0) <= 1
    assert (kept >= (mask != 0)).all()
    assert kept.sum() == found.exact_macs <= found.padded_macs
    assert found.exact_macs <= found.dense_macs == mask.size
    assert found.bias_only == tuple(r for r in range(len(mask)) if not mask[r].any())
    assert found.dead_inputs == tuple(c for c in range(mask.shape[1]) if not mask[:, c].any())


@given(masks())
def test_the_order_is_by_smallest_output_and_ascending_within(mask: Ints) -> None:
    found = find_blocks(mask, max_blocks=len(mask), min_saving=0)
    firsts = [block.outputs[0] for block in found.blocks]
    assert firsts == sorted(firsts)
    for block in found.blocks:
        assert list(block.outputs) == sorted(block.outputs)
        assert list(block.inputs) == sorted(block.inputs)


@given(masks(), st.sampled_from([np.bool_, np.int8, np.uint8, np.int32]))
def test_only_zero_or_not_matters(mask: Ints, dtype: type) -> None:
    expected = find_blocks(mask)
    assert find_blocks((mask != 0).astype(dtype)) == expected
    assert find_blocks(-3 * mask) == expected


TABLE: dict[str, tuple[Ints, set[Members], bool]] = {
    "groups": (
        group_mask([0, 1, 0, 1, 1], [1, 0, 1, 0, 1, 1, 0]),
        {((1, 3, 6), (0, 2)), ((0, 2, 4, 5), (1, 3, 4))},
        True,
    ),
    "one-group": (group_mask([0, 0], [0, 0, 0]), {((0, 1, 2), (0, 1))}, True),
    "all-groups-empty": (group_mask([0, 0], [1, 1, 2]), set(), True),
    "group-without-filters": (group_mask([0, 0], [0, 1, 0]), {((0, 2), (0, 1))}, True),
    "group-without-inputs": (group_mask([0, 1, 0], [0, 0]), {((0, 1), (0, 2))}, True),
    "depthwise": (
        group_mask([2, 0, 1], [0, 1, 2]),
        {((2,), (0,)), ((0,), (1,)), ((1,), (2,))},
        True,
    ),
    "more-groups-than-channels": (group_mask([10, 4, 10], [4, 7]), {((0,), (1,))}, True),
    "one-channel": (group_mask([0], [0]), {((0,), (0,))}, True),
    "tied-filter": (
        tied_mask([{0}, {0}, {0, 1}, {0, 1}, {1}, {1}], [{0}, {0}, {1}, {1}, {1}]),
        {((0, 1), (0, 1)), ((0, 1, 2, 3, 4), (2, 3)), ((2, 3, 4), (4, 5))},
        False,
    ),
    "tied-input": (
        tied_mask([{0}, {0}, {1}, {1}, {1}], [{0}, {0, 1}, {1}]),
        {((0, 1), (0, 1)), ((1, 2), (2, 3, 4))},
        False,
    ),
    "entry-two": (
        tied_mask([{0, 1}, {0, 1}, {1}, {1}], [{0, 1}, {0}]),
        {((0, 1), (0, 1)), ((0,), (2, 3))},
        False,
    ),
    "condensenet": (
        np.array([[1, 1, 0, 0, 1], [0, 1, 1, 0, 1]] * 3),
        {((0, 1, 4), (0, 2, 4)), ((1, 2, 4), (1, 3, 5))},
        False,
    ),
    "tie-of-one-filter-stays-whole": (
        tied_mask([{0}, {0, 1}, {1}], [{0}, {1}]),
        {((0, 1), (0, 1, 2))},
        True,
    ),
}


@pytest.mark.parametrize(("mask", "expected", "partition"), TABLE.values(), ids=TABLE.keys())
def test_blocks_of_a_mask_written_by_hand(
    mask: Ints, expected: set[Members], partition: bool
) -> None:
    found = find_blocks(mask)
    assert members(found) == expected
    assert found.partition == partition


def test_the_entry_two_of_a_tie_was_really_there() -> None:
    assert TABLE["entry-two"][0].max() == 2


def test_a_stray_zero_leaves_its_block_whole() -> None:
    mask = group_mask([0] * 8 + [1] * 8, [0] * 8 + [1] * 8)
    mask[3, 5] = 0
    assert find_blocks(mask).shapes == ((8, 8), (8, 8))
    assert find_blocks(mask, min_saving=0).shapes == ((8, 7), (7, 1), (8, 8))


def test_a_layer_pruned_at_random_stays_one_block() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (64, 64))
    assert len(classes_by_comparison(mask)) == 64
    assert find_blocks(mask).shapes == ((64, 64),)
    assert len(find_blocks(mask, max_blocks=64).blocks) == 64


def test_a_cover_that_saves_the_least_share_is_taken() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]])
    assert np.count_nonzero(mask) == 0.75 * mask.size
    assert len(find_blocks(mask, min_saving=0.25).blocks) == 2
    assert len(find_blocks(mask, min_saving=0.26).blocks) == 1


def test_blocks_of_a_cover_are_in_order_among_those_of_other_components() -> None:
    mask = np.zeros((6, 4), dtype=int)
    mask[:2, :2], mask[2:4, 3], mask[4:, 1:3] = 1, 1, 1
    found = find_blocks(mask)
    assert [block.outputs for block in found.blocks] == [(0, 1), (2, 3), (4, 5)]
    assert not found.partition


def test_max_blocks_limits_a_component_and_not_the_layer() -> None:
    shared = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1]])
    mask = np.kron(np.eye(5, dtype=int), shared)
    assert len(find_blocks(mask, max_blocks=2).blocks) == 10
    assert len(find_blocks(mask, max_blocks=1).blocks) == 5


def test_all_blocks_of_one_shape_are_equal() -> None:
    assert find_blocks(group_mask([0, 1, 2, 0, 1, 2], [2, 1, 0])).equal
    assert not find_blocks(group_mask([0, 1, 2, 0, 1, 1], [2, 1, 0])).equal
    assert not find_blocks(np.zeros((2, 3), dtype=int)).equal


def test_macs_of_unequal_blocks() -> None:
    found = find_blocks(group_mask([0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, -1]))
    assert found.shapes == ((4, 2), (2, 3))
    assert (found.exact_macs, found.padded_macs, found.dense_macs) == (14, 24, 35)


@given(masks(), st.integers(1, 4))
def test_a_mask_in_a_grouped_conv_is_spread_over_its_groups(mask: Ints, groups: int) -> None:
    rows, columns = mask.shape
    grouped = np.concatenate([mask * (group + 1) for group in range(groups)])
    spread = spread_mask(grouped, groups)
    assert spread.shape == (rows * groups, columns * groups)
    for group in range(groups):
        here = spread[group * rows : (group + 1) * rows]
        assert (here[:, group * columns : (group + 1) * columns] == mask * (group + 1)).all()
        assert np.count_nonzero(here) == np.count_nonzero(mask)


BAD: dict[str, tuple[Callable[[], object], list[str]]] = {
    "one-dimension": (lambda: find_blocks(np.ones(3, dtype=int)), ["[3]"]),
    "three-dimensions": (lambda: find_blocks(np.ones((2, 3, 1), dtype=int)), ["[2, 3, 1]"]),
    "no-rows": (lambda: find_blocks(np.ones((0, 3), dtype=int)), ["[0, 3]", "at least 1"]),
    "floats": (lambda: find_blocks(np.ones((2, 3))), ["float64", "weight != 0"]),
    "max-blocks": (lambda: find_blocks(np.ones((2, 3), int), max_blocks=0), ["max_blocks=0"]),
    "min-saving": (lambda: find_blocks(np.ones((2, 3), int), min_saving=1), ["min_saving=1"]),
    "spread-uneven": (lambda: spread_mask(np.ones((5, 3), int), 2), ["5 channels", "2 equal"]),
    "spread-flat": (lambda: spread_mask(np.ones(5, int), 5), ["[5]"]),
    "empty-inputs": (lambda: Block((), (1,)), ["0 inputs", "bias_only"]),
    "empty-outputs": (lambda: Block((1, 2), ()), ["0 outputs", "dead_inputs"]),
    "output-in-two": (
        lambda: BlockStructure(2, 2, (Block((0,), (0, 1)), Block((1,), (1,)))),
        ["output", "0 ... 1", "3 are given"],
    ),
    "output-in-none": (lambda: BlockStructure(1, 3, (Block((0,), (0, 1)),)), ["0 ... 2", "2 are"]),
    "output-in-block-and-bias-only": (
        lambda: BlockStructure(1, 2, (Block((0,), (0, 1)),), bias_only=(1,)),
        ["output", "3 are given"],
    ),
    "input-out-of-range": (
        lambda: BlockStructure(1, 1, (Block((1,), (0,)),)),
        ["input", "0 ... 0"],
    ),
    "dead-input-is-read": (
        lambda: BlockStructure(2, 1, (Block((0, 1), (0,)),), dead_inputs=(1,)),
        ["input", "3 are given"],
    ),
    "input-read-twice": (lambda: BlockStructure(1, 1, (Block((0, 0), (0,)),)), ["twice"]),
    "no-channels": (lambda: BlockStructure(0, 0, ()), ["0 output channels"]),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD.keys())
def test_what_makes_no_sense_is_refused(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("share", [8, 64])
def test_a_channel_costs_no_more_in_a_large_layer(share: int) -> None:
    def steps(channels: int) -> int:
        """What it takes to find that share of the channels as groups."""
        draw = np.random.default_rng(0)
        outputs, inputs = (draw.permutation(channels) % (channels // share) for _ in range(2))
        mask = outputs[:, None] == inputs
        assert len(find_blocks(mask).blocks) == channels // share
        return steps_of(lambda: find_blocks(mask))

    assert steps(4096) <= 4 * steps(1024)


@pytest.mark.parametrize("steps", [2, 8])
def test_entries_are_followed_by_whole_rows_as_by_a_search(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    draw = np.random.default_rng(0)
    drawn = [draw.random(tuple(draw.integers(1, 24, 2))) < share for share in (0.05, 0.2) * 25]
    searched = [find_blocks(mask, min_saving=0) for mask in drawn]
    monkeypatch.setattr(blocks, "_MANY_ENTRIES", 0)
    monkeypatch.setattr(blocks, "_MOST_STEPS", steps)
    assert [find_blocks(mask, min_saving=0) for mask in drawn] == searched


def test_zeros_anywhere_are_looked_through_in_no_time() -> None:
    mask = np.random.default_rng(0).random((4096, 4096), np.float32) < 0.5

    def seconds() -> float:
        start = time.process_time()
        assert len(find_blocks(mask).blocks) == 1
        return time.process_time() - start

    assert min(seconds(), seconds()) < 0.2
