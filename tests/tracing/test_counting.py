"""One run of a model, watched: what it leaves behind is nothing."""

import torch
from torch import nn
from torch.nn.modules import module as hooks

from groupfx.running.inputs import ExampleInputs
from groupfx.tracing.counting import count_calls


def test_no_hook_on_all_modules_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU())
    before = dict(hooks._global_forward_hooks_with_kwargs)
    counted = count_calls(model, ExampleInputs.of(torch.randn(2, 4, 7, 5)))
    assert [calls.count for calls in counted.modules.values()] == [1]
    assert not hooks._has_any_global_hook()
    assert hooks._global_forward_hooks_with_kwargs == before
