"""When a frozen form is called slower than dense: the measured cases, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from groupfx.errors import UsageError
from groupfx.plan.blocks import BlockStructure, find_blocks
from groupfx.plan.cost import likely_slower
from groupfx.plan.forms import Form, plan

Layer = tuple[int, int, int, int]


def structure_of(inputs: int, outputs: int, groups: int, *, equal: bool) -> BlockStructure:
    """Random groups, all of one size or each channel drawn on its own."""
    draw = np.random.default_rng(0)
    if equal:
        out_groups = draw.permutation(outputs) % groups
        in_groups = draw.permutation(inputs) % groups
    else:
        out_groups = draw.integers(groups, size=outputs)
        in_groups = draw.integers(groups, size=inputs)
    return find_blocks(np.equal.outer(out_groups, in_groups), max_blocks=outputs, min_saving=0)


# Inputs, outputs, kernel, size of the map; groups; form; whether it took longer than dense.
MEASURED: dict[str, tuple[Layer, int, Form, bool]] = {
    "projection-of-mobilenet": ((384, 64, 1, 8), 8, "bucketed", True),
    "projection-14x14": ((384, 64, 1, 14), 4, "bucketed", True),
    "projection-padded": ((384, 64, 1, 14), 4, "padded", True),
    "projection-equal": ((384, 64, 1, 14), 4, "grouped", True),
    "pointwise-64": ((64, 64, 1, 28), 8, "bucketed", True),
    "pointwise-256-in-8": ((256, 256, 1, 14), 8, "bucketed", False),
    "pointwise-256-in-2": ((256, 256, 1, 14), 2, "bucketed", True),
    "pointwise-256-equal": ((256, 256, 1, 14), 4, "grouped", False),
    "pointwise-1024": ((1024, 1024, 1, 14), 2, "bucketed", False),
    "pointwise-1024-padded": ((1024, 1024, 1, 14), 4, "padded", False),
    "linear-1024": ((1024, 1024, 1, 1), 4, "bucketed", False),
    "3x3-narrow": ((16, 16, 3, 32), 2, "bucketed", True),
    "3x3-narrow-equal": ((16, 16, 3, 32), 4, "grouped", True),
    "3x3-small-map": ((64, 64, 3, 7), 4, "bucketed", True),
    "3x3-64-padded": ((64, 64, 3, 28), 4, "padded", True),
    "3x3-64-in-8": ((64, 64, 3, 28), 8, "bucketed", False),
    "3x3-256": ((256, 256, 3, 14), 2, "bucketed", False),
    "3x3-256-equal": ((256, 256, 3, 14), 8, "grouped", False),
    "3x3-512": ((512, 512, 3, 4), 8, "split", False),
    "dense": ((64, 64, 1, 28), 8, "dense", False),
}


@pytest.mark.parametrize(
    ("layer", "groups", "form", "slower"), MEASURED.values(), ids=MEASURED.keys()
)
def test_the_rule_agrees_with_what_was_measured(
    layer: Layer, groups: int, form: Form, slower: bool
) -> None:
    inputs, outputs, kernel, size = layer
    structure = structure_of(inputs, outputs, groups, equal=form == "grouped")
    reason = likely_slower(structure, plan(structure, form), taps=kernel**2, positions=size**2)
    assert (reason is not None) == slower


def test_the_reason_names_the_numbers_and_the_remedy() -> None:
    structure = find_blocks(np.kron(np.eye(2, dtype=int), np.ones((2, 3), dtype=int))[:3])
    assert structure.shapes == ((3, 2), (3, 1))
    reason = likely_slower(structure, plan(structure, "bucketed"), taps=1, positions=100)
    assert reason is not None
    # Dense 6 * 3, exact 6 + 3; 6 channels sliced and 3 concatenated; 3 calls: slice, conv, concat.
    for words in ("saves 900 MACs", "3 more calls", "900 values", "1.37 times", "form=dense"):
        assert words in reason


def test_an_equal_form_in_order_costs_no_moves_and_is_not_slower() -> None:
    structure = find_blocks(np.kron(np.eye(4, dtype=int), np.ones((4, 4), dtype=int)))
    assert likely_slower(structure, plan(structure), taps=1, positions=100) is None


def test_a_stride_makes_the_gather_of_the_input_dearer() -> None:
    structure = structure_of(256, 256, 8, equal=False)
    form = plan(structure, "bucketed")
    assert likely_slower(structure, form, taps=1, positions=196) is None
    reason = likely_slower(structure, form, taps=1, positions=196, input_positions=784)
    assert reason is not None


def test_without_convs_nothing_is_slower() -> None:
    structure = find_blocks(np.zeros((3, 5), dtype=int))
    assert likely_slower(structure, plan(structure), taps=1, positions=1) is None


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, -4)])
def test_numbers_that_are_not_positive_are_refused(numbers: tuple[int, int, int]) -> None:
    structure = structure_of(6, 4, 2, equal=True)
    taps, positions, read = numbers
    with pytest.raises(UsageError, match="each must be at least 1"):
        likely_slower(
            structure, plan(structure), taps=taps, positions=positions, input_positions=read
        )
