"""Convolutions that forward keeps elsewhere too: a module in their place would not be called."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import groupfx
from groupfx.passes import SplitGroupedConv
from tests.models.zoo import count_grouped_calls
from tests.traits.trait import SHAPE, One, Weighted, grouped

SPLIT = [SplitGroupedConv()]


class ByItsCall(One):
    """A bound method, which a copy of the model binds to its own old layer."""

    def __init__(self) -> None:
        super().__init__()
        self.call = self.conv.__call__

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x) if x.shape[0] > 0 else x


class InADict(One):
    def __init__(self) -> None:
        super().__init__()
        self.parts = {"conv": self.conv}

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["conv"](x) if x.shape[0] > 0 else x


class AmongItsModules(One):
    """What a branch would be called as too."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and x.shape[0] > 0:
                x = module(x)
        return x


class ByItsOwnMethod(One):
    """A method that only a convolution has, of a layer that is not called."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(x, self.conv.weight * 2, None) if x.shape[0] > 0 else x


class ReadsItsWeight(One):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, nn.Conv2d) and x.shape[0] > 0:
            return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1, groups=3)
        return x


class ByItsClassName(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * len(type(self.conv).__name__) if x.shape[0] > 0 else x


class ReadsTheDtypeOfItsWeight(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight.dtype)) if x.shape[0] > 0 else x


def compiled_conv() -> nn.Module:
    return nn.Sequential(torch.compile(grouped(), backend="eager"), nn.ReLU())


@pytest.mark.parametrize(
    "make",
    [
        ByItsCall,
        InADict,
        AmongItsModules,
        ByItsOwnMethod,
        ReadsItsWeight,
        ByItsClassName,
        pytest.param(compiled_conv, marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_what_runs_is_what_was_rewritten_and_stays_so(make: Any) -> None:
    model, x = make().eval(), torch.randn(SHAPE)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert len(result.report.sites) == 1
    assert count_grouped_calls(result.model, (x,)).total() == 0
    torch.testing.assert_close(result.model(x), model(x))
    again = groupfx.rewrite(result.model, x, passes=SPLIT)
    assert not again.report.sites
    torch.testing.assert_close(again.model(x), model(x))


def test_a_layer_whose_weight_is_only_looked_at_is_replaced() -> None:
    model, x = ReadsTheDtypeOfItsWeight().eval(), torch.randn(SHAPE)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    branches = [type(child) for child in result.model.conv.children()]  # type: ignore[operator,union-attr]
    assert branches == [nn.Conv2d] * 3
    torch.testing.assert_close(result.model(x), model(x))


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    return torch.conv2d(x, weight, None, [1, 1], [0, 0], [1, 1], 3)


class CallsScript(Weighted):
    scripted: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.scripted(x, self.weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_a_scripted_function_runs_is_not_taken_for_a_call_of_forward() -> None:
    CallsScript.scripted = staticmethod(torch.jit.script(convolved))
    model, x = CallsScript().eval(), torch.randn(SHAPE)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert (result.report.way, len(result.report.sites)) == ("export", 1)
    assert count_grouped_calls(result.model, (x,)).total() == 0
    torch.testing.assert_close(result.model(x), model(x))


def test_a_trial_leaves_the_model_of_the_caller_as_it_was() -> None:
    model, x = AmongItsModules().eval(), torch.randn(SHAPE)
    before = dict(model.named_modules())
    groupfx.rewrite(model, x, passes=SPLIT, inplace=True)
    assert dict(model.named_modules()) == before
    assert len(model.conv._forward_hooks) == 1  # that of the rewrite


def test_a_copy_of_what_was_swapped_goes_by_the_same_name() -> None:
    import copy

    result = groupfx.rewrite(ByItsClassName().eval(), torch.randn(SHAPE), passes=SPLIT)
    assert type(copy.deepcopy(result.model).conv).__name__ == "Conv2d"
