"""Without a batch axis, channels lie in dimension 0: no order of dimension 1 is one of theirs."""

import pytest
import torch
from torch import nn

import groupfx
from groupfx.nn import ChannelGather
from tests.models.zoo import CASES

# Each mixes or names dimension 1 of an input without a batch axis, and no other test's does.
MIXING = {
    "pool": (nn.MaxPool2d(3, 1, 1), (6, 6, 6)),
    "pool-1d": (nn.AvgPool1d(3, 1, 1), (6, 6)),
    "pool-3d": (nn.AvgPool3d(3, 1, 1), (2, 6, 3, 3)),
    "pad": (nn.ConstantPad2d((0, 0, 1, -1), 1.0), (6, 6, 6)),
    "convolution": (nn.Conv2d(6, 6, 3, padding=1), (6, 6, 6)),
    "transposed": (nn.ConvTranspose1d(6, 6, 3, padding=1), (6, 6)),
    "instance-norm": (nn.InstanceNorm1d(6), (6, 6)),
}


@pytest.mark.filterwarnings("ignore:input's size at dim=0")
@pytest.mark.parametrize(("layer", "shape"), MIXING.values(), ids=MIXING)
def test_no_order_goes_through(layer: nn.Module, shape: tuple[int, ...]) -> None:
    gathers = ChannelGather([3, 1, 0, 5, 2, 4]), ChannelGather([2, 1, 4, 0, 5, 3])
    model = nn.Sequential(gathers[0], layer, gathers[1]).eval()
    result = groupfx.rewrite(model, torch.randn(shape), passes=["fold-permutations"])
    (fold,) = result.report.folds
    assert fold.after.count == fold.before.count == 2


def test_an_order_goes_through_with_a_batch_axis() -> None:
    gathers = ChannelGather([3, 1, 0, 5, 2, 4]), ChannelGather([2, 1, 4, 0, 5, 3])
    model = nn.Sequential(gathers[0], nn.MaxPool2d(3, 1, 1), gathers[1]).eval()
    result = groupfx.rewrite(model, torch.randn(2, 6, 6, 6), passes=["fold-permutations"])
    (fold,) = result.report.folds
    assert fold.after.count == 0


@pytest.mark.parametrize("name", ["unbatched", "bn-unbatched"])
def test_plinio_takes_such_a_model(name: str) -> None:
    case = CASES[name]
    assert groupfx.rewrite(case.build(), case.inputs(), target="plinio").report.ok
