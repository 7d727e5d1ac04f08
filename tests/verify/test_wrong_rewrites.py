"""Negative controls: passes that are wrong on purpose, each of which the check must catch.

They are run before anything that the check says is believed. Each is the real split with one
mistake in it.
"""

import dataclasses
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.passes import SplitGroupedConv
from groupfx.rewriting import Rewritten, Site
from groupfx.testing import check_pass
from tests.models import zoo


class SpoiledSplit(SplitGroupedConv):
    """A split with a mistake: `spoil` gets the site and what the right split made of it."""

    def rewrite(self, site: Site, description: object) -> Rewritten:
        return self.spoil(site, super().rewrite(site, description))

    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        raise NotImplementedError


def branches(site: Site, made: Rewritten) -> list[nn.Module]:
    """The convolutions of the branches."""
    nodes = list(made.output.all_input_nodes)
    found = []
    for node in nodes:
        while not isinstance(site.root.get_submodule(str(node.target)), nn.Conv2d):
            node = node.all_input_nodes[0]
        found.append(site.root.get_submodule(str(node.target)))
    return found


def instead(
    site: Site, made: Rewritten, function: Callable[..., object], *args: object
) -> Rewritten:
    return dataclasses.replace(
        made, output=site.graph.call_function(function, (made.output, *args))
    )


