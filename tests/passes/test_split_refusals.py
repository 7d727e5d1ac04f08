"""What `split-grouped-conv` refuses, and bad passes, options and models: each with its reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import ModelError, RewriteError, UsageError

X = torch.randn(2, 6, 11, 7)


def two_kinds() -> nn.Module:
    """A grouped and a depthwise convolution."""
    return nn.Sequential(nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 3, groups=6))


def hook_on_weight(model: nn.Module) -> None:
    model[0].weight.register_hook(lambda g: 2 * g)


REFUSALS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "forward-hook": (lambda m: m[0].register_forward_hook(lambda *_: None), "forward hooks"),
    "pre-hook": (lambda m: m[0].register_forward_pre_hook(lambda *_: None), "forward pre hooks"),
    "backward-hook": (
        lambda m: m[0].register_full_backward_hook(lambda *_: None),
        "backward hooks",
    ),
    "hook-on-weight": (hook_on_weight, "gradient hook on weight"),
}


@pytest.mark.parametrize(("add", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_hooks_are_a_reason_to_skip(add: Callable[[nn.Module], Any], reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=2))
    add(model)
    result = groupfx.rewrite(model, (X,))
    (skipped,) = result.report.skipped
    assert reason in skipped.reason
    assert "remove them first" in skipped.reason
    assert torch.equal(result.model(X), model(X))


def test_a_named_site_that_is_refused_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6))
    with pytest.raises(RewriteError, match="0 cannot be rewritten: 2-d depthwise"):
        groupfx.rewrite(model, (X,), passes=["split-grouped-conv:only=0"])


def test_a_model_that_cannot_be_copied() -> None:
    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("a lock inside")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    model = Uncopyable(nn.Conv2d(6, 6, 3, groups=2))
    with pytest.raises(ModelError, match=r"cannot be copied.*a lock inside.*inplace=True"):
        groupfx.rewrite(model, (X,))
    weight = model[0].weight.detach().clone()
    result = groupfx.rewrite(model, (X,), inplace=True)
    assert len(result.report.sites) == 1
    assert result.report.ok
    assert torch.equal(result.model.get_submodule("0.1").weight, weight[3:])


def test_what_cannot_be_copied_and_can_be_traced_is_a_graph_of_its_own() -> None:
    class Locked(nn.Sequential):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("a lock inside")

    model = Locked(nn.Conv2d(6, 6, 3, groups=2))
    result = groupfx.rewrite(model, (X,))
    assert (result.report.way, len(result.report.sites)) == ("trace", 1)
    torch.testing.assert_close(result.model(X), model(X))
    assert result.model.get_submodule("0.0").weight is not model[0].weight


def test_a_lazy_module_is_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(6, 3, groups=2))
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet"):
        groupfx.rewrite(model, (X,))


BAD_OPTIONS = {
    "unknown-pass": ("split-gruoped-conv", "did you mean 'split-grouped-conv'"),
    "unknown-option": ("split-grouped-conv:max_group=2", "has no option 'max_group'"),
    "bad-choice": ("split-grouped-conv:depthwise=maybe", "none of auto, keep, split"),
    "bad-number": ("split-grouped-conv:max_groups=few", "'few' is not int"),
    "too-small": ("split-grouped-conv:max_groups=1", "max_groups=1"),
    "no-value": ("split-grouped-conv:depthwise", "is not option=value"),
    "twice": ("split-grouped-conv:depthwise=keep,depthwise=split", "given 2 times"),
}


@pytest.mark.parametrize(("text", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_passes_and_options(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        groupfx.rewrite(two_kinds(), (X,), passes=[text])


def test_wrong_input_shape_is_said() -> None:
    with pytest.raises(ModelError, match=r"does not run on an input of shape \[2, 5, 11, 7\]"):
        groupfx.rewrite(two_kinds(), (X[:, :5],))
