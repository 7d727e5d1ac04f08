"""The container in a convolution's place, through pickle: still one, with fields and weight."""

import copy
import pickle

import torch
from torch import nn

import groupfx
from groupfx.nn.swapped import SwappedConv


def test_a_container_is_one_behind_a_pickle() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    x = torch.randn(2, 4, 5, 7)
    swapped = groupfx.rewrite(model, x, way="modules").model
    for again in (pickle.loads(pickle.dumps(swapped)), copy.deepcopy(swapped)):
        assert isinstance(again[0], SwappedConv)
        assert again[0].groups == 2
        assert torch.equal(again[0].weight, model[0].weight)
        assert torch.equal(again(x), swapped(x))
        assert again.state_dict().keys() == swapped.state_dict().keys()
