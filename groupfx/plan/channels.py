"""Channels as integers: the slices of groups, and permutations of channels. No torch here.

A permutation is a tuple `p` that says where each output channel comes from: `y = x[:, p]`, so
`y[:, i] = x[:, p[i]]`. A gather is the same with repeats or omissions; `is_permutation` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """The channels `start, start + 1, ..., stop - 1`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def group_slices(channels: int, groups: int) -> tuple[Slice, ...]:
    """The channels of each group, in order: `groups` slices of `channels / groups` each.

    Raises UsageError if either number is not positive or the groups do not divide the channels.
    """
    size = channels_per_group(channels, groups)
    return tuple(Slice(start, start + size) for start in range(0, channels, size))


def channels_per_group(channels: int, groups: int) -> int:
    """`channels / groups`; UsageError if that is not a positive whole number."""
    if channels < 1:
        raise UsageError(f"channels={channels}: the number of channels must be at least 1")
    if groups < 1:
        raise UsageError(f"groups={groups}: the number of groups must be at least 1")
    if channels % groups:
        raise UsageError(
            f"{channels} channels cannot be cut into {groups} equal groups "
            f"({channels} % {groups} = {channels % groups}); "
            f"take a number of groups that divides {channels}, such as "
            f"{_nearest_divisor(channels, groups)}, or pad the channels to "
            f"{-(-channels // groups) * groups}"
        )
    return channels // groups


def is_permutation(indices: Sequence[int]) -> bool:
    """Whether `indices` holds each of 0 ... len - 1 exactly once."""
    return sorted(indices) == list(range(len(indices)))


def is_identity(indices: Sequence[int]) -> bool:
    """Whether `x[:, indices]` is x itself, for an x of `len(indices)` channels."""
    return all(index == place for place, index in enumerate(indices))


def inverse(permutation: Sequence[int]) -> Permutation:
    """The permutation that undoes this one: `x[:, p][:, inverse(p)]` is x.

    Raises UsageError if `permutation` repeats or omits a channel.
    """
    _require_permutation(permutation)
    result = [0] * len(permutation)
    for place, index in enumerate(permutation):
        result[index] = place
    return tuple(result)


def compose(first: Sequence[int], second: Sequence[int]) -> Permutation:
    """One permutation for two in a row: `x[:, first][:, second]` is `x[:, compose(first, second)]`.

    Raises UsageError if the two are not permutations of the same number of channels.
    """
    _require_permutation(first)
    _require_permutation(second)
    if len(first) != len(second):
        raise UsageError(
            f"a permutation of {len(first)} channels cannot be followed by one of "
            f"{len(second)}; both must have the same length"
        )
    return tuple(first[index] for index in second)


def shuffle_permutation(channels: int, groups: int) -> Permutation:
    """The channel shuffle: see the channels as (groups, n), transpose, read them as (n, groups).

    Source: Zhang et al., ShuffleNet (2017), section 3.1. Raises UsageError if the groups do not
    divide the channels.
    """
    size = channels_per_group(channels, groups)
    return tuple(group * size + place for place in range(size) for group in range(groups))


def as_shuffle(permutation: Sequence[int]) -> int | None:
    """The `groups` whose channel shuffle this is; None if it is no shuffle, or the identity.

    The answer is unique: the second channel of a shuffle comes from the start of the second group,
    so it tells the size of a group.
    """
    channels = len(permutation)
    if channels < 4 or is_identity(permutation):
        return None
    size = permutation[1]
    if size < 2 or channels % size:
        return None
    groups = channels // size
    return groups if tuple(permutation) == shuffle_permutation(channels, groups) else None


def _nearest_divisor(channels: int, groups: int) -> int:
    divisors = [number for number in range(1, channels + 1) if channels % number == 0]
    return min(divisors, key=lambda divisor: abs(divisor - groups))


def _require_permutation(indices: Sequence[int]) -> None:
    if is_permutation(indices):
        return
    kept = len({index for index in indices if 0 <= index < len(indices)})
    raise UsageError(
        f"not a permutation: {len(indices)} entries name {kept} of the channels "
        f"0 ... {len(indices) - 1}; each must appear exactly once"
    )


_NO_END = 2**31 - 1
"""No axis is longer: what a slice that says it ends here or further means by that."""


def takes_all(part: slice) -> bool:
    """Whether a slice takes all of an axis, however long that is."""
    return (
        part.start in (None, 0)
        and part.step in (None, 1)
        and (part.stop is None or part.stop >= _NO_END)
    )
