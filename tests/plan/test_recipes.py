"""Recipes: text from which a plan of a site is made again, also after somebody edited it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan.blocks import BlockStructure, find_blocks
from groupfx.plan.cost import OnnxRuntime, Work
from groupfx.plan.machine import Machine
from groupfx.plan.packing import pack, pack_bins
from groupfx.plan.recipes import merge_counts, recipe_plan
from tests.plan.alone import chosen
from tests.plan.block_execution import problem_with_plan
from tests.plan.test_forms import cover, masks

Ints = npt.NDArray[np.int64]


def grouped(groups: int, inputs: int, outputs: int) -> tuple[BlockStructure, Ints]:
    """The blocks and the mask of an ordinary grouped convolution with so many channels a group."""
    mask = np.kron(np.eye(groups, dtype=np.int64), np.ones((outputs, inputs), dtype=np.int64))
    return find_blocks(mask), mask


@given(masks(), st.sampled_from([1, 9]), st.sampled_from([16, 10**4]), st.sampled_from([0, 8, 16]))
def test_a_choice_is_made_again_from_its_recipe(
    mask: Ints, taps: int, positions: int, block: int
) -> None:
    structure, work = cover(mask), Work(taps, positions)
    found = chosen(structure, work, machine=Machine(block=block))
    assert recipe_plan(found.recipe, structure) == found.plan
    price = OnnxRuntime(work, Machine(block=block))
    packed = pack_bins(structure, price)
    if packed is not None:
        assert recipe_plan(str(packed), structure) == pack(structure, price)
        for binned in (packed, replace(packed, at_once=True)):
            plan = recipe_plan(str(binned), structure)
            assert problem_with_plan(plan, mask) is None
            assert plan == binned.plan(structure)


def test_a_recipe_edited_by_hand_is_carried_out() -> None:
    structure, mask = grouped(5, 3, 5)
    plan = recipe_plan("bins of 8: merged 0+3 1+2; direct 4", structure)
    sizes = [(conv.in_channels, conv.out_channels, conv.groups) for conv in plan.convs]
    assert sizes == [(16, 32, 2), (3, 8, 1)]
    assert problem_with_plan(plan, mask) is None


def test_one_gather_by_hand_brings_the_channels_of_all_bins() -> None:
    structure, mask = grouped(5, 3, 5)
    plan = recipe_plan("bins of 8, one gather: merged 0+3 1+2; direct 4", structure)
    assert plan.cuts == (16, 3)
    assert {conv.source for conv in plan.convs} == {None}
    assert len(plan.input_gather.indices) == 19
    assert problem_with_plan(plan, mask) is None


@pytest.mark.parametrize(("by", "convs"), {2: (6, 10, 3), 3: (9, 15, 2), 6: (18, 30, 1)}.items())
def test_groups_are_merged_without_moving_a_channel(by: int, convs: tuple[int, ...]) -> None:
    structure, mask = grouped(6, 3, 5)
    plan = recipe_plan(f"merge {by}", structure)
    (conv,) = plan.convs
    groups = convs[2]
    assert (conv.in_channels // groups, conv.out_channels // groups, conv.groups) == convs
    assert {plan.input_gather.kind, plan.output_gather.kind} == {"identity"}
    assert problem_with_plan(plan, mask) is None


COUNTS = {
    "4 to 16": (grouped(32, 4, 4)[0], 16, (4, 8)),
    "aligned": (grouped(8, 16, 32)[0], 16, ()),
    "24": (grouped(12, 24, 24)[0], 16, (2, 4)),
    "24 in blocks of 8": (grouped(12, 24, 24)[0], 8, ()),
    "odd": (grouped(15, 8, 8)[0], 16, ()),
    "no blocks": (grouped(32, 4, 4)[0], 0, ()),
}


@pytest.mark.parametrize(("structure", "width", "counts"), COUNTS.values(), ids=COUNTS.keys())
def test_the_fewest_groups_that_fit_are_merged(
    structure: BlockStructure, width: int, counts: tuple[int, ...]
) -> None:
    assert merge_counts(structure, width) == counts


WRONG = {
    "unknown": ("fastest", "is no way to execute a site"),
    "no bins": ("bins of 16: merged", "'merged' is no way and its bins"),
    "unknown way": ("bins of 16: folded 0", "'folded 0' is no way and its bins"),
    "width 0": ("bins of 0: merged 0", "is no way to execute a site"),
    "left out": ("bins of 8: merged 0+1 2", "each of the 4 blocks, from 0 on, must be in one bin"),
    "twice": ("bins of 8: merged 0+1 2 3 3", "must be in one bin"),
    "not there": ("bins of 8: merged 0+1 2 3+4", "must be in one bin"),
    "does not apply": ("bins of 2: direct 0+1; merged 2 3", "'direct' does not apply to bins of"),
    "unlike": ("bins of 2: merged 0 1+2 3", "'merged' does not apply to bins of"),
    "not grouped": ("bins of 8: direct 0 1 2 3", "'direct' does not apply"),
    "merge": ("merge 3", "whose number 3 divides"),
    "merge 0": ("merge 0", "whose number 0 divides"),
}


@pytest.mark.parametrize(("recipe", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_recipe_without_sense_is_refused(recipe: str, said: str) -> None:
    structure, _ = grouped(4, 3, 5)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        recipe_plan(recipe, structure)


def test_only_groups_of_neighbours_are_merged() -> None:
    structure = find_blocks(np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]))
    with pytest.raises(UsageError, match="groups of neighbours"):
        recipe_plan("merge 2", structure)
