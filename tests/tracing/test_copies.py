"""What a copy of a model keeps that Python's own copying drops."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import groupfx
from groupfx.passes import SplitGroupedConv
from tests.models.zoo import count_grouped_calls
from tests.traits.trait import SHAPE, One

SPLIT = [SplitGroupedConv()]


def after(model: One) -> None:
    def triple(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad.mul_(3)

    model.conv.weight.register_post_accumulate_grad_hook(triple)


@pytest.mark.parametrize(
    "hook", [lambda model: model.conv.weight.register_hook(lambda grad: grad * 3), after]
)
def test_hooks_on_a_gradient_stay(hook: Any) -> None:
    plain, model = One(), One()
    model.load_state_dict(plain.state_dict())
    hook(model)
    x = torch.randn(SHAPE)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert ["gradient hook on weight" in site.reason for site in result.report.skipped] == [True]
    for each in (plain, result.model):
        each(x).sum().backward()
    torch.testing.assert_close(
        result.model.get_parameter("conv.weight").grad, plain.conv.weight.grad * 3
    )
    again = groupfx.rewrite(result.model, x, passes=SPLIT)
    assert not again.report.sites


@pytest.mark.parametrize(
    "register",
    ["register_state_dict_pre_hook", "register_load_state_dict_pre_hook"],
)
def test_hooks_on_the_state_of_a_layer_are_a_reason(register: str) -> None:
    model = One()
    getattr(model.conv, register)(lambda *_: None)
    result = groupfx.rewrite(model, torch.randn(SHAPE), passes=SPLIT)
    assert ["state dict pre hooks" in site.reason for site in result.report.skipped] == [True]


class Yields(One):
    def forward(self, x: Tensor) -> Iterator[Tensor]:
        yield self.conv(x)
        yield x * 2


def test_a_forward_that_yields_is_run_to_its_end() -> None:
    model, x = Yields().eval(), torch.randn(SHAPE)
    assert [site.calls for site in groupfx.find(model, x, passes=SPLIT)] == [1]
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert result.report.model is not None
    assert len(result.report.model.outputs) == 2
    torch.testing.assert_close([*result.model(x)], [*model(x)])


class GivesNested(One):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nested.as_nested_tensor(list(self.conv(x)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_compared_part_by_part() -> None:
    result = groupfx.rewrite(GivesNested().eval(), torch.randn(SHAPE), passes=SPLIT)
    assert result.report.verified
    assert count_grouped_calls(result.model, (torch.randn(SHAPE),)).total() == 0
