"""Plans as plain data, both ways, and two plans as one."""

from dataclasses import replace
from typing import Any

import pytest

from groupfx.errors import UsageError
from groupfx.plan.blocks import Block, BlockStructure
from groupfx.plan.branches import Branches
from groupfx.plan.channels import Slice
from groupfx.plan.forms import FORMS, Form, FormPlan, plan
from groupfx.plan.site_plan import NOTE, SitePlan, note, plan_of, site_of

STRUCTURE = BlockStructure(
    5, 7, (Block((3, 0), (5, 1, 0)), Block((2,), (3, 2))), dead_inputs=(1, 4), bias_only=(4, 6)
)
THREE = Branches.one_each(3)
SPLIT = SitePlan("a.b", 6, 9, THREE, ("a.b.0", "a.b.1", "a.b.2"), ("n.0", "n.1", "n.2"))


def frozen(form: Form = "bucketed", **fields: Any) -> SitePlan:
    chosen = plan(STRUCTURE, form)
    names = tuple(f"a.convs.{k}" for k in range(len(chosen.convs)))
    return replace(SitePlan("a", 5, 7, chosen, names, (), "a.in", "a.constants", "a.out"), **fields)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "grouped"])
def test_a_plan_of_blocks_goes_both_ways(form: Form) -> None:
    assert SitePlan.of_data(frozen(form).to_data()) == frozen(form)


def test_a_plan_of_groups_goes_both_ways() -> None:
    assert SitePlan.of_data(SPLIT.to_data()) == SPLIT


def test_a_gather_keeps_its_kind_where_it_reads_the_first_channels() -> None:
    # Five channels come in and two are read, in order: that is no identity.
    blocks = (Block((0,), (0,)), Block((1,), (1,)))
    chosen = plan(BlockStructure(3, 2, blocks, dead_inputs=(2,)), "split")
    read_from_three = replace(chosen, input_gather=replace(chosen.input_gather, kind="gather"))
    made = SitePlan("a", 3, 2, read_from_three, ("x", "y"))
    again = SitePlan.of_data(made.to_data())
    assert isinstance(again.form, type(chosen))
    assert again.form.input_gather.kind == "gather"


