"""Slices and permutations of channels, against numpy's reshape and transpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupfx.errors import UsageError
from groupfx.plan.channels import (
    Slice,
    as_shuffle,
    channels_per_group,
    compose,
    group_slices,
    inverse,
    is_identity,
    is_permutation,
    shuffle_permutation,
)

sizes = st.integers(min_value=1, max_value=23)


def permutations(length: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(length))


def numpy_shuffle(groups: int, size: int) -> tuple[int, ...]:
    channels = np.arange(groups * size).reshape(groups, size).T
    return tuple(int(channel) for channel in channels.reshape(-1))


@given(groups=sizes, size=sizes)
def test_group_slices_are_numpys_equal_split(groups: int, size: int) -> None:
    slices = group_slices(groups * size, groups)
    channels = np.arange(groups * size)
    expected = np.split(channels, groups)
    assert [channels[s.start : s.stop].tolist() for s in slices] == [e.tolist() for e in expected]
    assert {len(s) for s in slices} == {size}


def test_group_slices_of_six_channels() -> None:
    assert group_slices(6, 2) == (Slice(0, 3), Slice(3, 6))
    assert channels_per_group(6, 2) == 3


@pytest.mark.parametrize(
    ("channels", "groups", "words"),
    [
        pytest.param(10, 3, ["10 channels", "3 equal groups", "such as 2", "to 12"], id="uneven"),
        pytest.param(5, 7, ["5 channels", "7 equal groups", "such as 5", "to 7"], id="too-many"),
        pytest.param(0, 1, ["channels=0"], id="no-channels"),
        pytest.param(4, 0, ["groups=0"], id="no-groups"),
        pytest.param(4, -2, ["groups=-2"], id="negative-groups"),
    ],
)
def test_impossible_groups_are_refused_with_numbers(
    channels: int, groups: int, words: Sequence[str]
) -> None:
    for function in (group_slices, shuffle_permutation):
        with pytest.raises(UsageError) as caught:
            function(channels, groups)
        assert all(word in str(caught.value) for word in words), str(caught.value)


@given(groups=sizes, size=sizes)
def test_shuffle_is_numpys_transpose(groups: int, size: int) -> None:
    assert shuffle_permutation(groups * size, groups) == numpy_shuffle(groups, size)


def test_shuffle_of_six_channels_in_two_groups() -> None:
    assert shuffle_permutation(6, 2) == (0, 3, 1, 4, 2, 5)


@given(groups=sizes, size=sizes)
def test_shuffling_back_is_the_other_shuffle(groups: int, size: int) -> None:
    forth = shuffle_permutation(groups * size, groups)
    assert inverse(forth) == shuffle_permutation(groups * size, size)


@given(groups=st.integers(2, 23), size=st.integers(2, 23))
def test_a_shuffle_is_recognised(groups: int, size: int) -> None:
    assert as_shuffle(numpy_shuffle(groups, size)) == groups


@given(groups=st.integers(2, 7), size=st.integers(2, 7), data=st.data())
def test_a_shuffle_with_two_channels_swapped_is_not(
    groups: int, size: int, data: st.DataObject
) -> None:
    places = st.integers(0, groups * size - 1)
    first = data.draw(places)
    second = data.draw(places.filter(lambda place: place != first))
    channels = list(numpy_shuffle(groups, size))
    channels[first], channels[second] = channels[second], channels[first]
    expected = [g for g in range(2, len(channels)) if len(channels) % g == 0]
    matches = [g for g in expected if numpy_shuffle(g, len(channels) // g) == tuple(channels)]
    assert as_shuffle(channels) == (matches[0] if matches else None)


@pytest.mark.parametrize(
    "indices",
    [
        pytest.param((), id="empty"),
        pytest.param((0, 1, 2, 3, 4, 5), id="identity"),
        pytest.param((1, 0), id="swap"),
        pytest.param((0, 2, 0, 2), id="repeats"),
        pytest.param((0, 2, 1, 7), id="out-of-range"),
        pytest.param((0, -3, 1, 4, 2, 5), id="negative"),
        pytest.param((0, 0, 0, 0, 0, 0), id="all-the-same"),
        pytest.param((1, 3, 0, 4, 2, 5), id="starts-elsewhere"),
        pytest.param((5, 4, 3, 2, 1, 0), id="reversed"),
    ],
)
def test_what_is_no_shuffle(indices: tuple[int, ...]) -> None:
    assert as_shuffle(indices) is None


@given(st.integers(0, 12).flatmap(permutations))
def test_inverse_undoes_as_in_numpy(permutation: list[int]) -> None:
    x = np.random.default_rng(0).standard_normal((3, len(permutation)))
    back = inverse(permutation)
    assert np.array_equal(x[:, permutation][:, list(back)], x)
    assert back == tuple(int(place) for place in np.argsort(permutation))
    assert is_identity(compose(permutation, back))
    assert is_identity(compose(back, permutation))


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(permutations(n), permutations(n))))
def test_compose_is_one_after_the_other(pair: tuple[list[int], list[int]]) -> None:
    first, second = pair
    x = np.random.default_rng(0).standard_normal((2, len(first)))
    assert np.array_equal(x[:, first][:, second], x[:, list(compose(first, second))])


@given(st.lists(st.integers(-2, 6), max_size=6))
def test_is_permutation_is_a_bijection(indices: list[int]) -> None:
    channels = np.arange(len(indices))
    assert is_permutation(indices) == np.array_equal(np.unique(indices), channels)


@pytest.mark.parametrize(
    ("indices", "answer"),
    [((0, 1, 2), True), ((), True), ((0, 2, 1), False), ((0, 0), False)],
    ids=["yes", "empty", "swapped", "repeated"],
)
def test_is_identity(indices: tuple[int, ...], answer: bool) -> None:
    assert is_identity(indices) is answer


def test_a_gather_has_no_inverse_and_says_why() -> None:
    with pytest.raises(UsageError, match=r"3 entries name 2 of the channels 0 \.\.\. 2"):
        inverse((0, 0, 2))
    with pytest.raises(UsageError, match="exactly once"):
        compose((0, 1), (1, 1))
    with pytest.raises(UsageError, match="of 2 channels cannot be followed by one of 3"):
        compose((0, 1), (2, 1, 0))