class SwappedBranches(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        parts = list(made.output.args[0])
        made.output.args = ([parts[1], parts[0], *parts[2:]],)
        return made


class SwappedInputs(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        slices = [n for n in site.graph.nodes if n.target is operator.getitem]
        first, second = slices[-2:]
        first.args, second.args = second.args, first.args
        return made


class LostBias(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        branches(site, made)[1].bias = None
        return made


class DoubledOutput(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        return instead(site, made, operator.mul, 2)


class DroppedStride(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        for branch in branches(site, made):
            branch.stride = (1, 1)
        return made


class LostGradient(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        detached = site.graph.call_method("detach", (made.output,))
        return dataclasses.replace(made, output=detached)


class FrozenBranch(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        """One branch reads a copy of its weight that no optimiser knows."""
        branch = branches(site, made)[0]
        weight = branch.weight.detach().clone()
        del branch.weight
        branch.register_buffer("weight", weight)
        return made


class OneUlp(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        weight = branches(site, made)[0].weight
        with torch.no_grad():
            flat = weight.view(-1)
            flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))
        return made


class WrongStatistics(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        norm = site.root.get_submodule(str(made.output.all_input_nodes[0].target))
        norm.running_mean.zero_()
        return made


class WrongMomentum(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        norm = site.root.get_submodule(str(made.output.all_input_nodes[0].target))
        norm.momentum = 0.3
        return made


class NotANumber(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        return instead(site, made, torch.div, 0)


CAUGHT: dict[str, tuple[type[SpoiledSplit], str]] = {
    "swapped-groups": (SwappedBranches, "bit-identical"),
    "swapped-inputs": (SwappedInputs, "bit-identical"),
    "lost-bias": (LostBias, ""),
    "doubled-output": (DoubledOutput, "bit-identical"),
    "dropped-stride": (DroppedStride, "shape"),
    "lost-gradient": (LostGradient, "gradient"),
    "frozen-branch": (FrozenBranch, ""),
    "one-ulp": (OneUlp, ""),
    "wrong-statistics": (WrongStatistics, ""),
    "wrong-momentum": (WrongMomentum, ""),
    "not-a-number": (NotANumber, ""),
}


def strided() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(5, 6, 1), nn.Conv2d(6, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU()
    )
    zoo.give_statistics(model)
    return model.eval()


X = torch.randn(2, 5, 11, 7)


def test_the_right_split_passes() -> None:
    check_pass(SplitGroupedConv(), strided(), (X,), sites=1)


@pytest.mark.parametrize(("wrong", "reason"), CAUGHT.values(), ids=CAUGHT)
def test_a_wrong_rewrite_is_caught_and_its_site_named(
    wrong: type[SpoiledSplit], reason: str
) -> None:
    with pytest.raises(
        MismatchError, match=f"^1 does not compute what it did: .*{reason}"
    ) as caught:
        groupfx.rewrite(strided(), (X,), passes=[wrong()])
    (site,) = caught.value.report.sites
    assert site.verdict is not None
    assert not site.verdict.ok


@pytest.mark.parametrize("wrong", [SwappedBranches, DoubledOutput, OneUlp])
def test_a_wrong_rewrite_is_caught_in_a_network_that_is_blind(wrong: type[SpoiledSplit]) -> None:
    case = zoo.CASES["resnext-blind"]
    with pytest.raises(MismatchError, match="does not compute what it did") as caught:
        groupfx.rewrite(case.build(), case.inputs(), passes=[wrong()])
    report = caught.value.report
    assert report.model.ok, "the network was meant to hide the mistake"
    assert [site.observable for site in report.sites] == [False, False]
    assert not any(site.verdict.ok for site in report.sites)


class ChangesTheModel(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        reference = site.fragment.reference
        with torch.no_grad():
            reference.get_parameter("0.weight").mul_(1)
            reference.get_parameter("0.weight")[0] += 1
        return made


def test_a_pass_that_changes_the_model_it_was_given_is_caught() -> None:
    with pytest.raises(MismatchError, match=r"must keep was changed: 0\.weight: values: "):
        check_pass(ChangesTheModel(), strided(), (X,), sites=1)


class LeavesAnOrphan(SpoiledSplit):
    def spoil(self, site: Site, made: Rewritten) -> Rewritten:
        site.root.add_module("orphan", nn.Conv2d(1, 1, 1))
        return made


def test_a_module_that_nothing_calls_is_caught() -> None:
    with pytest.raises(MismatchError, match="must keep was changed: orphan: module"):
        check_pass(LeavesAnOrphan(), strided(), (X,), sites=1)


def test_a_wrong_number_of_sites_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"sites rewritten \(1\): 1, expected 2"):
        check_pass(SplitGroupedConv(), strided(), (X,), sites=2)


class NeverDone(SplitGroupedConv):
    """Splits nothing and says that it did: a second run would do it again."""

    def rewrite(self, site: Site, description: object) -> Rewritten:
        module = site.graph.call_module(str(site.call.node.target), (site.call.input,))
        return Rewritten(module, site.call.node, "the same", 1)


def test_a_pass_that_finds_its_own_work_again_is_caught() -> None:
    with pytest.raises(AssertionError, match="sites that a second run rewrote: 1, expected 0"):
        check_pass(NeverDone(), strided(), (X,), sites=1)


def test_a_pass_that_raises_is_a_bug_and_says_which() -> None:
    class Raises(SplitGroupedConv):
        def rewrite(self, site: Site, description: object) -> Rewritten:
            raise KeyError("oops")

    with pytest.raises(groupfx.errors.InternalError, match=r"raises failed at 1 .*bug of the pass"):
        groupfx.rewrite(strided(), (X,), passes=[Raises()])


def test_a_graph_out_of_order_is_a_bug_and_says_which() -> None:
    class OutOfOrder(SpoiledSplit):
        def spoil(self, site: Site, made: Rewritten) -> Rewritten:
            first: fx.Node = next(iter(site.graph.nodes))
            first.prepend(made.output)
            return made

    with pytest.raises(groupfx.errors.InternalError, match="out-of-order left a graph"):
        groupfx.rewrite(strided(), (X,), passes=[OutOfOrder()])


def test_outputs_of_the_controls_really_differ() -> None:
    """The controls that claim to change the output do: their models give something else."""
    model = strided()
    expected: Tensor = model(X)
    for wrong in (SwappedBranches, SwappedInputs, DoubledOutput, LostBias, WrongStatistics):
        spoiled = groupfx.rewrite(strided(), (X,), passes=[wrong()], verify=False).model
        assert not torch.allclose(spoiled(X), expected, atol=1e-4), wrong.__name__
