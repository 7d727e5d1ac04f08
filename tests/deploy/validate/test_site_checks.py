"""The limits of a site, at their boundary and from both sides: by channel, and by element."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupfx.convs.spec import ConvSpec
from groupfx.deploy.graph.pads import Window
from groupfx.deploy.validate.onnx_sites import Region
from groupfx.deploy.validate.site_checks import SiteCheck, check_site
from groupfx.deploy.validate.site_functions import SiteFunction, torch_site_functions
from groupfx.running.inputs import ExampleInputs

UNIT = 2.0**-24
REGION = Region("conv", "x", "y")


def pointwise(inputs: int) -> SiteFunction:
    """A 1x1 convolution of ones, one filter: its output and its magnitudes are sums of inputs."""
    ones = ((1,), (1,), (0,), (1,), (0,))
    spec = ConvSpec(1, False, inputs, 1, 1, *ones, "zeros", bias=False)
    weight = torch.ones(1, inputs, 1, dtype=torch.float64)
    return SiteFunction("conv", spec, weight, None, Window.of(spec))


def judged(function: SiteFunction, error: float, *, everywhere: bool) -> SiteCheck:
    """The site on inputs of 1 / inputs, off by `error` everywhere, or at one of 4,096 places."""
    inputs = function.spec.in_channels
    x = np.full((1, inputs, 4096), 1 / inputs)
    y = np.ones((1, 1, 4096))
    if everywhere:
        y += error
    else:
        y[0, 0, 77] += error
    return check_site(function, REGION, {"x": x, "y": y}, torch.float32, "r")


@pytest.mark.parametrize(("inputs", "factor"), [(2, 4.0), (1024, None)])
@pytest.mark.parametrize(("share", "ok"), [(0.99, True), (1.01, False)])
def test_a_channel_may_be_off_by_so_much(
    inputs: int, factor: float | None, share: float, ok: bool
) -> None:
    """max(4, sqrt(K)) u (|w| * |x|), root mean square over a channel; the magnitude here is 1."""
    function = pointwise(inputs)
    limit = (factor or math.sqrt(function.terms)) * UNIT
    found = judged(function, share * limit, everywhere=True)
    assert found.ok is ok
    assert found.ratio == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(("share", "ok"), [(0.99, True), (1.01, False)])
@pytest.mark.parametrize("everywhere", [True, False])
def test_of_nothing_so_much_may_be_left(everywhere: bool, share: float, ok: bool) -> None:
    """The least normal number of float32: a runtime may flush what is smaller to 0."""
    y = np.zeros((1, 1, 4096))
    y[..., slice(None) if everywhere else 77] = share * 2.0**-126
    found = check_site(
        pointwise(2), REGION, {"x": np.zeros((1, 2, 4096)), "y": y}, torch.float32, "r"
    )
    assert found.ok is ok
    assert found.ratio == pytest.approx(share)
    assert not found.seen


@pytest.mark.parametrize(("share", "ok"), [(0.24, False), (0.26, True)])
@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_what_must_be_finite(lost: float, share: float, ok: bool) -> None:
    """What lies in the lower half of the range; two inputs of 0.26 of it add up to more."""
    x = np.full((1, 2, 7), share * float(torch.finfo(torch.float32).max))
    y = x.sum(1, keepdims=True)
    y[0, 0, 5] = lost
    found = check_site(pointwise(2), REGION, {"x": x, "y": y}, torch.float32, "r")
    assert found.ok is ok
    assert found.index == (0, 0, 0 if ok else 5)
    assert (found.reason == "1 values are not finite where the reference is") is not ok


@pytest.mark.parametrize(("share", "ok"), [(0.99, True), (1.01, False)])
def test_an_element_may_be_off_by_so_much(share: float, ok: bool) -> None:
    """2 g_K (|w| * |x|), g_K = K u / (1 - K u)."""
    function = pointwise(2)
    terms = function.terms
    limit = 2 * terms * UNIT / (1 - terms * UNIT)
    found = judged(function, share * limit, everywhere=False)
    assert found.ok is ok
    assert found.ratio == pytest.approx(share, rel=1e-6)
    assert found.index == (0, 0, 77)


class Standardised(nn.Conv1d):
    """A convolution of a standardised weight, as in BiT and NFNet."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, eps=1e-6).reshape_as(self.weight)
        return F.conv1d(x, weight)


@pytest.mark.parametrize(("wrong", "ok"), [(0.0, True), (2e-6, False)])
def test_a_weight_that_cancels_is_off_by_its_own_rounding(wrong: float, ok: bool) -> None:
    """Where an element of it is small, that is much of it, and one input alone shows it."""
    model = Standardised(8, 64, 1, bias=False).eval()
    inputs = ExampleInputs.of(torch.eye(8).reshape(8, 8, 1))
    exported = torch.export.export(model, inputs.args, strict=False)
    (function,), _ = torch_site_functions(model, inputs, lambda: exported)
    rows = model.weight.detach()
    again = (rows - rows.mean(1, keepdim=True)) / (
        rows.var(1, keepdim=True, correction=0) + 1e-6
    ).sqrt()
    again[3] += wrong
    x, y = (t.numpy() for t in (inputs.args[0], F.conv1d(inputs.args[0], again)))
    region = Region(function.name, "x", "y")
    assert check_site(function, region, {"x": x, "y": y}, torch.float32, "r").ok is ok
