"""Plans of block structures: every form computes the masked conv, exactly, in integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan.blocks import Block, BlockStructure, find_blocks
from groupfx.plan.channels import Slice
from groupfx.plan.forms import FORMS, ConvPlan, Form, FormPlan, choose_form, plan
from groupfx.plan.gathers import GatherPlan, as_transpose, plan_gather
from tests.plan.block_execution import problem_with_plan
from tests.step_counts import steps_of

Ints = npt.NDArray[np.int64]


@st.composite
def masks(draw: st.DrawFn) -> Ints:
    """Masks of learned groups: disjoint or tied, some groups empty, of any two sizes up to 17."""
    rows, columns = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    groups, ties = draw(st.integers(1, 7)), draw(st.booleans())
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outputs = np.eye(groups, dtype=np.int64)[chance.integers(groups, size=rows)]
    inputs = np.eye(groups, dtype=np.int64)[chance.integers(groups, size=columns)]
    if ties:
        outputs |= chance.random(outputs.shape) < 0.15
        inputs |= chance.random(inputs.shape) < 0.15
    mask: Ints = outputs @ inputs.T
    return mask


@st.composite
def equal_masks(draw: st.DrawFn) -> Ints:
    """Masks of groups of one shape, in order, interleaved, or at random; either may be reversed."""
    groups = draw(st.integers(1, 6))
    sides = []
    for _ in range(2):
        size = draw(st.integers(1, 5))
        channels = np.arange(groups * size)
        kind = draw(st.sampled_from(["in-order", "interleaved", "random"]))
        owner = channels // size if kind == "in-order" else channels % groups
        if kind == "random":
            owner = np.random.default_rng(draw(st.integers(0, 99))).permutation(owner)
        sides.append(owner[::-1] if draw(st.booleans()) else owner)
    return group_mask(sides[0], sides[1])


def group_mask(out_groups: npt.ArrayLike, in_groups: npt.ArrayLike) -> Ints:
    return np.equal.outer(np.asarray(out_groups), np.asarray(in_groups)).astype(np.int64)


def cover(mask: Ints) -> BlockStructure:
    return find_blocks(mask, max_blocks=len(mask), min_saving=0)


def forms_of(structure: BlockStructure) -> list[Form]:
    return [form for form in FORMS if form != "grouped" or structure.equal]


def kinds(found: FormPlan) -> tuple[str, str]:
    return found.input_gather.kind, found.output_gather.kind


@given(masks() | equal_masks(), st.booleans())
def test_every_form_computes_the_masked_conv(mask: Ints, partition: bool) -> None:
    structure = find_blocks(mask, max_blocks=1) if partition else cover(mask)
    for form in forms_of(structure):
        found = plan(structure, form)
        assert found.form == form
        assert problem_with_plan(found, mask) is None


@given(masks() | equal_masks())
def test_macs_are_those_of_the_form(mask: Ints) -> None:
    structure = cover(mask)
    expected = {
        "dense": structure.dense_macs,
        "grouped": structure.exact_macs,
        "bucketed": structure.exact_macs,
        "padded": structure.padded_macs,
        "split": structure.exact_macs,
    }
    for form in forms_of(structure):
        found = plan(structure, form)
        weights = [len(conv.rows) * len(conv.columns[0]) for conv in found.convs]
        assert found.macs == sum(weights) == expected[form]
    assert structure.exact_macs == np.count_nonzero(mask)


@given(masks() | equal_masks())
def test_the_number_of_convs_is_that_of_the_form(mask: Ints) -> None:
    structure = cover(mask)
    blocks = len(structure.blocks)
    expected = {
        "dense": [1],
        "grouped": [blocks],
        "padded": [blocks] if blocks else [],
        "split": [1] * blocks,
    }
    for form, groups in expected.items():
        if form in forms_of(structure):
            assert [conv.groups for conv in plan(structure, form).convs] == groups
    bucketed = plan(structure, "bucketed").convs
    assert len(bucketed) == len(set(structure.shapes))
    assert sum(conv.groups for conv in bucketed) == blocks


@given(masks() | equal_masks())
def test_a_padded_column_reads_what_its_block_reads(mask: Ints) -> None:
    found = plan(cover(mask), "padded")
    for conv in found.convs:
        read = found.input_gather.indices[conv.inputs.start : conv.inputs.stop]
        groups = np.array(read).reshape(conv.groups, -1).tolist()
        for channels, columns in zip(groups, conv.columns, strict=True):
            assert set(channels) == set(columns) - {None}
        uneven = len({columns.count(None) for columns in conv.columns}) > 1
        assert conv.padded or not uneven


@given(masks() | equal_masks())
def test_dead_inputs_are_not_read_and_bias_only_filters_are_constants(mask: Ints) -> None:
    structure = cover(mask)
    for form in set(forms_of(structure)) - {"dense"}:
        found = plan(structure, form)
        columns = {c for conv in found.convs for group in conv.columns for c in group}
        assert not columns & set(structure.dead_inputs)
        assert found.constants == structure.bias_only
        rows = [row for conv in found.convs for row in conv.rows if row is not None]
        assert not set(rows) & set(structure.bias_only)
        assert found.result_channels == sum(c.out_channels for c in found.convs) + len(
            structure.bias_only
        )


@given(masks() | equal_masks())
def test_auto_takes_the_fewest_macs_and_among_equals_the_first_form(mask: Ints) -> None:
    structure = cover(mask)
    order = [form for form in FORMS if form in forms_of(structure) and form != "padded"]
    best = min(order, key=lambda form: plan(structure, form).macs)
    assert choose_form(structure) == plan(structure).form == best
    assert plan(structure) == plan(structure, best)


AUTO: dict[str, tuple[Ints, Form]] = {
    "one-block": (np.ones((3, 5), dtype=int), "dense"),
    "one-block-and-a-dead-input": (np.array([[1, 1, 0], [1, 1, 0]]), "grouped"),
    "equal": (group_mask([0, 1, 0, 1], [0, 0, 0, 1, 1, 1]), "grouped"),
    "unequal": (group_mask([0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]), "bucketed"),
    "all-different": (group_mask([0, 1, 1], [0, 1]), "bucketed"),
    "all-groups-empty": (np.zeros((3, 5), dtype=int), "bucketed"),
    "depthwise": (np.eye(7, dtype=int), "grouped"),
}


@pytest.mark.parametrize(("mask", "form"), AUTO.values(), ids=AUTO.keys())
def test_auto_of_a_mask_written_by_hand(mask: Ints, form: Form) -> None:
    found = plan(cover(mask))
    assert found.form == form
    assert problem_with_plan(found, mask) is None


def test_blocks_that_read_the_same_while_others_are_dead() -> None:
    blocks = (Block((0, 1), (0,)), Block((0, 1), (1,)))
    found = plan(BlockStructure(4, 2, blocks, dead_inputs=(2, 3)), "grouped")
    assert problem_with_plan(found, np.array([[1, 1, 0, 0]] * 2)) is None


def test_without_blocks_there_is_no_conv() -> None:
    for form in ("bucketed", "padded", "split"):
        found = plan(cover(np.zeros((3, 5), dtype=int)), form)
        assert found.convs == ()
        assert found.constants == (0, 1, 2)
        assert kinds(found) == ("identity", "identity")
        assert found.macs == 0


def test_a_plan_in_full() -> None:
    mask = group_mask([0, 1, 2, 0, 1, 3], [1, 0, 2, 1, 4])
    assert plan(cover(mask), "bucketed") == FormPlan(
        form="bucketed",
        input_gather=GatherPlan("gather", (1, 0, 3, 2)),
        convs=(
            ConvPlan(Slice(0, 1), (0, 3), ((1,),)),
            ConvPlan(Slice(1, 3), (1, 4), ((0, 3),)),
            ConvPlan(Slice(3, 4), (2,), ((2,),)),
        ),
        constants=(5,),
        output_gather=GatherPlan("shuffle", (0, 2, 4, 1, 3, 5), groups=3),
    )
    assert plan(cover(mask), "padded").convs == (
        ConvPlan(Slice(0, 6), (0, 3, 1, 4, 2, None), ((1, None), (0, 3), (2, None))),
    )


in_order, interleaved = np.repeat(range(4), 6), np.tile(range(4), 6)
REGULAR: dict[str, tuple[Ints, Form, tuple[str, str]]] = {
    "in-order": (group_mask(in_order, in_order), "grouped", ("identity", "identity")),
    "interleaved": (group_mask(interleaved, interleaved), "grouped", ("shuffle", "shuffle")),
    "outputs-interleaved": (group_mask(interleaved, in_order), "grouped", ("identity", "shuffle")),
    "inputs-interleaved": (group_mask(in_order, interleaved), "grouped", ("shuffle", "identity")),
    "groups-reversed": (group_mask(in_order, in_order[::-1]), "grouped", ("gather", "identity")),
    "groups-reversed-split": (
        group_mask(in_order, in_order[::-1]),
        "split",
        ("identity", "identity"),
    ),
    "both-reversed": (
        group_mask(in_order[::-1], in_order[::-1]),
        "grouped",
        ("identity", "identity"),
    ),
    "more-outputs-to-move": (
        group_mask(np.repeat(range(4), 9), in_order[::-1]),
        "grouped",
        ("gather", "identity"),
    ),
    "more-inputs-to-move": (
        group_mask(in_order, np.repeat(range(4), 9)[::-1]),
        "grouped",
        ("identity", "gather"),
    ),
    "pairs-interleaved": (
        group_mask(np.tile(np.repeat(range(4), 2), 3), in_order),
        "grouped",
        ("identity", "shuffle"),
    ),
    "pairs-interleaved-behind-random": (
        group_mask(
            np.tile(np.repeat(range(4), 2), 3), np.random.default_rng(5).permutation(in_order)
        ),
        "grouped",
        ("gather", "shuffle"),
    ),
    "pairs-interleaved-twice": (
        group_mask(np.tile(np.repeat(range(4), 2), 3), np.tile(np.repeat(range(4), 2), 3)),
        "grouped",
        ("shuffle", "shuffle"),
    ),
    "inputs-in-order-and-unequal": (
        group_mask([1, 2, 0, 0, 1], [0, 0, 1, 1, 2]),
        "bucketed",
        ("identity", "gather"),
    ),
    "an-input-shared": (
        np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1]]),
        "grouped",
        ("gather", "identity"),
    ),
    "condensenet": (
        np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]] * 3),
        "grouped",
        ("gather", "shuffle"),
    ),
    "unequal-in-order": (group_mask([0, 0, 1], [0, 1, 1, 1]), "bucketed", ("identity", "identity")),
    "slices-of-shared-inputs": (
        np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1]]),
        "split",
        ("identity", "identity"),
    ),
    "dead-inputs-around": (
        group_mask([0, 0, 1], [5, 0, 1, 1, 6]),
        "bucketed",
        ("identity", "identity"),
    ),
    "last-filter-bias-only": (
        group_mask([0, 0, 1, 7], [0, 1, 1, 1]),
        "bucketed",
        ("identity", "identity"),
    ),
    "depthwise": (np.eye(7, dtype=int), "grouped", ("identity", "identity")),
    "depthwise-moved": (np.eye(3, dtype=int)[[1, 2, 0]], "grouped", ("gather", "identity")),
}


@pytest.mark.parametrize(("mask", "form", "expected"), REGULAR.values(), ids=REGULAR.keys())
def test_gathers_are_as_regular_as_they_can_be(
    mask: Ints, form: Form, expected: tuple[str, str]
) -> None:
    found = plan(cover(mask), form)
    assert kinds(found) == expected
    assert problem_with_plan(found, mask) is None


@pytest.mark.parametrize("bits", range(1, 32))
def test_kronecker_gates_never_need_a_gather(bits: int) -> None:
    """DGConv: a gate is all ones or the identity, so that a group is a choice of index bits."""
    mask = np.ones((1, 1), dtype=int)
    for place in reversed(range(5)):
        gate = np.eye(2, dtype=int) if bits >> place & 1 else np.ones((2, 2), dtype=int)
        mask = np.kron(mask, gate)
    found = plan(cover(mask))
    assert found.form == "grouped"
    assert "gather" not in kinds(found)
    assert found.macs == 32 * 32 >> bits.bit_count()
    assert problem_with_plan(found, mask) is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_a_transpose_is_recognised(shape: list[int], draw: object) -> None:
    axes = list(range(len(shape)))
    draw.shuffle(axes)  # type: ignore[attr-defined]
    indices = np.arange(np.prod(shape)).reshape(shape).transpose(axes).ravel()
    found = as_transpose(indices.tolist())
    assert found is not None
    again = np.arange(len(indices)).reshape(found[0]).transpose(found[1]).ravel()
    assert again.tolist() == indices.tolist()
    assert len(found[0]) <= max(1, sum(size > 1 for size in shape))
    expected = {1: "identity", 2: "shuffle"}.get(len(found[0]), "transpose")
    assert plan_gather(indices.tolist(), len(indices)).kind == expected


@given(st.permutations(range(7)))
def test_a_prime_number_of_channels_has_no_transpose(indices: list[int]) -> None:
    found = as_transpose(indices)
    assert found == (((7,), (0,)) if indices == list(range(7)) else None)


@pytest.mark.parametrize(
    ("indices", "channels"),
    [([0, 1, 1, 2], 4), ([0, 1, 2], 4), ([0, 0, 0, 0], 4), ([0, 1, 2, 3, 0], 4), ([1, 0], 2)],
    ids=["repeat", "omission", "one-channel", "one-too-many", "swap"],
)
def test_other_choices_are_gathers(indices: list[int], channels: int) -> None:
    assert plan_gather(indices, channels) == GatherPlan("gather", tuple(indices))


def swapped(values: tuple[int, ...]) -> tuple[int, ...]:
    return (values[1], values[0], *values[2:])


def with_conv(found: FormPlan, place: int, **changes: object) -> FormPlan:
    convs = list(found.convs)
    convs[place] = replace(convs[place], **changes)
    return replace(found, convs=tuple(convs))


# Two groups of 3 inputs and 2 filters, one of 1 input and 2 filters, one filter without inputs.
MASK = group_mask([0, 1, 2, 0, 1, 2, 3], [1, 0, 2, 1, 0, 0, 1])
WRONG: dict[str, tuple[Form, Callable[[FormPlan], FormPlan], str]] = {
    "inputs-swapped-between-blocks": (
        "bucketed",
        lambda p: replace(
            p, input_gather=replace(p.input_gather, indices=p.input_gather.indices[::-1])
        ),
        "differ",
    ),
    "outputs-swapped": (
        "bucketed",
        lambda p: replace(
            p, output_gather=replace(p.output_gather, indices=swapped(p.output_gather.indices))
        ),
        "channels [0, 1] differ",
    ),
    "gather-forgotten": (
        "bucketed",
        lambda p: replace(p, input_gather=plan_gather(range(7), 7)),
        "differ",
    ),
    "identity-that-is-none": (
        "bucketed",
        lambda p: replace(p, output_gather=replace(p.output_gather, kind="identity")),
        "identity is not what its indices say",
    ),
    "block-dropped": ("split", lambda p: replace(p, convs=p.convs[:-1]), "cannot be executed"),
    "convs-swapped": (
        "split",
        lambda p: replace(p, convs=(p.convs[1], p.convs[0], *p.convs[2:])),
        "differ",
    ),
    "column-lost": (
        "padded",
        lambda p: with_conv(
            p, 0, columns=((None, *p.convs[0].columns[0][1:]), *p.convs[0].columns[1:])
        ),
        "channels [0, 3] differ",
    ),
    "padding-has-a-weight": (
        "padded",
        lambda p: with_conv(
            p, 0, columns=tuple((*c[:-1], c[-1] or c[0]) for c in p.convs[0].columns)
        ),
        "channels [2, 5] differ",
    ),
    "row-is-padding": (
        "bucketed",
        lambda p: with_conv(p, 0, rows=(None, *p.convs[0].rows[1:])),
        "channels [0] differ",
    ),
    "groups-of-one-conv-swapped": (
        "bucketed",
        lambda p: with_conv(p, 0, columns=p.convs[0].columns[::-1]),
        "channels [0, 1, 3, 4] differ",
    ),
    "constant-lost": ("bucketed", lambda p: replace(p, constants=()), "cannot be executed"),
    "constant-of-another": (
        "bucketed",
        lambda p: replace(p, constants=(0,)),
        "channels [6] differ",
    ),
    "slice-moved": (
        "bucketed",
        lambda p: with_conv(p, 1, inputs=Slice(5, 6)),
        "channels [2, 5] differ",
    ),
    "slice-too-long": (
        "bucketed",
        lambda p: with_conv(p, 1, inputs=Slice(6, 8)),
        "no such slice",
    ),
    "conv-without-channels": (
        "bucketed",
        lambda p: replace(p, convs=(*p.convs, ConvPlan(Slice(0, 0), (), ((),)))),
        "without inputs",
    ),
    "output-missing": (
        "bucketed",
        lambda p: replace(p, output_gather=GatherPlan("gather", p.output_gather.indices[:-1])),
        "6 channels come out instead of 7",
    ),
}


@pytest.mark.parametrize(("form", "spoil", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_plan_is_caught(
    form: Form, spoil: Callable[[FormPlan], FormPlan], words: str
) -> None:
    right = plan(cover(MASK), form)
    assert problem_with_plan(right, MASK) is None
    problem = problem_with_plan(spoil(right), MASK)
    assert problem is not None
    assert words in problem


def test_a_padded_row_that_leaks_is_caught() -> None:
    mask = group_mask([0, 1, 0, 1, 0], [0, 1, 1])
    right = plan(cover(mask), "padded")
    padding = right.convs[0].rows.index(None)
    leaking = (*right.output_gather.indices[:-1], padding)
    wrong = replace(right, output_gather=replace(right.output_gather, indices=leaking))
    assert problem_with_plan(right, mask) is None
    assert problem_with_plan(wrong, mask) == "output channels [4] differ"


def test_a_structure_that_lost_an_entry_is_caught() -> None:
    mask = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    without = BlockStructure(3, 3, (Block((0,), (0, 1)), Block((2,), (2,))), dead_inputs=(1,))
    assert problem_with_plan(plan(without, "split"), mask) == "output channels [0, 1] differ"


def test_grouped_is_refused_for_unequal_blocks() -> None:
    with pytest.raises(UsageError, match=r"3 blocks have 2; take 'bucketed' or 'padded'"):
        plan(cover(MASK), "grouped")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UsageError, match=r"form='merged': choose one of auto, dense, grouped"):
        plan(cover(MASK), "merged")  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [256, 307])
def test_hundreds_of_groups_over_a_prime_number_of_channels(groups: int) -> None:
    draw = np.random.default_rng(groups)
    mask = group_mask(draw.integers(groups, size=509), draw.integers(groups, size=521))
    structure = cover(mask)
    assert len(structure.blocks) > 150
    for form in ("bucketed", "padded", "split"):
        assert problem_with_plan(plan(structure, form), mask) is None


@pytest.mark.parametrize("share", [8, 64])
def test_a_channel_costs_no_more_in_a_large_layer(share: int) -> None:
    def steps(channels: int) -> int:
        """What it takes to plan a layer with that share of its channels as groups."""
        draw = np.random.default_rng(0)
        outputs, inputs = (draw.permutation(channels) % (channels // share) for _ in range(2))
        structure = cover(group_mask(outputs, inputs))
        assert plan(structure).form == "grouped"
        return steps_of(lambda: plan(structure))

    assert steps(4096) <= 4 * steps(1024)
