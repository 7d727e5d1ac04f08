"""Negative controls: what a rewrite must keep besides what is outside its sites, and in place.

And what it need not keep: a pass of a user's own may make its modules as it likes.
"""

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import groupfx
from groupfx.errors import MismatchError
from groupfx.nn import ChannelShuffle
from groupfx.passes import DiscoverGroups, FreezeLearnedGroups, SplitGroupedConv
from groupfx.plan.channels import Slice
from groupfx.rewriting import Pass, Rewritten, Site
from groupfx.state import Rows
from groupfx.tracing import ExportedModule, Program
from tests.verify import wrong_passes as w
from tests.verify.test_wrong_rewrites_outside import MODULES, TENSORS
from tests.verify.wrong_passes import X, field, module

X8 = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(2))


def refused(spoil: w.Spoil, named: str, *, training: bool = False, **options: Any) -> None:
    with pytest.raises(MismatchError, match=f"must keep was changed: .*(?:{named})") as found:
        groupfx.rewrite(w.build(training=training), (X,), passes=[w.wrong(spoil)], **options)
    assert all(site.verdict is None or site.verdict.ok for site in found.value.report.sites)


# Modes: both sites are run in both modes, whatever their flags say.


def each(paths: str, change: Callable[[nn.Module], object]) -> w.Spoil:
    def spoil(program: Program) -> None:
        for path in paths.split():
            change(program.result.get_submodule(path))

    return spoil


MODES = {
    "norms-left-in-eval": ("a_norm.0 a_norm.1", True, r"a_norm\.0: mode .*train mode -> eval"),
    "one-norm-left-in-eval": ("a_norm.1", True, r"a_norm\.1: mode .*train mode -> eval"),
    "convs-left-in-eval": ("a.0 a.1", True, r"a\.0: mode .*train mode -> eval"),
    "norms-left-in-train": ("a_norm.0 a_norm.1", False, r"a_norm\.0: mode .*eval mode -> train"),
}


@pytest.mark.parametrize(("paths", "training", "named"), MODES.values(), ids=MODES)
def test_a_branch_in_the_other_mode_is_named(paths: str, training: bool, named: str) -> None:
    model, spoil = w.build(training=training), each(paths, lambda part: part.train(not training))
    with pytest.raises(MismatchError) as found:
        groupfx.rewrite(model, (X,), passes=[w.wrong(spoil)])
    assert re.search(named, " ".join(map(str, found.value.report.changes)))


def test_each_branch_has_the_mode_of_what_it_came_from() -> None:
    """A frozen BatchNorm in a model that trains, as in fine-tuning: its branches are frozen too."""
    model = w.build(training=True)
    model.a_norm.eval()
    result = groupfx.rewrite(model, (X,), way="trace")
    assert [part.training for part in result.model.a_norm] == [False, False]
    assert [part.training for part in result.model.a] == [True, True]
    spoil = each("a_norm.0", lambda part: part.train())
    with pytest.raises(MismatchError, match=r"a_norm\.0.* mode"):
        groupfx.rewrite(model, (X,), passes=[w.wrong(spoil)], way="trace")


@pytest.mark.parametrize("way", ["trace", "modules"])
def test_the_mode_of_the_model_itself(way: str) -> None:
    spoil = module("", lambda root: setattr(root, "training", True))
    refused(spoil, "the model: training: False -> True", way=way)


def test_fields_that_a_swapped_convolution_had_are_kept() -> None:
    refused(field("a", groups=1), "a: groups: 2 -> 1", way="modules")
    refused(field("a", out_channels=9), "a: out_channels: 8 -> 9", way="modules")


def test_a_plain_field_of_the_users_own_class() -> None:
    """Only where modules are swapped does the user's class live on."""
    changes: dict[str, w.Spoil] = {
        "rate": module("", lambda root: root.options.update(rate=0.2)),
        "widths": module("", lambda root: root.options["widths"].append(7)),
        "gone": module("", lambda root: vars(root).pop("options")),
    }
    for spoil in changes.values():
        refused(spoil, "the model: options: ", way="modules")


# The map of the rewrite.


class WrongMap(w.SpoiledElsewhere):
    """The tensors are right, and a checkpoint of the original would load into other ones."""

    def rewrite(self, site: Site, description: Any) -> Rewritten:
        made = SplitGroupedConv.rewrite(self, site, description)
        site.store.entries["mid.bias"] = Rows("last.bias")
        return made


@pytest.mark.parametrize("way", ["trace", "modules", "export"])
def test_a_map_that_exchanges_what_was_left_alone(way: str) -> None:
    model = w.exported() if way == "export" else w.build()
    options = {} if way == "export" else {"way": way}
    with pytest.raises(
        MismatchError, match=r"mid\.bias: entry in the state_dict map: mid\.bias -> "
    ):
        groupfx.rewrite(model, (X,), passes=[WrongMap()], **options)


