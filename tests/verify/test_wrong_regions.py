"""Rewrites that are wrong inside a site, and right on small float64 inputs in eval mode.

Each is a split with one mistake behind or in a branch; the check of the site must catch it whatever
the end of a network sees. Some hide in one precision, behind large values, a large batch or width,
values that are not finite, or in train mode.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import FreezeLearnedGroups, SplitGroupedConv
from groupfx.rewriting import Rewritten, Site
from groupfx.state import Part, Picked
from groupfx.verify import compare_regions
from tests.verify.hand_split import Pair, chain, split

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ChangedBranch(nn.Module):
    """The convolution of a branch, with a change in front of it and one behind it."""

    def __init__(
        self,
        conv: nn.Conv2d,
        behind: Callable[[Tensor], Tensor] = lambda y: y,
        front: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.front, self.behind = front, behind
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(nn.functional.conv2d(self.front(x), self.weight, self.bias))


def only(dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda y: change(y) if y.dtype == dtype else y


def through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda y: y.to(dtype).to(y.dtype)


def beyond(
    size: Callable[[Tensor], int], limit: int, change: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda y: change(y) if size(y) > limit else y


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp 30": lambda y: y.clamp(-30, 30),
    "clamp 30 from above": lambda y: y.clamp(max=30),
    "clamp 30 from below": lambda y: y.clamp(min=-30),
    "clamp 1e4": lambda y: y.clamp(-1e4, 1e4),
    "hardtanh 100": lambda y: nn.functional.hardtanh(y, -100, 100),
    "nan_to_num": torch.nan_to_num,
    "NaN to 0, infinities kept": lambda y: torch.where(y.isnan(), 0, y),
    "infinities to the largest": lambda y: torch.where(y.isinf(), 3e38, y),
    "infinity for minus infinity": lambda y: torch.where(y == -torch.inf, torch.inf, y),
    "1.01 in float32": only(torch.float32, lambda y: y * 1.01),
    "1 + 1e-6 in float32": only(torch.float32, lambda y: y * (1 + 1e-6)),
    "an offset in float32": only(torch.float32, lambda y: y + 1e-3),
    "sign in float32": only(torch.float32, torch.neg),
    "through half": through(torch.float16),
    "through bfloat16": through(torch.bfloat16),
    "through int16": through(torch.int16),
    "rounded to eighths": lambda y: (y * 8).round() / 8,
    "batch above 4": beyond(len, 4, lambda y: y * 2),
    "width above 40": beyond(lambda y: y.shape[-1], 38, lambda y: y * 2),
    "height above 40": beyond(lambda y: y.shape[-2], 38, lambda y: y * 2),
    "the fifth sample": lambda y: torch.cat([y[:4], y[4:] * 0]),
    "column 38": lambda y: torch.cat([y[..., :38], y[..., 38:] + 1], -1),
    "values above 1e3": lambda y: torch.where(y > 1e3, y + 1, y),
    "1e-9 more": lambda y: y * (1 + 1e-9),
    "1e-14 more": lambda y: y * (1 + 1e-14),
    "relu": torch.relu,
    "abs": torch.abs,
    "leaky": lambda y: nn.functional.leaky_relu(y, 0.999),
    "zero for one value": lambda y: torch.where(y == y.max(), 0, y),
}

# What rounds nothing in float32 on whole numbers, and so is for float64 to see, is in neither list.
FRONT = (
    "clamp 30",
    "nan_to_num",
    "NaN to 0, infinities kept",
    "1.01 in float32",
    "through half",
    "through bfloat16",
    "batch above 4",
    "width above 40",
    "relu",
)


def pair(norm: bool = False, dtype: torch.dtype = torch.float32) -> Pair:
    conv = nn.Conv2d(6, 9, 3, groups=3).to(dtype)
    return split(conv, nn.BatchNorm2d(9).to(dtype) if norm else None)


def caught(wrong: Pair) -> str:
    verdict = wrong.compare()
    assert not verdict.ok
    return str(verdict.reason)


@pytest.mark.parametrize("norm", [False, True], ids=["alone", "norm"])
@pytest.mark.parametrize("name", WRONG)
def test_a_branch_that_is_wrong_somewhere_is_caught(name: str, norm: bool) -> None:
    wrong = pair(norm)
    wrong.put("conv.1", ChangedBranch(wrong.branch("conv.1"), WRONG[name]))
    caught(wrong)


@pytest.mark.parametrize("name", FRONT)
def test_a_branch_whose_input_is_changed_is_caught(name: str) -> None:
    wrong = pair()
    wrong.put("conv.1", ChangedBranch(wrong.branch("conv.1"), front=WRONG[name]))
    caught(wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["alone", "norm"])
def test_the_unchanged_branch_passes(dtype: torch.dtype, norm: bool) -> None:
    right = pair(norm, dtype)
    right.put("conv.1", ChangedBranch(right.branch("conv.1")))
    verdict = right.compare()
    assert verdict.ok, verdict.reason
    assert verdict.own_dtype_ok


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_in_the_models_own_dtype_alone_is_caught(dtype: torch.dtype) -> None:
    wrong = pair(dtype=dtype)
    wrong.put("conv.1", ChangedBranch(wrong.branch("conv.1"), only(dtype, lambda y: y * 1.01)))
    assert str(dtype).removeprefix("torch.") in caught(wrong) or dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["clamp 30", "nan_to_num", "batch above 4", "width above 40"])
def test_limits_are_caught_in_narrow_dtypes(name: str, dtype: torch.dtype) -> None:
    wrong = pair(dtype=dtype)
    wrong.put("conv.1", ChangedBranch(wrong.branch("conv.1"), WRONG[name]))
    caught(wrong)


def test_a_float64_model_that_goes_through_float32_is_caught() -> None:
    wrong = pair(dtype=torch.float64)
    wrong.put("conv.1", ChangedBranch(wrong.branch("conv.1"), through(torch.float32)))
    assert "in float64, with large numbers and sizes" in caught(wrong)


@pytest.mark.parametrize("modes", [(True, False), (False, True)], ids=["eval", "train"])
def test_a_branch_left_in_the_other_mode_is_caught(modes: tuple[bool, bool]) -> None:
    wrong = pair(norm=True)
    for side in (wrong.left, wrong.right):
        side.module.train(modes[0])
    assert wrong.compare().ok
    wrong.branch("bn.2").train(modes[1])
    assert "the module of bn.2.weight is in" in caught(wrong)


def test_a_branch_that_forgets_its_statistics_is_caught() -> None:
    class Forgets(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(
                x,
                self.running_mean.clone() if self.training else self.running_mean,
                self.running_var.clone() if self.training else self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )

    wrong = pair(norm=True)
    norm = wrong.branch("bn.1")
    other = Forgets(3)
    other._parameters, other._buffers = norm._parameters, norm._buffers
    wrong.put("bn.1", other)
    assert "after a step in train mode bn.1.running_mean" in caught(wrong)


@pytest.mark.parametrize("eps", [0.0, 1.0001e-5, 1e-5 * (1 + 1e-8), 1e-3])
def test_another_eps_is_caught(eps: float) -> None:
    wrong = pair(norm=True)
    wrong.branch("bn.1").eps = eps
    assert "in whole numbers the output is off by" in caught(wrong)


def test_variances_that_are_swapped_alone_are_caught() -> None:
    """Means, weights and biases are those of the branch."""

    class Swapped(nn.BatchNorm2d):
        other: Tensor

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(
                *(x, self.running_mean, self.other, self.weight, self.bias),
                training=self.training,
                eps=self.eps,
            )

    wrong = pair(norm=True)
    norms = [wrong.branch(f"bn.{number}") for number in (1, 2)]
    for norm in norms:
        norm.running_var.fill_(1)
    wrong.left.module.bn.running_var.fill_(1)
    swapped = Swapped(3)
    swapped._parameters, swapped._buffers = norms[0]._parameters, dict(norms[0]._buffers)
    swapped._buffers["other"] = norms[0].running_var.roll(1)
    assert wrong.rows is not None
    wrong.put("bn.1", swapped)
    reason = caught(wrong)
    assert "bn.1.other" in reason or "off by" in reason


# Frozen forms: products with 0 are left out, and padding adds others


class Frozen(nn.Module):
    """The two blocks of a masked convolution, and `change` behind them."""

    def __init__(self, conv: nn.Conv2d, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
        self.change = change
        with torch.no_grad():
            self.conv.weight[:2] = conv.weight[:2, :2]
            self.conv.weight[2:] = conv.weight[2:, 2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.conv(x))


def frozen(change: Callable[[Tensor], Tensor]) -> Any:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight[:2, 2:] = 0
        conv.weight[2:, :2] = 0
    parts = (Part((0, 1), (0, 1)), Part((2, 3), (2, 3)))
    rows = {"form.conv.weight": Picked("conv.weight", parts, (4, 4))}
    left, right = chain({"conv": conv}), chain({"form": Frozen(conv, change)})
    return compare_regions(left, right, [(2, 4, 5, 5)], exact=False, rows=rows)


def test_a_frozen_form_may_be_finite_where_the_original_multiplies_an_infinity_by_0() -> None:
    verdict = frozen(lambda y: y)
    assert verdict.ok, verdict.reason
    assert verdict.own_dtype_ok


@pytest.mark.parametrize("name", WRONG)
def test_a_frozen_form_that_is_wrong_somewhere_is_caught(name: str) -> None:
    assert not frozen(WRONG[name]).ok


# In the whole pipeline


class SplitThenChange(SplitGroupedConv):
    """A split whose output goes through `change`, a function of torch."""

    def rewrite(self, site: Site, description: object) -> Rewritten:
        made = super().rewrite(site, description)
        output = self.change(site, made)
        return Rewritten(output, made.end, made.form, made.branches)

    def change(self, site: Site, made: Rewritten) -> Any:
        raise NotImplementedError


class Clamps(SplitThenChange):
    def change(self, site: Site, made: Rewritten) -> Any:
        return site.graph.call_method("clamp", (made.output, -30, 30))


class ThroughHalf(SplitThenChange):
    def change(self, site: Site, made: Rewritten) -> Any:
        half = site.graph.call_method("half", (made.output,))
        return site.graph.call_method("float", (half,))


class NoNaN(SplitThenChange):
    def change(self, site: Site, made: Rewritten) -> Any:
        return site.graph.call_function(torch.nan_to_num, (made.output,))


class NormsInEval(SplitThenChange):
    def change(self, site: Site, made: Rewritten) -> Any:
        for node in made.output.all_input_nodes:
            site.root.get_submodule(str(node.target)).eval()
        return made.output


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
@pytest.mark.parametrize("wrong", [Clamps, ThroughHalf, NoNaN])
def test_a_pass_that_is_wrong_in_a_blind_network_is_caught(
    wrong: type[SplitThenChange], way: str
) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).eval()
    nn.init.zeros_(model[1].weight)
    with pytest.raises(MismatchError, match="0 does not compute what it did"):
        groupfx.rewrite(model, (torch.randn(2, 4, 9, 9),), passes=[wrong()], way=way)


def test_branch_norms_left_in_eval_mode_are_caught() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)).train()
    x = torch.randn(2, 4, 9, 9)
    assert groupfx.rewrite(model, (x,), passes=[SplitGroupedConv()]).report.ok
    with pytest.raises(MismatchError, match="is in eval mode, and that of"):
        groupfx.rewrite(model, (x,), passes=[NormsInEval()])


def test_every_form_of_freezing_is_proved_in_whole_numbers() -> None:
    model = nn.Sequential(groupfx.nn.Flgc2d(8, 12, 3, group_num=3)).eval()
    for form in ("auto", "padded", "dense", "bucketed", "grouped"):
        try:
            passes = [FreezeLearnedGroups(form=form)]
            report = groupfx.rewrite(model, (torch.randn(2, 8, 9, 9),), passes=passes).report
        except groupfx.errors.GroupfxError:
            continue
        for site in report.sites:
            assert site.verdict is not None
            assert (site.verdict.identical, site.verdict.proof) == (True, "whole numbers"), form
