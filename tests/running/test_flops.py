"""FLOPs in the convention of the FLGC paper's code, against products written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.errors import ModelError
from groupfx.nn import Flgc2d
from groupfx.running.flops import Flops, count_flops

X = torch.randn(2, 6, 7, 9)  # 2 * 6 * 7 * 9 = 756 elements


class CountedFunctions(nn.Module):
    """Functions of torch, with arguments by position and by name."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(input=x, weight=torch.ones(10, 3, 2, 2), groups=2)
        x = F.relu6(torch.conv2d(x, torch.ones(5, 10, 1, 1)))
        return F.linear(x, weight=torch.ones(4, 8))


# What a layer makes of X, counted by hand.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Flops]] = {
    "conv": (lambda: nn.Conv2d(6, 10, 3), Flops(convolutions=2 * 10 * 5 * 7 * 6 * 9)),
    "conv-padded": (
        lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect", bias=False),
        Flops(convolutions=2 * 10 * 7 * 9 * 6 * 9),
    ),
    "grouped": (
        lambda: nn.Conv2d(6, 10, 3, stride=2, groups=2),
        Flops(convolutions=2 * 10 * 3 * 4 * 3 * 9),
    ),
    "depthwise": (lambda: nn.Conv2d(6, 6, (3, 1), groups=6), Flops(convolutions=2 * 6 * 5 * 9 * 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(6, 10, 2, stride=2, groups=2),
        Flops(convolutions=756 * 5 * 4),
    ),
    "learned": (
        lambda: Flgc2d(6, 10, 3, group_num=4),
        Flops(convolutions=2 * 10 * 5 * 7 * 6 * 9),
    ),
    "linear": (lambda: nn.Linear(9, 5), Flops(linear=2 * 6 * 7 * 5 * 9)),
    "batch-norm": (lambda: nn.BatchNorm2d(6), Flops(batch_norm=2 * 756)),
    "relu6": (nn.ReLU6, Flops(relu6=756)),
    "relu6-in-place": (lambda: nn.ReLU6(inplace=True), Flops(relu6=756)),
    "hardtanh-as-relu6": (lambda: nn.Hardtanh(0, 6), Flops(relu6=756)),
    "hardtanh": (nn.Hardtanh, Flops()),
    "not-counted": (lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid()), Flops()),
    "functions": (
        CountedFunctions,
        Flops(2 * 10 * 6 * 8 * 3 * 4 + 2 * 5 * 6 * 8 * 10, 2 * 5 * 6 * 4 * 8, 0, 2 * 5 * 6 * 8),
    ),
}


@pytest.mark.parametrize(("make", "expected"), LAYERS.values(), ids=LAYERS)
def test_layers(make: Callable[[], nn.Module], expected: Flops) -> None:
    assert count_flops(make(), X.clone()) == expected


def test_other_dimensions() -> None:
    line = nn.Conv1d(3, 5, 2)
    assert count_flops(line, torch.randn(1, 3, 8)) == Flops(convolutions=5 * 7 * 3 * 2)
    volume = nn.Conv3d(3, 5, 2)
    assert count_flops(volume, torch.randn(1, 3, 4, 5, 6)) == Flops(convolutions=5 * 60 * 3 * 8)


def test_the_total_counts_everything_once() -> None:
    assert Flops(convolutions=1000, linear=200, batch_norm=30, relu6=4).total == 1234


@pytest.mark.parametrize("form", ["trace", "export"])
def test_graphs_count_as_the_model_does(form: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(6, 10, 3, groups=2),
        nn.BatchNorm2d(10),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(350, 3),
    ).eval()
    if form == "export":
        graph: Any = torch.export.export(model, (X,)).module()
    else:
        graph = torch.fx.symbolic_trace(model)
    expected = Flops(2 * 350 * 27, 2 * 350 * 3, 2 * 700, 700)
    assert count_flops(model, X) == count_flops(graph, X) == expected


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(6), nn.Dropout())
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_flops(model, {"input": X})
    assert [module.training for module in model] == [True, False]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Conv2d cannot be run on the inputs: .*; give inputs"):
        count_flops(nn.Conv2d(5, 10, 3), X)
