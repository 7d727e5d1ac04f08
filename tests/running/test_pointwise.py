"""A convolution of one point is the product that it is computed as, and nothing else is taken."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.running import pointwise
from groupfx.running.float64 import Float64
from groupfx.running.pointwise import Pointwise, product_of


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "_LEAST", 1)
    monkeypatch.setattr(pointwise, "_BLOCK", 20)


# What is called, with a weight of 7 outputs and 5 inputs; an input without a batch comes last.
TAKEN: dict[str, tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "1d": (F.conv1d, (3, 5, 11), (), {}),
    "2d": (F.conv2d, (2, 5, 3, 7), (), {}),
    "3d": (F.conv3d, (2, 5, 3, 2, 4), (), {}),
    "stride": (F.conv2d, (2, 5, 6, 7), (2,), {}),
    "strides": (F.conv2d, (2, 5, 6, 7), ((2, 3), (0, 0)), {}),
    "same": (F.conv2d, (2, 5, 6, 7), (1, "same"), {}),
    "dilation": (F.conv2d, (2, 5, 6, 7), (), {"dilation": 3}),
    "one sample": (F.conv2d, (5, 6, 7), (), {}),
    "no sample": (F.conv2d, (0, 5, 6, 7), (), {}),
}


def _call(rank: int, shape: tuple[int, ...], bias: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(shape, generator=generator)
    weight = torch.randn((7, 5) + (1,) * rank, generator=generator)
    return given, weight, torch.randn(7, generator=generator) if bias else None  # type: ignore[return-value]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("function", "shape", "args", "named"), TAKEN.values(), ids=TAKEN)
def test_a_product_gives_what_the_convolution_does(
    function: Any, shape: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any], bias: bool
) -> None:
    rank = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}[function]
    given, weight, offset = _call(rank, shape, bias)
    given.requires_grad_()
    expected = function(given, weight, offset, *args, **named)
    taken = product_of(function, (given, weight, offset, *args), named)
    assert taken is not None
    with Pointwise():
        found = function(given, weight, offset, *args, **named)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, given, direction)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


OTHERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "kernel": (F.conv2d, (7, 5, 1, 3), {}),
    "groups": (F.conv2d, (10, 1, 1, 1), {"groups": 5}),
    "padding": (F.conv2d, (7, 5, 1, 1), {"padding": 1}),
    "one padding": (F.conv2d, (7, 5, 1, 1), {"padding": (0, 1)}),
    "transposed": (F.conv_transpose2d, (5, 7, 1, 1), {}),
    "linear": (F.linear, (7, 7), {}),
}


@pytest.mark.parametrize(("function", "weight", "named"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_such_convolution_is_left(
    function: Any, weight: tuple[int, ...], named: dict[str, Any]
) -> None:
    assert product_of(function, (torch.randn(2, 5, 6, 7), torch.randn(weight)), named) is None


def test_inputs_that_do_not_fit_are_refused_by_the_convolution_itself() -> None:
    with Pointwise(), pytest.raises(RuntimeError, match="to have 5 channels"):
        F.conv2d(torch.randn(2, 4, 6, 7), torch.randn(7, 5, 1, 1))


GROUPED = {
    "1d": nn.Conv1d(6, 9, 4, stride=3, padding=2, dilation=2, groups=3),
    "2d": nn.Conv2d(6, 9, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=3),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    "multiplier": nn.Conv2d(6, 12, 3, stride=2, groups=6),
    "same": nn.Conv2d(6, 6, 3, padding="same", groups=2),
    "reflect": nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", groups=2),
    "3d": nn.Conv3d(6, 6, 2, groups=2),
}


@pytest.mark.parametrize("conv", GROUPED.values(), ids=GROUPED)
def test_in_float64_groups_are_what_torch_makes_of_them(conv: nn.Module) -> None:
    rank = conv.weight.dim() - 2
    given = torch.randn(2, 6, *(11, 7, 5)[:rank], generator=torch.Generator().manual_seed(rank))
    expected = copy.deepcopy(conv).double()(given.double()).detach()
    with torch.no_grad(), Float64(conv, products=True):
        found = conv(given)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


BRANCHES = {
    "1x1": nn.Conv2d(384, 256, 1, groups=2),
    "1x1, strided": nn.Conv2d(384, 256, 1, stride=2, groups=2, bias=False),
    "3x3": nn.Conv2d(12, 18, 3, padding=1, groups=3),
    "multiplier": nn.Conv2d(6, 12, 3, stride=2, groups=6),
}


@pytest.mark.parametrize("conv", BRANCHES.values(), ids=BRANCHES)
def test_in_float64_groups_are_their_branches_to_the_bit(conv: nn.Conv2d) -> None:
    given, groups = torch.randn(2, conv.in_channels, 5, 7), conv.groups
    rest = conv.stride, conv.padding, conv.dilation
    biases = [None] * groups if conv.bias is None else conv.bias.chunk(groups)
    with torch.no_grad(), Float64(conv, products=True):
        whole = F.conv2d(given, conv.weight, conv.bias, *rest, groups)
        parts = zip(given.chunk(groups, 1), conv.weight.chunk(groups), biases, strict=True)
        branches = [F.conv2d(x, weight, bias, *rest) for x, weight, bias in parts]
    assert torch.equal(whole, torch.cat(branches, 1))


def test_in_float64_a_weight_is_taken_in_blocks() -> None:
    conv = nn.Conv2d(5, 7, 1)
    given = torch.randn(2, 5, 6, 7)
    expected = F.conv2d(given.double(), conv.weight.double(), conv.bias.double())
    with torch.no_grad(), Float64(conv, products=True):
        found = conv(given)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.detach(), rtol=1e-14, atol=1e-14)
    assert conv.weight.dtype == torch.float32
