"""The sites of a torch model that can be executed in more than one way: as passes write them.

A layer with learned groups is frozen in one of the forms; dense, its mask folded into the weight,
is what the others are compared with. Groups that an author wrote stay, or are split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import fx, nn

from ..convs.names import unnumbered
from ..convs.norms import is_batchnorm
from ..errors import UsageError
from ..passes import FreezeLearnedGroups, SplitGroupedConv
from ..plan.blocks import BlockStructure
from ..plan.cost import Work
from ..plan.forms import PlainForm, plan
from ..plan.machine import Machine
from ..plan.site_plan import site_of
from ..rewriting import Pass, Pipeline, Site, Skip, Store, UnreadableSite, find_sites
from ..rewriting.block_layers import Blocks
from ..running.copies import copied
from ..running.inputs import ExampleInputs
from ..tracing import open_model
from .backends import Profile
from .backends.torch_eager import device_name, on_host
from .processor import cpu_name
from .profile import overhead
from .sites import TunedSite, signature
from .variants import SiteChoices

_FORMS: tuple[PlainForm, ...] = ("padded", "bucketed", "split")
"""Of learned groups, besides dense: those first that pay most often."""
# As many branches are never faster than one convolution.
_MOST_BRANCHES = 16


@dataclass(frozen=True)
class ModuleSubject:
    """A torch model in eval mode, which shares its parameters with the caller's."""

    model: nn.Module
    feeds: ExampleInputs
    sites: tuple[TunedSite, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: ExampleInputs) -> tuple[ModuleSubject, tuple[str, ...]]:
        """And the names of sites whose sizes nobody knows. The caller's model is not changed."""
        own = copied(model, share=True).eval()
        dtype = str(next(inputs.tensors()).dtype).removeprefix("torch.")
        found: dict[str, TunedSite] = {}
        unknown: list[str] = []
        for site, structure in _sites(own, inputs):
            name = unnumbered(site.name)
            if name in found:
                # The second call of a layer takes the form of the first.
                continue
            if site.shapes is None or 0 in (*site.shapes.input, *site.shapes.output):
                unknown.append(name)
            else:
                found[name] = _tuned_site(site, name, structure, dtype)
        return cls(own, inputs, tuple(found.values())), tuple(unknown)

    @property
    def host(self) -> bool:
        return on_host(self.feeds)

    @property
    def processor(self) -> str:
        return device_name(self.feeds) or cpu_name()

    def pipeline(self, recipes: Mapping[str, str]) -> Pipeline:
        """The passes that execute sites by these recipes, and the other ones as they are."""
        by_recipe: dict[tuple[str, str], list[str]] = {}
        for site in self.sites:
            recipe = recipes.get(site.name, site.untouched)
            by_recipe.setdefault((site.untouched, recipe), []).append(site.name)
        passes: list[Pass[object]] = []
        for (untouched, recipe), names in by_recipe.items():
            if untouched == "dense":
                form = cast(PlainForm, recipe)
                passes.append(FreezeLearnedGroups(form=form, only=tuple(names)))  # type: ignore[arg-type]
            elif recipe == "split":
                passes.append(SplitGroupedConv(only=tuple(names)))  # type: ignore[arg-type]
        return Pipeline(passes)

    def made(self, recipes: Mapping[str, str], *, alone: bool = False) -> nn.Module:
        return self.pipeline(recipes)(self.model, self.feeds, verify=False).model.eval()

    def fits(self, site: TunedSite, recipe: str) -> None:
        known = ("dense", *_FORMS) if site.untouched == "dense" else ("grouped", "split")
        if recipe not in known:
            raise UsageError(f"{recipe!r} is no way to execute it in torch: {' or '.join(known)}")

    def choices(self, machine: Callable[[], Machine]) -> Sequence[SiteChoices]:
        """Everything: there is no model of what they cost."""
        return [SiteChoices(s, _recipes(s), s.untouched) for s in self.sites]

    def times(self, made: nn.Module, profile: Profile) -> Mapping[str, float]:
        assert isinstance(made, fx.GraphModule)
        less, owned = overhead(profile), _owned(made, {site.name for site in self.sites})
        times: dict[str, float] = {}
        for node in profile.nodes:
            owner = owned.get(node.name)
            if owner is not None:
                times[owner] = times.get(owner, 0.0) + max(0.0, node.time - less)
        return times


def _sites(model: nn.Module, inputs: ExampleInputs) -> Iterator[tuple[Site, BlockStructure]]:
    """Those that the passes take, and their blocks."""
    program = open_model(model, inputs, read_only=True)
    store = Store(program, {})
    for pass_ in (FreezeLearnedGroups(), SplitGroupedConv()):
        for site in find_sites(program, store, pass_.calls):
            if isinstance(site, UnreadableSite) or not pass_.wants(site):
                continue
            found = pass_.match(site)
            if isinstance(found, Blocks) and found.structure.blocks:
                yield site, found.structure
            elif not isinstance(found, (Skip, Blocks)):
                spec = site.spec
                yield (
                    site,
                    BlockStructure.of_groups(spec.in_channels, spec.out_channels, spec.groups),
                )


def _tuned_site(site: Site, name: str, structure: BlockStructure, dtype: str) -> TunedSite:
    assert site.shapes is not None
    spec, read, written = site.spec, site.shapes.input, site.shapes.output
    work = Work(
        math.prod(spec.kernel_size),
        max(math.prod(written[2:]), 1),
        max(math.prod(read[2:]), 1),
        batch=written[0],
    )
    told = signature(spec, dtype, structure, read, written)
    untouched = "grouped" if spec.groups > 1 else "dense"
    return TunedSite(name, structure, work, f"{told}, torch", untouched)


def _recipes(site: TunedSite) -> tuple[str, ...]:
    """What can be tried besides the untouched one; the same thing once."""
    number = len(site.structure.blocks)
    if site.untouched == "grouped":
        return ("split",) if number <= _MOST_BRANCHES else ()
    plans = {plan(site.structure, "dense"): "dense"}
    for form in _FORMS:
        if form != "split" or number <= _MOST_BRANCHES:
            plans.setdefault(replace(plan(site.structure, form), form="dense"), form)
    return tuple(form for form in plans.values() if form != "dense")


def _owned(made: fx.GraphModule, names: set[str]) -> dict[str, str]:
    """Whose each node is: what a rewrite put there, and the BatchNorm that some forms take in."""
    found: dict[str, str] = {}
    for node in made.graph.nodes:
        site = site_of(node.meta)
        owner = unnumbered(str(node.target) if site is None else site)
        if owner in names:
            found[node.name] = owner
        elif is_batchnorm(node, made) and node.all_input_nodes[0].name in found:
            found[node.name] = found[node.all_input_nodes[0].name]
    return found
