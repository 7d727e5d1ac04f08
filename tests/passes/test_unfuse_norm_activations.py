"""Fused norms come apart where they are what they look like, and in front of a split."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import groupfx
from groupfx.passes import UnfuseNormActivations
from groupfx.testing import check_pass
from tests.passes.norm_activations import (
    ABN,
    ActFirst,
    BatchNormAct2d,
    Normed,
    Scaled,
    StatisticsKept,
)

X = (torch.randn(2, 6, 5, 7),)


def parts(model: nn.Module) -> list[str]:
    return [type(part).__name__ for part in model.get_submodule("norm").children()]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: BatchNormAct2d(10), ["BatchNorm2d", "ReLU"], id="subclass"),
        pytest.param(
            lambda: BatchNormAct2d(10, nn.SiLU), ["BatchNorm2d", "SiLU"], id="another activation"
        ),
        pytest.param(lambda: BatchNormAct2d(10, nn.Identity), ["BatchNorm2d"], id="no activation"),
        pytest.param(lambda: ABN(10), ["BatchNorm2d", "LeakyReLU"], id="activation by name"),
        pytest.param(lambda: ABN(10, "identity"), ["BatchNorm2d"], id="named identity"),
    ],
)
def test_a_fused_norm_becomes_its_parts(make: Callable[[], nn.Module], expected: list[str]) -> None:
    result = check_pass(UnfuseNormActivations(), Normed(make()), X, sites=1)
    assert result.report.way == "trace"
    assert parts(result.model) == expected
    assert all(
        type(part).__module__.startswith("torch.nn")
        for part in result.model.modules()
        if part is not result.model
    )


def test_without_the_pass_no_trace_goes_through_it() -> None:
    assert groupfx.rewrite(Normed(BatchNormAct2d(10)), X).report.way == "modules"


def test_a_split_takes_the_norm_into_its_branches() -> None:
    passes = ["unfuse-norm-activations", "split-grouped-conv"]
    model = Normed(BatchNormAct2d(10))
    result = groupfx.rewrite(model, X, passes=passes)
    (site,) = result.report.sites
    assert site.after.endswith("+ BatchNorm")
    assert result.state_dict_map.entries["norm.bn.1.weight"].key == "norm.weight"
    back = result.state_dict_map.to_original()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_a_norm_that_is_called_twice_is_one_still() -> None:
    class CalledTwice(Normed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = self.norm(self.conv(x))
            return self.last(self.norm(value))

    result = check_pass(UnfuseNormActivations(), CalledTwice(BatchNormAct2d(10)), X, sites=2)
    assert parts(result.model) == ["BatchNorm2d", "ReLU"]


@pytest.mark.parametrize(
    "wrong", [Scaled, ActFirst, StatisticsKept], ids=lambda kind: kind.__name__
)
def test_what_computes_something_else_stays(wrong: type[nn.Module]) -> None:
    result = groupfx.rewrite(Normed(wrong(10)), X, passes=["unfuse-norm-activations"])
    assert not result.report.respelled
    (left,) = result.report.skipped
    assert f"{wrong.__name__} computes something else" in left.reason


def test_a_hook_keeps_it_whole() -> None:
    model = Normed(BatchNormAct2d(10))
    model.norm.register_forward_hook(lambda module, given, value: None)
    result = groupfx.rewrite(model, X, passes=["unfuse-norm-activations"], way="modules")
    assert not result.report.respelled
    assert "opened by its modules" in result.report.skipped[0].reason
