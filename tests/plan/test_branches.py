"""Groups shared out to branches: every group once, in order, in branches of the size asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan.branches import Branches
from groupfx.plan.channels import Slice

GROUPS = st.integers(1, 300)


@given(GROUPS, st.data())
def test_even_branches_differ_by_one_group_at_most(groups: int, data: st.DataObject) -> None:
    branches = data.draw(st.integers(1, groups))
    made = Branches.even(groups, branches)
    assert (made.total, len(made)) == (groups, branches)
    assert max(made.groups) - min(made.groups) <= 1
    assert list(made.groups) == sorted(made.groups, reverse=True)


@given(GROUPS, st.integers(1, 40))
def test_a_largest_size_is_kept_and_used(groups: int, size: int) -> None:
    made = Branches.at_most(groups, size)
    assert made.total == groups
    assert set(made.groups[:-1]) <= {size}
    assert 1 <= made.groups[-1] <= size


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 5))
def test_slices_follow_one_another_and_hold_all_channels(groups: list[int], size: int) -> None:
    made = Branches(tuple(groups))
    parts = made.slices(made.total * size)
    assert [len(part) for part in parts] == [number * size for number in groups]
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, made.total * size)


def test_a_branch_a_group() -> None:
    assert Branches.one_each(3) == Branches((1, 1, 1)) == Branches.even(3, 3)
    assert Branches.one_each(3).single
    assert not Branches((2, 1)).single
    assert Branches((2, 1)).slices(6) == (Slice(0, 4), Slice(4, 6))


def test_what_makes_no_branches() -> None:
    with pytest.raises(UsageError, match="branches=5: 4 groups make 1 to 4 branches"):
        Branches.even(4, 5)
    with pytest.raises(UsageError, match="at least one group"):
        Branches(())
    with pytest.raises(UsageError, match="7 channels cannot be cut into 3 equal groups"):
        Branches((2, 1)).slices(7)
