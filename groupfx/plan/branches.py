"""How the groups of a convolution are shared out to branches, in integers.

    y = conv(x), groups = g     becomes     y = cat([conv_k(x[:, part_k]), ...], dim=1)

Branch k holds the next `groups[k]` of the g groups, and is a convolution with that many groups of
its own. Every group has as many channels as any other, so the channels of a branch are in
proportion to its groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UsageError
from .channels import Slice, channels_per_group


@dataclass(frozen=True)
class Branches:
    """The number of groups in each branch, in order.

    Raises UsageError where there is no branch, or one without a group.
    """

    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise UsageError(f"groups={self.groups}: each branch holds at least one group")

    @classmethod
    def one_each(cls, groups: int) -> Branches:
        """A branch for every group."""
        return cls((1,) * groups)

    @classmethod
    def even(cls, groups: int, branches: int) -> Branches:
        """So many branches, whose numbers of groups differ by at most one, the larger ones first.

        Raises UsageError where there are fewer groups than branches.
        """
        if not 1 <= branches <= groups:
            raise UsageError(f"branches={branches}: {groups} groups make 1 to {groups} branches")
        size, rest = divmod(groups, branches)
        return cls((size + 1,) * rest + (size,) * (branches - rest))

    @classmethod
    def at_most(cls, groups: int, size: int) -> Branches:
        """Branches of `size` groups; the last one holds what is left."""
        full, rest = divmod(groups, size)
        return cls((size,) * full + (rest,) * bool(rest))

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def total(self) -> int:
        """The groups of all branches together."""
        return sum(self.groups)

    @property
    def single(self) -> bool:
        """Whether each branch holds a single group."""
        return max(self.groups) == 1

    def slices(self, channels: int) -> tuple[Slice, ...]:
        """The channels of each branch. Raises UsageError where the groups do not divide them."""
        size, starts = channels_per_group(channels, self.total), self._starts()
        return tuple(
            Slice(start * size, (start + number) * size)
            for start, number in zip(starts, self.groups, strict=True)
        )

    def _starts(self) -> Iterator[int]:
        start = 0
        for number in self.groups:
            yield start
            start += number