WRONG: dict[str, dict[str, Any]] = {
    "no-site": {"site": None},
    "a-number-as-path": {"convs": ("a", 3)},
    "no-groups": {"form": 0},
    "a-form-of-text": {"form": "split"},
    "a-truth-as-groups": {"form": True},
    "no-channels": {"in_channels": 0},
    "unknown": {"more": 1},
    "a-gather-as-number": {"output_gather": 4},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_other_data_is_no_plan(change: dict[str, Any]) -> None:
    assert SitePlan.of_data(SPLIT.to_data() | {"site": "c"}) == replace(SPLIT, site="c")
    with pytest.raises(UsageError, match="no plan of a site"):
        SitePlan.of_data(SPLIT.to_data() | change)


WRONG_FORMS: dict[str, dict[str, Any]] = {
    "form": {"form": "other"},
    "negative": {"constants": (-1,)},
    "fraction": {"constants": (0.5,)},
    "kind": {"input_gather": ("identity", (2, 0, 1))},
    "slice": {"convs": ((0, None, (0,), ((0,),)),)},
    "columns": {"convs": ((0, 1, (0,), (("0",),)),)},
    "missing": {"convs": ((0, 1, (0,)),)},
}


@pytest.mark.parametrize("change", WRONG_FORMS.values(), ids=WRONG_FORMS.keys())
def test_other_forms_are_no_plan(change: dict[str, Any]) -> None:
    data = frozen().to_data()
    form = data["form"]
    assert isinstance(form, dict)
    with pytest.raises(UsageError, match="no plan of a site"):
        SitePlan.of_data(data | {"form": form | change})


def test_a_node_tells_its_site_and_the_last_one_its_plan() -> None:
    assert (site_of({}), plan_of({})) == (None, None)
    assert (site_of({NOTE: note("a.b")}), plan_of({NOTE: note("a.b")})) == ("a.b", None)
    last = {NOTE: note("a.b", SPLIT)}
    assert (site_of(last), plan_of(last)) == ("a.b", SPLIT)
    assert site_of({NOTE: "of somebody else"}) is None


def grouped(**fields: Any) -> SitePlan:
    """Six inputs in two groups, read in another order, and a BatchNorm behind."""
    blocks = (Block((4, 0, 5), (1, 2)), Block((1, 2, 3), (3, 0)))
    chosen = plan(BlockStructure(6, 4, blocks), "grouped")
    made = SitePlan("a", 6, 4, chosen, ("a.conv",), ("n",), "a.in", None, "a.out")
    return replace(made, **fields)


INNER = SitePlan("a.conv", 6, 4, Branches.one_each(2), ("a.conv.0", "a.conv.1"), ("n.0", "n.1"))


@pytest.mark.parametrize("groups", [(1, 1, 1), (2, 1), (3,), (1, 5, 2)])
def test_a_plan_of_branches_goes_both_ways(groups: tuple[int, ...]) -> None:
    made = replace(SPLIT, form=Branches(groups))
    assert SitePlan.of_data(made.to_data()) == made


@pytest.mark.parametrize(
    "form", [0, -1, True, 10**12, (), (0, 3), (2, -1), (1.5,), ("1", "2"), "3"]
)
def test_other_branches_are_no_plan(form: object) -> None:
    with pytest.raises(UsageError, match=r"no plan of a site|at least one group"):
        SitePlan.of_data(SPLIT.to_data() | {"form": form})


def test_a_branch_that_is_split_again_makes_one_plan() -> None:
    """Of eight groups two branches, then of the second one two of one and three groups."""
    outer = SitePlan("a", 16, 24, Branches((4, 4)), ("a.0", "a.1"))
    inner = SitePlan("a.1", 8, 12, Branches((1, 3)), ("a.1.0", "a.1.1"))
    found = outer.refined("a.1", inner)
    assert found == SitePlan("a", 16, 24, Branches((4, 1, 3)), ("a.0", "a.1.0", "a.1.1"))
    assert [piece.inputs for piece in found.pieces()] == [Slice(0, 8), Slice(8, 10), Slice(10, 16)]
    assert [piece.groups for piece in found.pieces()] == [4, 1, 3]
    assert found.pieces()[2].columns == ((10, 11), (12, 13), (14, 15))
    assert outer.refined("a.1", replace(inner, form=Branches((1, 2)))) is None


def test_a_piece_that_is_split_makes_one_plan() -> None:
    outer = grouped()
    assert isinstance(outer.form, FormPlan)
    (conv,) = outer.form.convs
    found = outer.refined("a.conv", INNER)
    assert found is not None
    assert isinstance(found.form, FormPlan)
    assert found.form.form == "split"
    assert [plan.inputs for plan in found.form.convs] == [Slice(0, 3), Slice(3, 6)]
    assert [plan.rows for plan in found.form.convs] == [conv.rows[:2], conv.rows[2:]]
    assert [plan.columns for plan in found.form.convs] == [conv.columns[:1], conv.columns[1:]]
    assert (found.convs, found.norms) == (INNER.convs, INNER.norms)
    assert (found.site, found.input_gather, found.output_gather) == ("a", "a.in", "a.out")


def test_a_norm_in_place_becomes_a_piece() -> None:
    outer = grouped(norms=(), output_gather=None)
    found = outer.refined("a.conv", INNER)
    assert found is not None
    assert found.norms == INNER.norms


STAYS_APART: dict[str, tuple[SitePlan, SitePlan]] = {
    "the norm stays behind": (grouped(), replace(INNER, norms=())),
    "a norm behind a gather": (grouped(norms=()), INNER),
    "other groups": (grouped(), replace(INNER, form=4)),
    "rows of one weight": (grouped(), replace(INNER, convs=())),
    "blocks of blocks": (grouped(), replace(INNER, form=grouped().form)),
    "another piece": (grouped(convs=("b.conv",)), INNER),
    "a branch of a split": (SPLIT, replace(INNER, site="a.b.0")),
}


@pytest.mark.parametrize(("outer", "inner"), STAYS_APART.values(), ids=STAYS_APART.keys())
def test_two_plans_that_one_cannot_say(outer: SitePlan, inner: SitePlan) -> None:
    assert outer.refined("a.conv", inner) is None
