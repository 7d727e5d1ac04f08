"""What PLiNIO's own trace of a model cannot do is told before PLiNIO does."""

import torch
from torch import Tensor, nn

import groupfx
from groupfx.toolchains.plinio import CHANNEL, LAYER, PIT, SUPERNET


def test_a_model_whose_trace_does_not_run_is_one_obstacle() -> None:
    class GivesTheForce(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self.conv(x).square().sum(), x)
            return gradient

    x = torch.randn(2, 6, 5, 7)
    report = groupfx.rewrite(GivesTheForce(), x, target="plinio").report
    (found,) = report.obstacles
    assert (len(report.sites), set(found.methods)) == (1, {PIT, LAYER, CHANNEL, SUPERNET})
    assert "a trace of it does not run (RuntimeError: element 0 of tensors" in found.reason
