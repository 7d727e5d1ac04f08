"""Sites that run in one dtype alone: compared in that, and wrong ones are caught there too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.nn.intrinsic.qat as fused
import torch.ao.nn.qat as qat
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig

import groupfx
from groupfx.errors import MismatchError
from groupfx.verify import SiteVerdict, compare_regions
from tests.models.zoo import GroupedCalls
from tests.verify.hand_split import chain
from tests.verify.test_wrong_rewrites import SwappedBranches

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPE = (2, 4, 7, 11)


class RoundedInOneDtype(torch.autograd.Function):
    """As a kernel that is there for one dtype: to steps of 1/64, the gradient goes through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype != dtype:
            raise RuntimeError(f"expected {dtype}, got {x.dtype}")
        return (x * 64).round() / 64

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


def unchanged(y: Tensor, training: bool) -> Tensor:
    return y


class ConvOfRoundedWeight(nn.Module):
    """A convolution with a rounded weight, and something behind it."""

    def __init__(
        self, dtype: torch.dtype, behind: Callable[[Tensor, bool], Tensor] = unchanged
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator).to(dtype))
        self.bias = nn.Parameter(torch.randn(6, generator=generator).to(dtype))
        self.behind, self.dtype = behind, dtype

    def forward(self, x: Tensor) -> Tensor:
        weight = RoundedInOneDtype.apply(self.weight, self.dtype)
        return self.behind(F.conv2d(x, weight, self.bias), self.training)


def compared(dtype: torch.dtype, behind: Callable[[Tensor, bool], Tensor]) -> SiteVerdict:
    sides = [chain({"conv": ConvOfRoundedWeight(dtype, change)}) for change in (unchanged, behind)]
    return compare_regions(*sides, [SHAPE], rows={})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_right_one_passes_and_says_how_it_was_compared(dtype: torch.dtype) -> None:
    verdict = compared(dtype, lambda y, training: y + 0)
    assert verdict.ok, verdict.reason
    assert verdict.proof == f"rounding bound in {str(dtype).removeprefix('torch.')}"
    assert verdict.chance is None
    assert (verdict.train_ok, verdict.gradients_ok, verdict.own_dtype_ok) == (True, True, True)


WRONG: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "sign of a channel": lambda y, _: torch.cat([-y[:, :1], y[:, 1:]], 1),
    "channels in another order": lambda y, _: y.flip(1),
    "a tenth more": lambda y, _: y * 1.1,
    "clamped": lambda y, _: y.clamp(-200, 200),
    "another large batch": lambda y, _: y * 2 if len(y) > 3 else y,
    "another large width": lambda y, _: y * 2 if y.shape[-1] > 20 else y,
    "in train mode": lambda y, training: y * 2 if training else y,
    "no gradient": lambda y, _: y.detach(),
    "twice the gradient": lambda y, _: y * 2 - y.detach(),
    "another dtype": lambda y, _: y.double(),
    "fails": lambda y, _: y[:, :, :, 99:].reshape(1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_one_is_caught(wrong: str, dtype: torch.dtype) -> None:
    verdict = compared(dtype, WRONG[wrong])
    assert not verdict.ok
    assert "cannot be run on its own" not in str(verdict.reason)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_precision_lost_in_float32_is_caught(dtype: torch.dtype) -> None:
    assert not compared(torch.float32, lambda y, _: y.to(dtype).float()).ok


class TrainedForQuantisation(nn.Module):
    """A grouped convolution that is trained for quantisation, behind an ordinary one."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        qconfig = get_default_qat_qconfig("fbgemm")
        self.conv = kind(4, 6, 3, groups=2, qconfig=qconfig)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.first(x)).relu()


def quantised(kind: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = TrainedForQuantisation(kind)
    model(torch.randn(SHAPE))  # an observer that saw nothing has no scale
    return model.eval()


@pytest.mark.parametrize("kind", [qat.Conv2d, fused.ConvReLU2d], ids=lambda kind: kind.__name__)
def test_what_is_trained_for_quantisation_is_rewritten(kind: Callable[..., nn.Module]) -> None:
    model, x = quantised(kind), torch.randn(SHAPE)
    result = groupfx.rewrite(model, (x,))
    (site,) = result.report.sites
    assert site.verdict is not None
    # Its class makes the weight, as before; what is rewritten is the call that is given it.
    assert site.verdict.proof == "whole numbers"
    torch.testing.assert_close(result.model(x), model(x))
    with GroupedCalls() as calls:
        result.model.train()(x).sum().backward()
    assert not calls.kinds


@pytest.mark.parametrize("kind", [qat.Conv2d], ids=lambda kind: kind.__name__)
def test_a_wrong_rewrite_of_it_is_caught(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(MismatchError, match="conv does not compute what it did: in whole numbers"):
        groupfx.rewrite(quantised(kind), torch.randn(SHAPE), passes=[SwappedBranches()])
