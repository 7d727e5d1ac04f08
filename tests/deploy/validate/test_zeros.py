"""Zeros as input: what normalises rounding alone is held against what rounding does to the model.

An instance norm of what is the same everywhere divides a rounding by the root of eps, 316 times
larger; several in a row make it as large as the output. Inputs one rounding from zero are zero.
"""

import numpy as np
import pytest
import torch
from torch import nn

from groupfx.deploy import TorchSide
from groupfx.deploy.validate.nearby import neighbours
from groupfx.deploy.validate.runs import Run
from groupfx.running.inputs import ExampleInputs


@pytest.mark.parametrize(("name", "ordinary"), [("zero", False), ("the given inputs", True)])
def test_what_is_near_a_run_gives_other_roundings(name: str, ordinary: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.InstanceNorm2d(3), nn.Conv2d(3, 2, 1))
    x = torch.randn(1, 2, 5, 7)
    side = TorchSide.of(model.eval(), ExampleInputs.of(x), "net")
    (given,) = side.feeds
    run = Run(name, ordinary, {given: x.numpy() if ordinary else np.zeros_like(x.numpy())})
    (plain,) = side.native(run.feeds, torch.float32).values()
    found = [
        next(iter(near.native(feeds, torch.float32).values()))
        for near, feeds in neighbours(side, run, torch.float32)
    ]
    moved = [each for each in found if not np.array_equal(each, plain)]
    assert len(moved) >= 4
    for each in moved:
        np.testing.assert_allclose(each, plain, atol=1e-4)
