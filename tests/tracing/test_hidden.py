"""Grouped convolutions that no graph and no module shows, and that run all the same."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import groupfx
from groupfx.passes import SplitGroupedConv
from tests.traits.trait import SHAPE, One, Weighted

SPLIT = [SplitGroupedConv()]


@torch.library.custom_op("groupfx_tests::conv", mutates_args=())
def conv_operator(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, groups=3)


@conv_operator.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2] - 2, x.shape[3] - 2)


class InAnOperator(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return conv_operator(x, self.weight)


def exported(model: nn.Module) -> Any:
    return torch.export.export(model.eval(), (torch.randn(SHAPE),))


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (InAnOperator, "convolution", "inside the operator groupfx_tests::conv"),
        (lambda: exported(InAnOperator()), "conv", "inside groupfx_tests.conv"),
    ],
    ids=["operator", "program"],
)
def test_it_is_a_site_with_its_place(make: Any, name: str, said: str) -> None:
    model, x = make(), torch.randn(SHAPE)
    (site,) = groupfx.find(model, x, passes=SPLIT)
    assert (site.name, site.calls, site.taken) == (name, 1, False)
    assert said in str(site.reason)
    assert "test_hidden.py" in str(site.reason)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert [(each.name, said in each.reason) for each in result.report.skipped] == [(name, True)]


def test_what_an_operator_of_the_users_multiplies_is_counted() -> None:
    result = groupfx.rewrite(InAnOperator(), torch.randn(SHAPE), passes=SPLIT)
    assert result.report.complexity is not None
    assert result.report.complexity.before.macs == 9 * 2 * 9 * 5 * 9


@pytest.mark.parametrize("packet", ["convolution", "_convolution", "_convolution_mode"])
def test_a_packet_of_operators_is_rewritten(packet: str) -> None:
    class Called(Weighted):
        def forward(self, x: Tensor) -> Tensor:
            sides = ([1, 1], [0, 0], [1, 1])
            call = getattr(torch.ops.aten, packet)
            if packet == "_convolution_mode":
                return call(x, self.weight, self.bias, [1, 1], "same", [1, 1], 3)
            flags = (False, False, True, True) if packet == "_convolution" else ()
            return call(x, self.weight, self.bias, *sides, False, [0, 0], 3, *flags)

    result = groupfx.rewrite(Called(), torch.randn(SHAPE), passes=SPLIT)
    assert (result.report.way, len(result.report.sites)) == ("trace", 1)


def hooked_graph() -> nn.Module:
    graph = fx.symbolic_trace(One())
    graph.register_forward_hook(lambda module, args, output: output * 2)
    return graph


@pytest.mark.parametrize("make", [hooked_graph])
def test_a_graph_that_somebody_added_to_is_more_than_its_graph(make: Any) -> None:
    model, x = make().eval(), torch.randn(SHAPE)
    result = groupfx.rewrite(model, x, passes=SPLIT)
    assert (result.report.way, len(result.report.sites)) == ("modules", 1)
    torch.testing.assert_close(result.model(x), model(x))


def test_the_slow_kernel_has_its_macs() -> None:
    class Slow(One):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ones(4, 6, 3, 3, dtype=x.dtype)
            return self.conv(x).sum() + torch._C._nn.thnn_conv2d(x, weight, [3, 3]).sum()

    (site,) = groupfx.find(Slow(), torch.randn(SHAPE), passes=SPLIT)
    assert site.taken


def test_arguments_that_a_graph_does_not_take_are_said() -> None:
    graph = exported(One()).graph_module
    with pytest.raises(groupfx.errors.UsageError, match="missing a required argument"):
        groupfx.find(graph, torch.randn(SHAPE))
