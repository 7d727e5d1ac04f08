"""fold-permutations as a pass: its report, its map, training, what it refuses, and wrong folds."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import groupfx
from groupfx.errors import MismatchError, UsageError
from groupfx.folding.edits import Edit
from groupfx.folding.fold import Fold
from groupfx.folding.problem import Problem
from groupfx.nn import ChannelGather
from groupfx.passes import FoldPermutations, SplitGroupedConv
from groupfx.rewriting import Pipeline

ORDER = (3, 0, 5, 1, 4, 2)


class Folding(nn.Module):
    """conv -> BatchNorm -> permutation -> depthwise -> conv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.order = ChannelGather(ORDER)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.last = nn.Conv2d(6, 5, 1)
        for tensor in (*self.norm.parameters(), self.norm.running_mean, self.norm.running_var):
            assert tensor is not None
            tensor.data.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(torch.relu(self.order(self.norm(self.conv(x))))))


def inputs() -> Tensor:
    return torch.randn(2, 3, 9, 11)


def test_the_report_says_what_went() -> None:
    result = groupfx.rewrite(Folding(), inputs(), passes=["fold-permutations"])
    (fold,) = result.report.folds
    assert fold.describe() == "permutations: 1 -> 0 (1.5 kB -> 0 B a sample)"
    assert result.report.ok
    assert result.report.verified
    assert not any(isinstance(module, ChannelGather) for module in result.model.modules())
    assert result.report.to_dict()["folds"][0]["after"] == {"count": 0, "moved": 0}


def test_the_map_carries_checkpoints_both_ways() -> None:
    model = Folding()
    result = groupfx.rewrite(model, inputs(), passes=["fold-permutations"])
    other = Folding()
    result.state_dict_map.load_original(other.state_dict())
    x = inputs()
    with torch.no_grad():
        found, expected = result.model.eval()(x), other.eval()(x)
    assert torch.allclose(found, expected, atol=1e-5)
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in other.state_dict().items())


def test_it_trains_as_the_original_does() -> None:
    model = Folding().double()
    x = inputs().double()
    result = groupfx.rewrite(model, x, passes=["fold-permutations"])
    sides = [model.train(), result.model.train()]
    for side in sides:
        optimizer = torch.optim.SGD(side.parameters(), lr=0.1)
        side(x).square().mean().backward()
        optimizer.step()
    back = result.state_dict_map.to_original()
    for key, value in model.state_dict().items():
        assert torch.allclose(back[key], value, atol=1e-12), key


def test_a_second_run_finds_nothing() -> None:
    result = groupfx.rewrite(Folding(), inputs(), passes=["fold-permutations"])
    again = groupfx.rewrite(result.model, inputs(), passes=["fold-permutations"])
    assert not again.report.folds[0].changes


def test_the_model_stays_as_it_was() -> None:
    model = Folding()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groupfx.rewrite(model, inputs(), passes=["fold-permutations"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_pass_with_sites_comes_before_it() -> None:
    with pytest.raises(UsageError, match="split-grouped-conv behind fold-permutations"):
        Pipeline([FoldPermutations(), SplitGroupedConv()])


def test_a_parametrised_tensor_stays_and_the_permutation_with_it() -> None:
    model = Folding()
    nn.utils.parametrizations.weight_norm(model.depthwise)
    model.conv.weight.register_hook(lambda gradient: gradient)
    result = groupfx.rewrite(model, inputs(), passes=["fold-permutations"])
    (kept,) = result.report.folds[0].kept
    assert kept.reason == "conv has a gradient hook on weight and depthwise is parametrised"


def test_a_value_that_is_changed_in_place_and_read_again_is_refused() -> None:
    class Changed(Folding):
        def forward(self, x: Tensor) -> Tensor:
            y = self.order(self.conv(x))
            z = y.relu_()
            return self.last(y + z)

    result = groupfx.rewrite(Changed(), inputs(), passes=["fold-permutations"])
    (skipped,) = result.report.skipped
    assert skipped.reason.endswith("is changed in place and read again afterwards")


@dataclass(frozen=True)
class WrongFold(FoldPermutations):
    """Does with one of its parameters what it must not do."""

    wrong: str = "inverse"
    """which mistake"""

    def plan_graph(self, problem: Problem) -> Fold:
        right = super().plan_graph(problem)
        edits = list(right.edits)
        place = next(k for k, edit in enumerate(edits) if str(edit.key).startswith("depthwise.w"))
        edits[place] = self._spoiled(edits[place])
        return replace(right, edits=tuple(edit for edit in edits if edit is not None))

    def _spoiled(self, edit: Edit) -> Any:
        if self.wrong == "forgotten":
            return None
        return Edit(edit.key, {dim: np.argsort(order) for dim, order in edit.axes.items()})


@pytest.mark.parametrize("wrong", ["inverse", "forgotten"])
def test_a_wrong_fold_is_caught(wrong: str) -> None:
    with pytest.raises(MismatchError):
        Pipeline([WrongFold(wrong=wrong)])(_depthwise_follows(), inputs())


def _depthwise_follows() -> nn.Module:
    """A model in which the depthwise convolution has to be permuted: the gather is behind it."""

    class Behind(Folding):
        def forward(self, x: Tensor) -> Tensor:
            y = self.order(self.depthwise(self.norm(self.conv(x))))
            return y.flip(1)

    return Behind()


def test_a_weight_in_the_dtype_of_a_value_has_the_sizes_of_the_weight() -> None:
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.register_buffer("kernel", torch.rand(6, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return nn.functional.conv2d(y, self.kernel.to(y), groups=6)

    report = groupfx.rewrite(Blur(), torch.randn(2, 3, 7, 5), passes=["fold-permutations"]).report
    assert report.verified
