"""What stands around branches of a torch graph: stored tensors that are added, cuts of other axes.

And models that were split by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.passes import MergeParallelConv
from groupfx.testing import check_pass
from tests.parallel.torch_branches import Parts, SideBySide, X, three

Added = Callable[[int, Tensor, Tensor], Tensor]

ADDED: dict[str, tuple[tuple[int, ...], Added]] = {
    "behind": ((6, 1, 1), lambda k, y, b: y + b),
    "in-front": ((6, 1, 1), lambda k, y, b: b + y),
    "either": ((6, 1, 1), lambda k, y, b: b + y if k else y + b),
    "4-d": ((1, 6, 1, 1), lambda k, y, b: y.add(b)),
    "each-place": ((6, 7, 5), lambda k, y, b: torch.add(b, y)),
    "product": ((1, 6, 1, 1), lambda k, y, b: b * y if k else y * b),
    "difference": ((6, 1, 1), lambda k, y, b: b - y),
}


class WithAdded(nn.Module):
    """Three convolutions, and something stored that joins what each gives."""

    def __init__(self, shape: tuple[int, ...], join: Added) -> None:
        super().__init__()
        self.convs = nn.ModuleList(three(bias=False))
        self.added = nn.ParameterList([nn.Parameter(torch.randn(shape)) for _ in range(3)])
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 4 * k : 4 * k + 4] for k in range(3)]
        values = [conv(part) for conv, part in zip(self.convs, parts, strict=True)]
        joined = zip(values, self.added, strict=True)
        return torch.cat([self.join(k, y, b) for k, (y, b) in enumerate(joined)], 1)


@pytest.mark.parametrize(("shape", "join"), ADDED.values(), ids=ADDED)
def test_what_is_added_behind_goes_along(shape: tuple[int, ...], join: Added) -> None:
    model = WithAdded(shape, join).eval()
    result = check_pass(MergeParallelConv(), model, (X,), sites=1)
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "join"),
    [
        ((6, 1, 1), lambda k, y, b: b - y if k else y - b),
        ((1,), lambda k, y, b: y + b),
        ((6, 1, 1), lambda k, y, b: y + b if k else y * b),
    ],
    ids=["order-of-a-difference", "one-number", "another-function"],
)
def test_what_is_added_otherwise_stays(shape: tuple[int, ...], join: Added) -> None:
    model = WithAdded(shape, join).eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    assert not result.report.sites
    assert result.report.skipped


def rows_apart(x: Tensor) -> list[Tensor]:
    """The same number of rows of each part, of which the last part's begin elsewhere."""
    sizes = [[3, 3, 3], [3, 3, 3], [4, 3, 2]]
    return [x[:, 4 * k : 4 * k + 4].split(sizes[k], 2)[1] for k in range(3)]


def second_rows(x: Tensor) -> list[Tensor]:
    return [x[:, 4 * k : 4 * k + 4].split(3, 2)[1] for k in range(3)]


@pytest.mark.parametrize("parts", [rows_apart, second_rows])
def test_rows_that_a_split_gave_are_those_rows(parts: Parts) -> None:
    model = SideBySide(parts, three()).eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    assert result.report.ok
    assert not result.report.sites


def test_a_cut_of_all_is_no_cut_and_one_of_the_batch_is() -> None:
    def parts(x: Tensor) -> list[Tensor]:
        return [x[:2, :4], x[0:, 4:8], x[:, 8:]]

    exported = groupfx.rewrite(
        SideBySide(lambda x: [x[0:, :4], x[:, 4:8], x[: 2**40, 8:]], three()).eval(),
        X,
        passes=[MergeParallelConv()],
    )
    assert exported.report.sites
    # The example has two samples: that all of them are taken is so of it alone.
    left = groupfx.rewrite(SideBySide(parts, three()).eval(), X, passes=[MergeParallelConv()])
    assert not left.report.sites


class CutByHand(nn.Module):
    """PLiNIO's one-dimensional example with its grouped layer split by hand, into any number.

    Its branches have an activation each, or there is one behind them all, as in the two twins that
    the source shows.
    """

    def __init__(self, groups: int, *, inside: bool) -> None:
        super().__init__()
        self.conv0 = nn.Conv1d(16, 16, 5, padding="same")
        width = 16 // groups
        self.branches = nn.ModuleList(
            [nn.Conv1d(width, 8 // groups, 3, padding="same") for _ in range(groups)]
        )
        self.conv2 = nn.Conv1d(8, 16, 3, padding="same")
        self.groups, self.inside = groups, inside

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv0(x))
        width = 16 // self.groups
        parts = [x[:, k * width : (k + 1) * width, :] for k in range(self.groups)]
        values = [conv(part) for conv, part in zip(self.branches, parts, strict=True)]
        if self.inside:
            values = [F.relu(value) for value in values]
        x = torch.cat(values, dim=1)
        return F.relu(self.conv2(x if self.inside else F.relu(x)))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("groups", [2, 8])
def test_models_that_were_split_by_hand(groups: int, inside: bool) -> None:
    model = CutByHand(groups, inside=inside).eval()
    result = check_pass(MergeParallelConv(), model, (torch.randn(2, 16, 9),), sites=1)
    conv = result.model.get_submodule("branches")
    assert isinstance(conv, nn.Conv1d)
    assert (conv.groups, conv.padding) == (groups, "same")


class Looped(nn.Module):
    """Branches as most people write them: a loop over modules and the parts of a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(three())
        self.norms = nn.ModuleList([nn.BatchNorm2d(6) for _ in range(3)])
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.convs, self.norms, x.chunk(3, 1), strict=True)
        return torch.cat([norm(conv(part)).relu() for conv, norm, part in parts], 1)


def test_a_loop_that_only_an_export_takes() -> None:
    """Its norms are functions of stored tensors there."""
    model = Looped().eval()
    result = groupfx.rewrite(model, X, passes=[MergeParallelConv()])
    assert [site.name for site in result.report.sites] == ["convs"]
    assert result.report.ok
    assert not groupfx.rewrite(model, X, passes=[MergeParallelConv()], way="modules").report.sites
    state = result.model.state_dict()
    assert {"convs.weight", "norms.weight", "norms.running_var"} <= state.keys()
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
