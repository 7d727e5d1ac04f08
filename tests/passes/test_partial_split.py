"""`split-grouped-conv` into branches that hold several groups, in both realms and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import groupfx
from groupfx.deploy.forms.rewrite_onnx import rewrite_graph
from groupfx.deploy.graph.files import check_onnx, proto_of
from groupfx.deploy.graph.metadata import Mark, mark_of
from groupfx.emit import emit_python
from groupfx.errors import UsageError
from groupfx.passes import SplitGroupedConv
from groupfx.plan.branches import Branches
from groupfx.plan.site_plan import plan_of
from groupfx.testing import check_pass
from tests.deploy.forms.foreign_onnx import CASES, difference, numbers, run
from tests.passes.test_split_grouped_conv import CONVS, SIZES, TRANSPOSED, assert_like_dense

GROUPS = 7

SIZED: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "branches": ({"branches": 3}, (3, 2, 2)),
    "two-branches": ({"branches": 2}, (4, 3)),
    "more-branches-than-groups": ({"branches": 9}, (1,) * 7),
    "groups": ({"groups_per_branch": 3}, (3, 3, 1)),
    "one-group": ({"groups_per_branch": 1}, (1,) * 7),
    # A group takes two channels and gives three.
    "channels": ({"max_channels": 12}, (4, 3)),
    "channels-not-divided": ({"max_channels": 8}, (2, 2, 2, 1)),
    "channels-of-one-group": ({"max_channels": 3}, (1,) * 7),
}


def branches_of(model: nn.Module) -> list[tuple[int, int, int]]:
    """Groups, inputs and outputs of each convolution module, in order."""
    convs = [m for m in model.modules() if isinstance(m, _ConvNd)]
    return [(conv.groups, conv.in_channels, conv.out_channels) for conv in convs]


@pytest.mark.parametrize(("options", "groups"), SIZED.values(), ids=SIZED)
def test_how_the_groups_are_shared_out(options: dict[str, int], groups: tuple[int, ...]) -> None:
    conv = nn.Conv1d(2 * GROUPS, 3 * GROUPS, 3, groups=GROUPS)
    x = torch.randn(2, 2 * GROUPS, 9)
    result = check_pass(SplitGroupedConv(**options), nn.Sequential(conv), (x,), sites=1)
    assert branches_of(result.model) == [(n, 2 * n, 3 * n) for n in groups]
    assert_like_dense(conv, x, result.model)


@pytest.mark.parametrize("kinds", [CONVS, TRANSPOSED], ids=["plain", "transposed"])
@pytest.mark.parametrize("dims", CONVS)
def test_every_kind_with_a_batchnorm(kinds: dict[int, type[nn.Module]], dims: int) -> None:
    norm: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](15)
    nn.init.uniform_(norm.running_mean, -1, 1)
    conv = kinds[dims](10, 15, 3, stride=2, padding=1, groups=5)
    x = torch.randn(2, 10, *SIZES[dims])
    model = nn.Sequential(conv, norm, nn.ReLU()).eval()
    result = check_pass(SplitGroupedConv(branches=2), model, (x,), sites=1)
    assert branches_of(result.model) == [(3, 6, 9), (2, 4, 6)]
    assert result.report.sites[0].after.endswith("+ BatchNorm")


def test_rows_of_a_weight_that_is_computed() -> None:
    conv = nn.Conv2d(8, 12, 3, groups=4, padding=1, padding_mode="circular")
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(conv))
    x = torch.randn(2, 8, 6, 5)
    result = check_pass(SplitGroupedConv(groups_per_branch=3), model, (x,), sites=1)
    (plan,) = [p for n in result.model.graph.nodes if (p := plan_of(n.meta)) is not None]
    assert (plan.form, plan.convs) == (Branches((3, 1)), ())


class OneTensorTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(12, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        once = torch.conv1d(x, self.kernel, padding=1, groups=6)
        return torch.conv1d(once, self.kernel, padding=1, groups=6)


def test_two_calls_of_one_tensor_share_their_branches() -> None:
    result = check_pass(
        SplitGroupedConv(branches=4), OneTensorTwice(), (torch.randn(2, 12, 8),), sites=2
    )
    assert branches_of(result.model) == [(2, 4, 4), (2, 4, 4), (1, 2, 2), (1, 2, 2)]


REFUSED: dict[str, tuple[dict[str, int], str]] = {
    "fits": ({"groups_per_branch": 4}, "all its 4 groups fit one branch, groups_per_branch=4"),
    "fits-channels": ({"max_channels": 64}, "all its 4 groups fit one branch, max_channels=64"),
    "too-small": ({"max_channels": 2}, "one group has 3 channels, and max_channels=2"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_left_says_why(options: dict[str, int], reason: str) -> None:
    model = nn.Sequential(nn.Conv1d(8, 12, 3, groups=4))
    result = groupfx.rewrite(model, torch.randn(2, 8, 9), passes=[SplitGroupedConv(**options)])
    assert not result.report.sites
    assert reason in result.report.skipped[0].reason


WRONG: dict[str, tuple[dict[str, int], str]] = {
    "one-branch": ({"branches": 1}, "branches=1: it must be at least 2"),
    "no-group": ({"groups_per_branch": 0}, "groups_per_branch=0: it must be at least 1"),
    "negative": ({"max_channels": -4}, "max_channels=-4: it must be at least 1"),
    "two": ({"branches": 2, "max_channels": 8}, "branches=2 and max_channels=8: each says"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_options_that_make_no_sense(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SplitGroupedConv(**options)


def test_a_later_whole_split_makes_one_plan_with_the_names_of_both() -> None:
    model = nn.Sequential(nn.Conv1d(8, 12, 3, groups=4))
    x = torch.randn(2, 8, 9)
    half = groupfx.rewrite(model, x, passes=[SplitGroupedConv(branches=2)])
    whole = groupfx.rewrite(half.model, x)
    assert whole.report.sites
    (plan,) = [p for n in whole.model.graph.nodes if (p := plan_of(n.meta)) is not None]
    assert plan.form == Branches.one_each(4)
    assert torch.allclose(whole.model(x), half.model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_foreign_files_in_two_branches(case: Any) -> None:
    model = ir.from_proto(case.model)
    result = rewrite_graph(model, [SplitGroupedConv(branches=2, depthwise="split")])
    check_onnx(result.model)
    assert [site.branches for site in result.sites] == [2] * len(result.sites)
    x = numbers(*case.x)
    assert difference(run(case.model, x=x), run(proto_of(result.model), x=x)) <= 1e-6
    again = rewrite_graph(result.model, [SplitGroupedConv(branches=2, depthwise="split")])
    assert not again.sites


def test_branches_that_are_split_again_are_those_of_their_site(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.BatchNorm2d(12)).eval()
    x, path = torch.randn(2, 8, 6, 5), tmp_path / "m.onnx"
    groupfx.export(model, (x,), path)
    half = rewrite_graph(ir.load(path), [SplitGroupedConv(branches=2)])
    whole = rewrite_graph(half.model, [SplitGroupedConv(only=("0",))])
    marks = [mark_of(node) for node in whole.model.graph if node.op_type == "Conv"]
    assert marks == [Mark("0", group) for group in range(4)]
    assert {mark.site for node in whole.model.graph if (mark := mark_of(node)) is not None} == {"0"}
    again = tmp_path / "again.onnx"
    ir.save(whole.model, again)
    check = groupfx.validate(path, again, (x,))
    assert check.ok
    assert check.worst_site is not None
    wrong = next(node for node in whole.model.graph if node.op_type == "Conv").inputs[1]
    assert wrong is not None
    assert wrong.const_value is not None
    wrong.const_value = ir.tensor(2 * wrong.const_value.numpy(), name=wrong.name)
    ir.save(whole.model, again)
    check = groupfx.validate(path, again, (x,))
    assert not check.ok
    assert check.worst_site is not None
    assert check.worst_site.name == "0"


def test_an_export_keeps_the_branches_and_their_site(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(14, 21, 3, groups=7), nn.BatchNorm2d(21), nn.ReLU()).eval()
    x = torch.randn(2, 14, 6, 5)
    result = groupfx.rewrite(model, x, passes=[SplitGroupedConv(branches=3)])
    path = tmp_path / "m.onnx"
    export = groupfx.export(result, (x,), path)
    assert [(site.name, site.convs) for site in export.sites] == [("0", 3)]
    assert "3 groups each at most" in export.sites[0].form
    convs = [node for node in ir.load(path).graph if node.op_type == "Conv"]
    assert [node.attributes["group"].as_int() for node in convs] == [3, 2, 2]
    check = groupfx.validate(model, path, (x,))
    assert check.ok
    assert check.worst_site is not None


def test_a_graph_that_is_traced_anew_is_recognised(tmp_path: Path) -> None:
    x = torch.randn(2, 14, 9)
    split = groupfx.rewrite(
        nn.Sequential(nn.Conv1d(14, 21, 3, groups=7)), x, passes=[SplitGroupedConv(branches=3)]
    )
    again = torch.fx.symbolic_trace(split.model)
    export = groupfx.export(again, (x,), tmp_path / "m.onnx")
    assert [(site.name, site.convs) for site in export.sites] == [("0", 3)]


def test_python_of_it_has_the_branches() -> None:
    """Which runs what it writes, and compares it, before it gives it away."""
    model = nn.Sequential(nn.Conv2d(14, 21, 3, groups=7), nn.BatchNorm2d(21), nn.ReLU()).eval()
    x = torch.randn(2, 14, 6, 5)
    result = groupfx.rewrite(model, x, passes=[SplitGroupedConv(branches=3)])
    text = emit_python(result)
    assert '(Branches, [3, 2, 2], "1")' in text
