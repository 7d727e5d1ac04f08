"""Fewer groups with zeros between: against a dense block-diagonal weight that is made here."""

import copy

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError, UsageError
from groupfx.passes import WidenGroups
from groupfx.rewriting import Rewritten, Site
from groupfx.rewriting.block_layers import Blocks
from groupfx.testing import check_pass


def network(conv: nn.Module, channels: int) -> nn.Sequential:
    torch.manual_seed(3)
    norm = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[conv.weight.dim()]  # type: ignore[operator]
    return nn.Sequential(conv, norm(channels), nn.ReLU())


def block_diagonal(weight: Tensor, groups: int, left: int) -> Tensor:
    """The weight with `left` groups, written out entry by entry."""
    rows, width = len(weight), weight.shape[1]
    inputs = width * groups
    whole = torch.zeros(rows, inputs // left, *weight.shape[2:])
    for row in range(rows):
        first = row // (rows // groups) * width
        own = row // (rows // left) * (inputs // left)
        for column in range(width):
            whole[row, first + column - own] = weight[row, column]
    return whole


CASES = {
    "1-d": (nn.Conv1d(6, 15, 3, groups=3), (2, 6, 9), 1),
    "2-d, no bias": (nn.Conv2d(6, 9, 3, groups=3, bias=False, padding=1), (2, 6, 5, 7), 1),
    "2-d, some left": (nn.Conv2d(12, 18, 1, groups=6), (2, 12, 5, 7), 2),
    "multiplier": (nn.Conv2d(5, 10, 3, groups=5, stride=2), (2, 5, 7, 9), 1),
    "3-d depthwise": (nn.Conv3d(3, 3, 2, groups=3), (2, 3, 4, 5, 4), 1),
}


@pytest.mark.parametrize(("conv", "shape", "left"), CASES.values(), ids=CASES.keys())
def test_zeros_come_between_the_groups(conv: nn.Conv2d, shape: tuple[int, ...], left: int) -> None:
    model, x = network(copy.deepcopy(conv), conv.out_channels), torch.randn(*shape)
    result = check_pass(WidenGroups(groups=left), model, (x,), sites=1)
    made = result.model.get_submodule("0.conv")
    assert type(made) is type(conv)
    assert (made.groups, made.in_channels) == (left, conv.in_channels)
    assert torch.equal(made.weight, block_diagonal(conv.weight, conv.groups, left))
    (site,) = result.report.sites
    assert site.macs_after == site.macs * conv.groups // left  # type: ignore[operator]
    assert f"zeros are multiplied too: {conv.groups // left} x the MACs" in site.notes


REFUSED = {
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), WidenGroups(), "2-d depthwise is left alone"),
    "transposed": (
        nn.ConvTranspose2d(6, 9, 3, groups=3),
        WidenGroups(),
        "a transposed convolution is not widened",
    ),
    "few": (nn.Conv2d(6, 9, 3, groups=3), WidenGroups(groups=3), "no more than groups=3"),
    "odd": (nn.Conv2d(6, 9, 3, groups=3), WidenGroups(groups=2), "3 groups do not become groups=2"),
    "named": (nn.Conv2d(6, 9, 3, groups=3), WidenGroups(skip=("0",)), "named by skip=0"),
    "parametrised": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 9, 3, groups=3)),
        WidenGroups(),
        "its weight is computed in each forward",
    ),
}


@pytest.mark.parametrize(("conv", "pass_", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_left_is_told(conv: nn.Module, pass_: WidenGroups, reason: str) -> None:
    model, x = nn.Sequential(conv), torch.randn(2, 6, 5, 7)
    result = groupfx.rewrite(model, (x,), passes=[pass_])
    (left,) = result.report.skipped
    assert reason in left.reason
    assert not result.report.sites


def test_depthwise_on_request() -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), torch.randn(2, 4, 5, 7)
    result = groupfx.rewrite(model, (x,), passes=["widen-groups:depthwise=widen"])
    assert result.model.get_submodule("0.conv").groups == 1


def test_no_groups_at_all_are_refused() -> None:
    with pytest.raises(UsageError, match="groups=0: a convolution has at least 1"):
        WidenGroups(groups=0)


class OneTooMany(WidenGroups):
    """Wrong on purpose: one weight stands where a zero belongs."""

    def rewrite(self, site: Site, description: Blocks) -> Rewritten:
        made = super().rewrite(site, description)
        conv = site.root.get_submodule("0.conv")
        with torch.no_grad():
            conv.weight[0, 5] = conv.weight[0, 0]  # type: ignore[index]
        return made


def test_a_weight_in_the_wrong_place_is_caught() -> None:
    model, x = nn.Sequential(nn.Conv2d(6, 9, 3, groups=3)), torch.randn(2, 6, 5, 7)
    with pytest.raises(MismatchError):
        groupfx.rewrite(model, (x,), passes=[OneTooMany()])
