"""Make one grouped convolution of convolutions that stand side by side: the inverse of a split.

Before:  y = cat([g(conv_k(f(x)[:, part_k])) for each branch k], dim=1)
After:   y = g(conv(f(x)[:, order])),   groups = the sum of theirs

A convolution with g groups is g convolutions on g slices of its channels, so branches whose groups
are of one size are one convolution: its weight has their rows one after another. f is what stands
in front of all of them alike, such as padding; g what stands behind, such as a BatchNorm or a bias
(whose channels are put one after another as well) and an activation. Where the parts of x follow
one another in order, x is read as it is; else a gather stays, which fold-permutations may move.

Branches whose groups are of several sizes stay, unless `unequal` says otherwise: `bucketed` makes
one convolution for all groups of a size, `padded` one for all, in which the smaller groups are
filled up with zeros; gathers around them put the channels in order. The norm and the activation
behind are one again.

No number is computed anew, and `split-grouped-conv` gives the branches back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from groupfx.parallel.planning import Unequal
from groupfx.rewriting import unwanted
from groupfx.rewriting.region_pass import RegionPass


@dataclass(frozen=True)
class MergeParallelConv(RegionPass):
    """Parallel convolutions on parts of one value become one grouped convolution."""

    refuses = (
        "branches that differ in anything but their channels",
        "branches whose groups have other sizes (unequal=bucketed and unequal=padded take them)",
        "channels that are read twice, or left out between others",
        "a part, or a value inside a branch, that is used elsewhere too",
        "weights that are tied, computed, or under hooks",
    )

    unequal: Unequal = "keep"
    """what becomes of branches whose groups are of several sizes: they stay, or become one
    convolution for all groups of a size, or one for all that is filled up with zeros"""

    only: tuple[str, ...] = ()
    """patterns of names, of branches or of what they become; the others are skipped"""

    skip: tuple[str, ...] = ()
    """patterns of such names that are skipped"""

    def declines(self, names: Sequence[str]) -> str | None:
        return unwanted(names, self.only, self.skip)
