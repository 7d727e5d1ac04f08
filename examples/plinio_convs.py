"""Three small grouped models, and the same models split by hand, with the mistakes that hands make.

They follow an example notebook of PLiNIO, a library that compresses networks and asks for grouped
convolutions in split form. The notebook splits by hand, and the twins that it makes are not the
functions that they replace: each lost a ReLU on the way. They run, they have the right shapes and
the right number of parameters, and nothing complains. `groupfx.rewrite` does the same work and
proves the result.

    grouped original      split by hand                the twin is
    chain1d()             chain1d_split_by_hand()      WRONG: no ReLU after the last conv
    chain1d_groups(g)     chain1d_groups_by_hand(g)    WRONG: no ReLU after the branches
    pair2d()              pair2d_split_by_hand()       right (it is ours, for comparison)

A twin takes the weights of its original with `copy_weights(original, twin)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Chain1d(nn.Module):
    """Conv1d 16 -> 16 -> 8 -> 16, all `same`, the middle one grouped, a ReLU after each.

    Takes `[N, 16, L]`; the notebook uses L = 2.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv1d(16, 16, 5, padding="same")
        self.conv1 = nn.Conv1d(16, 8, 3, padding="same", groups=groups)
        self.conv2 = nn.Conv1d(8, 16, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 16, L]` to `[N, 16, L]`."""
        x = F.relu(self.conv0(x))
        x = F.relu(self.conv1(x))
        return F.relu(self.conv2(x))


class Pair2d(nn.Module):
    """Conv2d 16 -> 8 in 2 groups, with a ReLU. Takes `[N, 16, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 3, padding="same", groups=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 16, H, W]` to `[N, 8, H, W]`."""
        return F.relu(self.conv(x))


class Chain1dSplitByHand(nn.Module):
    """A hand-split twin of `Chain1d(groups=2)`. WRONG: the ReLU after the last conv is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv1d(16, 16, 5, padding="same")
        self.conv1 = nn.ModuleList([nn.Conv1d(8, 4, 3, padding="same") for _ in range(2)])
        self.conv2 = nn.Conv1d(8, 16, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 16, L]` to `[N, 16, L]`, some of it negative."""
        x = F.relu(self.conv0(x))
        low, high = x[:, :8], x[:, 8:]
        x = F.relu(torch.cat([self.conv1[0](low), self.conv1[1](high)], dim=1))
        return self.conv2(x)  # the mistake: the original has a ReLU here


class Chain1dGroupsByHand(nn.Module):
    """A hand-split twin of `Chain1d(groups)`. WRONG: the ReLU after the branches is gone."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.width = 16 // groups
        self.conv0 = nn.Conv1d(16, 16, 5, padding="same")
        self.conv1 = nn.ModuleList(
            [nn.Conv1d(16 // groups, 8 // groups, 3, padding="same") for _ in range(groups)]
        )
        self.conv2 = nn.Conv1d(8, 16, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 16, L]` to `[N, 16, L]`."""
        x = F.relu(self.conv0(x))
        parts = [x[:, i * self.width : (i + 1) * self.width] for i in range(len(self.conv1))]
        x = torch.cat([conv(part) for conv, part in zip(self.conv1, parts, strict=True)], dim=1)
        return F.relu(self.conv2(x))  # the mistake: the original has a ReLU on x, too


class Pair2dSplitByHand(nn.Module):
    """A hand-split twin of `Pair2d`. This one is right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(8, 4, 3, padding="same") for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 16, H, W]` to `[N, 8, H, W]`."""
        low, high = x[:, :8], x[:, 8:]
        return F.relu(torch.cat([self.conv[0](low), self.conv[1](high)], dim=1))


def chain1d() -> Chain1d:
    """The notebook's 1-D model, with 2 groups."""
    return Chain1d(groups=2)


def chain1d_groups(groups: int = 4) -> Chain1d:
    """The notebook's 1-D model, for any number of groups that divides 8."""
    return Chain1d(groups)


def pair2d() -> Pair2d:
    """The notebook's 2-D model."""
    return Pair2d()


def chain1d_split_by_hand() -> Chain1dSplitByHand:
    """WRONG on purpose: see `Chain1dSplitByHand`."""
    return Chain1dSplitByHand()


def chain1d_groups_by_hand(groups: int = 4) -> Chain1dGroupsByHand:
    """WRONG on purpose: see `Chain1dGroupsByHand`."""
    return Chain1dGroupsByHand(groups)


def pair2d_split_by_hand() -> Pair2dSplitByHand:
    """The twin that is right: see `Pair2dSplitByHand`."""
    return Pair2dSplitByHand()


def copy_weights(original: nn.Module, twin: nn.Module) -> None:
    """Give a hand-split twin the weights of its original, group by group.

    Each branch takes its rows of the grouped convolution of the same name; every other layer is
    copied as it is.
    """
    source = original.state_dict()
    taken = {}
    for name, tensor in twin.state_dict().items():
        if name in source:
            taken[name] = source[name]
            continue
        layer, branch, kind = name.split(".")
        start = int(branch) * len(tensor)
        taken[name] = source[f"{layer}.{kind}"][start : start + len(tensor)]
    twin.load_state_dict(taken)
