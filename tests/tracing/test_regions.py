"""Convolutions that an operator of a graph runs: proved each in its own graph, and kept in it."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting.site import Site
from groupfx.running.inputs import ExampleInputs
from groupfx.tracing import open_model
from groupfx.tracing.graphs import inner_graphs
from tests.thinning import one_in
from tests.traits.test_traits import built
from tests.traits.trait import SHAPE, TRAITS, grouped

SPLIT = [SplitGroupedConv(depthwise="split")]


class UntrainedEncoder(nn.Module):
    """An encoder that is not trained, and a head that is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = grouped(), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.conv(x)
        return self.head(y)


class Chooses(nn.Module):
    """A grouped convolution in each branch, one of which runs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = grouped(), grouped(groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.one, self.two, (x,))


def exported(model: nn.Module) -> Any:
    return torch.export.export(model.eval(), (torch.randn(SHAPE),))


def test_what_has_no_gradient_has_none_afterwards() -> None:
    program = exported(UntrainedEncoder())
    original = program.module()
    result = groupfx.rewrite(program, passes=SPLIT).model
    x = torch.randn(SHAPE)
    for model in (original, result):
        model(x).square().sum().backward()
    assert original.conv.weight.grad is None
    assert result.conv.weight.grad is None
    torch.testing.assert_close(result.head.weight.grad, original.head.weight.grad)


def test_an_export_of_ours_keeps_what_has_no_gradient() -> None:
    model = UntrainedEncoder()
    result = groupfx.rewrite(model, torch.randn(SHAPE), passes=SPLIT, way="export").model
    result(torch.randn(SHAPE)).sum().backward()
    assert result.conv.weight.grad is None
    assert result.head.weight.grad is not None


@pytest.mark.long
def test_both_branches_are_split_and_are_what_they_were() -> None:
    model = Chooses().eval()
    result = groupfx.rewrite(exported(model), passes=SPLIT)
    assert [site.verdict is not None and site.verdict.ok for site in result.report.sites] == [
        True
    ] * 2
    for sign in (1, -1):
        x = sign * torch.rand(SHAPE)
        torch.testing.assert_close(result.model(x), model(x))
    left = [
        node
        for _, inner in inner_graphs(result.model)
        for node in inner.graph.nodes
        if node.kwargs.get("groups", 1) != 1
    ]
    assert left == []


@pytest.mark.parametrize("branch", one_in(2, (1, 0)))
def test_a_branch_that_does_not_run_is_proved_too(
    branch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input channels in another order: no run of the example would tell."""
    original = Site.channels

    def wrong(site: Site, value: fx.Node, part: Any, axis: int = 1) -> fx.Node:
        if site.fragment.is_inner and site.spec.groups == (3, 2)[branch]:
            value = site.graph.call_function(torch.flip, (value, [1]))
        return original(site, value, part, axis)

    monkeypatch.setattr(Site, "channels", wrong)
    with pytest.raises(MismatchError) as raised:
        groupfx.rewrite(exported(Chooses()), passes=SPLIT)
    wrong_ones = [s for s in raised.value.report.sites if s.verdict and not s.verdict.ok]
    assert [site.spec.groups for site in wrong_ones] == [(3, 2)[branch]]


def test_a_change_inside_a_region_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside the sites of an inner graph is compared as all else."""
    original = Site.concat

    def wrong(site: Site, values: Any, axis: int = 1) -> fx.Node:
        for node in site.graph.nodes:
            if node.target is torch.ops.aten.relu.default:
                node.target = torch.ops.aten.sigmoid.default
        return original(site, values, axis)

    class Behind(UntrainedEncoder):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.conv(x).relu()
            return self.head(y)

    monkeypatch.setattr(Site, "concat", wrong)
    with pytest.raises(MismatchError, match="relu"):
        groupfx.rewrite(exported(Behind()), passes=SPLIT)


def test_an_example_program_is_the_callers_own_in_place() -> None:
    module = exported(UntrainedEncoder()).module()
    x = torch.randn(SHAPE)
    expected = module(x)
    result = groupfx.rewrite(module, x, passes=SPLIT, inplace=True)
    assert result.report.ok
    torch.testing.assert_close(result.model(x), expected)


@pytest.mark.long
def test_how_often_a_loop_ran_is_known() -> None:
    model, inputs = built(TRAITS["exported-while-loop"])
    (site,) = groupfx.find(model, inputs, passes=SPLIT)
    assert site.calls == 3


@pytest.mark.long
def test_a_branch_that_did_not_run_was_called_by_nobody() -> None:
    found = groupfx.find(exported(Chooses()), torch.rand(SHAPE), passes=SPLIT)
    assert [(site.name, site.calls) for site in found] == [("one", 1), ("two", 0)]


@pytest.mark.long
def test_it_is_opened_once_more() -> None:
    program = exported(Chooses())
    first = groupfx.rewrite(program, passes=SPLIT)
    again = groupfx.rewrite(first.model, torch.randn(SHAPE), passes=SPLIT)
    assert not again.report.sites
    opened = open_model(first.model, ExampleInputs.of(torch.randn(SHAPE)))
    assert len(opened.fragments) == 3
