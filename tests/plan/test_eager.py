"""What the model of eager PyTorch says of measured convolutions, and what is chosen by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.plan.channels import Slice, group_slices
from groupfx.plan.choice import choose_eager, expectation
from groupfx.plan.cost import Work
from groupfx.plan.eager import Eager
from groupfx.plan.forms import ConvPlan, plan
from tests.plan.block_execution import problem_with_plan
from tests.plan.test_cost import structure_of
from tests.plan.test_forms import Ints, cover, masks

# Inputs, outputs, groups, kernel, side of the map; microseconds at batch 1 and at batch 16.
MEASURED: dict[str, tuple[tuple[int, int, int, int, int], float, float]] = {
    "64": ((64, 64, 1, 3, 32), 435, 6154),
    "64 in 8": ((64, 64, 8, 3, 32), 151, 2145),
    "13 in 8": ((104, 104, 8, 3, 32), 597, 15952),
    "128 in 8": ((128, 128, 8, 3, 16), 99, 981),
    "33": ((33, 37, 1, 3, 16), 89, 940),
    "256": ((256, 256, 1, 3, 8), 839, 5565),
    "256 in 8": ((256, 256, 8, 3, 8), 103, 874),
    "41 in 8": ((328, 344, 8, 3, 8), 201, 2940),
    "512": ((512, 512, 1, 3, 4), 1307, 6598),
    "512 in 8": ((512, 512, 8, 3, 4), 202, 831),
    "64 at 4": ((64, 64, 1, 3, 4), 30, 139),
    "pointwise": ((384, 64, 1, 1, 8), 40, 322),
    "pointwise in 8": ((384, 64, 8, 1, 8), 32, 196),
    "pointwise, narrow": ((48, 8, 1, 1, 8), 6, 56),
    "pointwise, wide": ((960, 320, 1, 1, 4), 132, 829),
}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("layer", "one", "sixteen"), MEASURED.values(), ids=MEASURED)
def test_convolutions_take_what_was_measured(
    layer: tuple[int, int, int, int, int], one: float, sixteen: float, batch: int
) -> None:
    inputs, outputs, groups, kernel, side = layer
    columns = tuple(tuple(range(s.start, s.stop)) for s in group_slices(inputs, groups))
    conv = ConvPlan(Slice(0, inputs), tuple(range(outputs)), columns)
    found = Eager(Work(kernel**2, side**2, batch=batch)).conv(conv)
    measured = one if batch == 1 else sixteen
    assert measured / 1.8 < found < measured * 1.8


@given(
    masks(),
    st.sampled_from([1, 9]),
    st.sampled_from([1, 16, 10**4]),
    st.sampled_from([1, 16]),
)
def test_what_is_chosen_is_exact_and_never_called_slower_than_dense(
    mask: Ints, taps: int, positions: int, batch: int
) -> None:
    structure, work = cover(mask), Work(taps, positions, batch=batch)
    found = choose_eager(structure, work)
    assert problem_with_plan(found.plan, mask) is None
    dense = Eager(work).site(plan(structure, "dense"), structure.in_channels)
    assert found.untouched == dense
    assert found.time == Eager(work).site(found.plan, structure.in_channels) <= dense


def test_the_form_is_that_of_the_work_and_not_of_the_macs() -> None:
    wide, narrow = (structure_of(*sides, 8, equal=False) for sides in ((256, 256), (384, 64)))
    chosen = [choose_eager(wide, Work(9, 64)), choose_eager(narrow, Work(1, 64))]
    assert [choice.plan.form == "dense" for choice in chosen] == [False, True]
    said = expectation(chosen)
    assert said.startswith("expected 0.")
    assert said.endswith("x the time of masked dense; 1 site dense, 1 in 8 bins")
    assert expectation(chosen[1:]) == "expected 1.00 x the time of masked dense; 1 site dense"
