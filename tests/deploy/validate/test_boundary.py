"""The limits as `validate` applies them: just within them is the same, beyond them is not.

The reference is off by a known amount where it runs in float32, the candidate by a multiple of it:
both round to a grid, as adding and taking away a large number does, which leaves an error of
step / sqrt(12), root mean square. In float64 that grid is too fine to be seen.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import groupfx

SHAPE = (2, 3, 24, 24)
STEP = 2.0**-10
UNIT = 2.0**-24

Condition = Callable[[Tensor], Tensor]


def on_grid(y: Tensor, step: float, share: float = 1.0) -> Tensor:
    """`y` rounded to multiples of `share * step`, in float32 alone; `step` is a power of 2."""
    large = 1.5 * 2**23 * step
    return ((y / share + large) - large) * share


class Rounded(nn.Module):
    """tanh, whose largest value is near 1 whatever comes in, on a grid where `when` says so."""

    def __init__(self, share: float = 1.0, when: Condition | None = None) -> None:
        super().__init__()
        self.share = share
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        plain, off = on_grid(y, STEP), on_grid(y, STEP, self.share)
        return off if self.when is None else torch.where(self.when(x), off, plain)


def negative(x: Tensor) -> Tensor:
    """Whether these are the negative ones of the inputs that are made to hurt."""
    return (x < 0).all()


class Clamped(nn.Module):
    """Exact in float32; on a grid of `step` where both ends, -1 and 1, are reached."""

    def __init__(self, step: float | None = None) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y = x.clamp(-1, 1)
        if self.step is None:
            return y + 0.0
        whole = (y.amax() == 1) & (y.amin() == -1)
        return torch.where(whole, on_grid(y, self.step), y)


def is_same(reference: nn.Module, candidate: nn.Module) -> bool:
    found = groupfx.validate(reference, candidate, (torch.randn(SHAPE),))
    (check,) = found.outputs
    assert check.ok is found.ok
    assert found.ok or "root-mean-square error" in str(check.reason)
    return found.ok


@pytest.mark.parametrize(("share", "ok"), [(3.7, True), (4.4, False)])
def test_four_times_the_original_s_error_passes_and_more_does_not(share: float, ok: bool) -> None:
    assert is_same(Rounded(), Rounded(share)) is ok


@pytest.mark.parametrize(("share", "ok"), [(29.0, True), (36.0, False)])
def test_thirty_two_times_on_inputs_that_are_made_to_hurt(share: float, ok: bool) -> None:
    assert is_same(Rounded(), Rounded(share, negative)) is ok


@pytest.mark.parametrize(("step", "ok"), [(4 * UNIT, True), (8 * UNIT, False)])
def test_of_an_exact_original_one_rounding_is_left(step: float, ok: bool) -> None:
    """Two thirds of the values lie between the ends: rms sqrt(2 / 3) step / sqrt(12)."""
    assert is_same(Clamped(), Clamped(step)) is ok


# One site, in a file: its bias is moved by what a channel may be off, worked out here.


class OneSite(nn.Module):
    """3 x 3 taps of 4 inputs a group and 5 more roundings: K = 41, and sqrt(K) is the factor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(8, 6, 3, groups=2)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def limit_of(model: OneSite) -> float:
    """sqrt(K) u rms(|w| * |x|) of channel 4, for x from a normal distribution.

    The mean square of a sum of independent terms is the square of its mean plus the variances of
    the terms; |x| has the mean sqrt(2 / pi) and the variance 1 - 2 / pi.
    """
    weight = model.conv.weight[4].detach().abs().double()
    square = 2 / np.pi * float(weight.sum()) ** 2 + (1 - 2 / np.pi) * float((weight**2).sum())
    return float(np.sqrt(41) * UNIT * np.sqrt(square))


@pytest.mark.parametrize(("share", "ok"), [(0.8, True), (1.25, False)])
def test_a_channel_of_a_site_may_be_off_by_so_much(share: float, ok: bool, tmp_path: Path) -> None:
    model, x, path = OneSite().eval(), (torch.randn(2, 8, 24, 24),), tmp_path / "m.onnx"
    groupfx.export(model, x, path)
    proto = onnx.load(path)
    (held,) = [tensor for tensor in proto.graph.initializer if tensor.name == "conv.bias"]
    bias = numpy_helper.to_array(held).copy()
    assert not bias.any()
    bias[4] = share * limit_of(model)
    held.CopyFrom(numpy_helper.from_array(bias, held.name))
    onnx.save(proto, path)
    (site,) = groupfx.validate(model, path, x).sites
    assert site.ok is ok
    assert site.ratio == pytest.approx(share, rel=0.15)