def two_blocks() -> nn.Module:
    """A dense convolution that is two, but for its zeros."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    with torch.no_grad():
        model[0].weight[:4, 4:] = 0
        model[0].weight[4:, :4] = 0
    return model


def test_the_map_of_what_is_picked_of_zeros() -> None:
    """There a site does not compare its stored tensors with the map."""

    class Flips(DiscoverGroups):
        def rewrite(self, site: Site, description: Any) -> Rewritten:
            made = super().rewrite(site, description)
            entry = site.store.entries["0.conv.weight"]
            first, *rest = entry.parts
            flipped = dataclasses.replace(first, rows=first.rows[::-1])
            site.store.entries["0.conv.weight"] = dataclasses.replace(entry, parts=(flipped, *rest))
            return made

    with pytest.raises(MismatchError, match=r"0\.conv\.weight: values: those of 0\.weight"):
        groupfx.rewrite(two_blocks(), (X8,), passes=[Flips()])


def test_flags_of_what_is_picked_of_zeros() -> None:
    """Nor does it compare their flags."""
    model = two_blocks()

    class Freezes(DiscoverGroups):
        def rewrite(self, site: Site, description: Any) -> Rewritten:
            made = super().rewrite(site, description)
            site.root.get_parameter("0.conv.weight").requires_grad_(False)
            return made

    assert groupfx.rewrite(model, (X8,), passes=[DiscoverGroups()]).report.sites
    with pytest.raises(
        MismatchError, match=r"0\.conv\.weight: requires_grad: True in 0\.weight -> F"
    ):
        groupfx.rewrite(model, (X8,), passes=[Freezes()])


# In place, both sides share tensors and leaves: what there was is noted before the passes run.

IN_PLACE = ("another-conv-times-3", "swapped-filters", "a-running-mean", "frozen", "a-new-module")
IN_PLACE_MODULES = ("another-eps", "another-rate-of-dropout", "the-other-mode", "a-hook")


@pytest.mark.parametrize("way", ["trace", "modules"])
@pytest.mark.parametrize("case", [*IN_PLACE, *IN_PLACE_MODULES])
def test_in_place(case: str, way: str) -> None:
    spoil, named = (TENSORS | MODULES)[case]
    refused(spoil, named.partition(":")[0], way=way, inplace=True)


@pytest.mark.parametrize("way", ["trace", "modules"])
def test_the_right_split_in_place_passes(way: str) -> None:
    report = groupfx.rewrite(w.build(), (X,), way=way, inplace=True).report
    assert report.changes == ()


def test_what_was_exported_in_place_refuses_train_mode_as_well() -> None:
    averaging = nn.Sequential(w.build(), nn.LazyBatchNorm2d(momentum=None))
    averaging(X)
    result = groupfx.rewrite(averaging, (X,), way="export", inplace=True)
    assert result.report.changes == ()
    assert isinstance(result.model, ExportedModule)
    with pytest.raises(NotImplementedError, match="knows no other"):
        result.model.train()


def test_what_was_exported_in_place_in_both_modes_has_both() -> None:
    model = w.build()
    result = groupfx.rewrite(model, (X,), way="export", inplace=True)
    assert result.report.changes == ()
    torch.manual_seed(1)
    expected = copy.deepcopy(model).train()(X)
    torch.manual_seed(1)
    torch.testing.assert_close(result.model.train()(X), expected)


# What a pass of a user's own may do.


@dataclasses.dataclass(frozen=True)
class MakesDense(Pass[int]):
    """One dense convolution for a grouped one, made anew; a slice more than it needs."""

    exact = False

    def match(self, site: Site) -> int:
        return site.spec.groups

    def rewrite(self, site: Site, description: int) -> Rewritten:
        spec, grouped = site.spec, site.module
        assert isinstance(grouped, nn.Conv2d)
        dense = nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel_size, padding=1)
        rows, columns = spec.out_channels // description, spec.in_channels // description
        weight = torch.zeros_like(dense.weight)
        for group in range(description):
            block = slice(group * rows, (group + 1) * rows)
            weight[block, group * columns : (group + 1) * columns] = grouped.weight[block].detach()
        dense.weight = nn.Parameter(weight)
        dense.bias = nn.Parameter(grouped.bias.detach().clone())
        home = f"{site.local_name}_dense"
        site.root.add_module(home, dense)
        site.channels(site.call.input, Slice(0, 1))
        call = site.graph.call_module(home, (site.call.input,))
        return Rewritten(call, site.call.node, "dense", 1)


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_may_make_its_modules_anew(training: bool) -> None:
    report = groupfx.rewrite(w.build(training=training), (X,), passes=[MakesDense()]).report
    assert report.ok
    assert report.changes == ()
    assert len(report.sites) == 2


def test_a_module_more_in_it_that_nothing_calls_is_named() -> None:
    """A rewrite that keeps one more copy of a weight than it says."""
    refused(module("", lambda m: m.add_module("a_copy", nn.Conv2d(8, 8, 1))), "a_copy: module")


def test_learned_groups_keep_the_rest_as_well() -> None:
    """The other pass, and a leaf that it did not make."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(6, 8, 1), groupfx.nn.Flgc2d(8, 8, 3, group_num=2), nn.BatchNorm2d(8), nn.ReLU()
    ).eval()
    model.append(ChannelShuffle(2))
    assert groupfx.rewrite(model, (X,)).report.changes == ()

    class WrongFreeze(FreezeLearnedGroups):
        def rewrite(self, site: Site, description: Any) -> Rewritten:
            made = super().rewrite(site, description)
            site.root.get_submodule("4").groups = 4
            return made

    with pytest.raises(MismatchError, match="must keep was changed: 4: groups: 2 -> 4"):
        groupfx.rewrite(model, (X,), passes=[WrongFreeze()])
