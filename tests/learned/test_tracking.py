"""Changes between assignments, against the tables of ones and zeros that they are about."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.learned.groups import LearnedGroups
from groupfx.learned.layers import LearnedLayer
from groupfx.learned.tracking import GroupChange, change_of, first_difference, track

CHANNELS, FILTERS, GROUPS = 5, 7, 3


def groups_of_table(inputs: np.ndarray, outputs: np.ndarray) -> LearnedGroups:
    """From tables of ones, `[channels, groups]`."""
    members = [
        tuple(tuple(np.flatnonzero(column).tolist()) for column in table.T)
        for table in (inputs, outputs)
    ]
    return LearnedGroups(len(inputs), len(outputs), *members)


def layer(name: str = "mid", inputs: str = "", outputs: str = "", kernel: int = 1) -> LearnedLayer:
    """A layer whose channels are in the groups named by letters, one a channel."""
    tables = [
        np.array([[group == letter for group in "abc"] for letter in letters])
        for letters in (inputs or "aabbc", outputs or "abcabca")
    ]
    return LearnedLayer(name, (kernel, kernel), groups_of_table(*tables))


tables = st.lists(
    st.lists(st.booleans(), min_size=GROUPS, max_size=GROUPS), min_size=CHANNELS, max_size=CHANNELS
).map(np.array)


@given(tables, tables)
def test_changes_are_the_difference_of_the_tables(before: np.ndarray, after: np.ndarray) -> None:
    filters = np.zeros((FILTERS, GROUPS), dtype=bool)
    change = change_of(
        "mid", groups_of_table(before, filters), groups_of_table(after, filters), "inputs"
    )
    # What the public tracker prints: the negative and the positive part of the difference.
    difference = after.astype(int) - before.astype(int)
    assert [-len(g.removed) for g in change.groups] == difference.clip(max=0).sum(0).tolist()
    assert [len(g.added) for g in change.groups] == difference.clip(min=0).sum(0).tolist()
    assert [g.held for g in change.groups] == after.sum(0).tolist()
    assert change.total == abs(difference).sum()
    assert change.moved == tuple(np.flatnonzero(difference.any(1)).tolist())
    for group, column in zip(change.groups, difference.T, strict=True):
        assert group.removed == tuple(np.flatnonzero(column < 0).tolist())
        assert group.added == tuple(np.flatnonzero(column > 0).tolist())


def test_filters_are_followed_apart_from_inputs() -> None:
    before, after = layer(), layer(outputs="bbcabca")
    assert change_of("mid", before.groups, after.groups).total == 0
    change = change_of("mid", before.groups, after.groups, "filters")
    assert change.groups == (
        GroupChange((0,), (), 2),
        GroupChange((), (0,), 3),
        GroupChange((), (), 2),
    )
    assert (change.total, change.moved, change.channels) == (2, (0,), FILTERS)


def test_steps_go_from_one_state_to_the_next() -> None:
    states = [
        [layer("one"), layer("two")],
        [layer("one", inputs="babbc"), layer("two")],
        # Another order of the same layers, as a file that sorts names has it.
        [layer("two", inputs="ccbbc"), layer("one", inputs="aabbc")],
    ]
    steps = track(states)
    assert [[change.name for change in step.layers] for step in steps] == [["one", "two"]] * 2
    assert [[change.moved for change in step.layers] for step in steps] == [
        [(0,), ()],
        [(0,), (0, 1)],
    ]
    assert [(step.total, step.moved, step.channels) for step in steps] == [(2, 1, 10), (6, 3, 10)]
    assert track(states[:1]) == ()


DIFFERENT = {
    "missing": ([layer("one")], "the learned layer two is in one and not in the other"),
    "renamed": (
        [layer("one"), layer("too")],
        "the learned layer two is in one and not in the other",
    ),
    "more": (
        [layer("one"), layer("two"), layer("three")],
        "the learned layer three is in one and not in the other",
    ),
    "channels": (
        [layer("one"), layer("two", inputs="aab")],
        "the learned layer two is of 5 -> 7 channels in 3 groups, kernel 1x1 in one and of "
        "3 -> 7 channels in 3 groups, kernel 1x1 in the other",
    ),
    "kernel": ([layer("one", kernel=3), layer("two")], "kernel 1x1 in one and .* kernel 3x3"),
}


@pytest.mark.parametrize(("other", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_layer_that_differs_is_named(other: list[LearnedLayer], words: str) -> None:
    mine = [layer("one"), layer("two")]
    assert re.search(words, first_difference(mine, other) or "")
    with pytest.raises(UsageError, match=words):
        track([mine, mine, other])
    assert first_difference(mine, mine) is None


def test_another_number_of_groups_is_no_change() -> None:
    wide = LearnedGroups(5, 7, ((0, 1), (2, 3, 4)), ((0,), (1, 2, 3, 4, 5, 6)))
    with pytest.raises(UsageError, match=r"mid is of .* in 3 groups in one and .* in 2 groups"):
        change_of("mid", layer().groups, wide)
