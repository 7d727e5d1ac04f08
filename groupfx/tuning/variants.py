"""About ten ways to execute the whole model, each with another recipe at every site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..plan.binned import Way
from ..plan.choice import absorbable, recipes
from ..plan.cost import OnnxRuntime
from ..plan.forms import FormPlan
from ..plan.machine import Machine
from ..plan.packing import pack_bins
from ..plan.recipes import recipe_plan
from .sites import TunedSite

MOST_VARIANTS = 10
_MOST_ABSORBED = 3
# The cost model is right to about a tenth; what it calls so much slower is not tried.
_HOPELESS = 1.5
_WAYS: tuple[tuple[Way, ...], ...] = (
    ("merged",),
    ("merged", "accumulated"),
    ("merged", "direct"),
    ("merged", "odd"),
)
# As if nodes and copies cost more, and bins were to be few; and as if they cost less.
_LEANINGS = (3.0, 0.4)


@dataclass(frozen=True)
class SiteChoices:
    """What is tried at a site: recipes from the one that is expected to be fastest on.

    `expected` is the recipe that the cost model takes, beside those of the other sites.
    """

    site: TunedSite
    recipes: tuple[str, ...]
    expected: str


def site_choices(site: TunedSite, machine: Machine, expected: str) -> SiteChoices:
    """The recipes that are worth trying at `site`."""
    channels = site.structure.in_channels
    price = site.price(machine)
    untouched = recipe_plan(site.untouched, site.structure)
    base = price.site(untouched, channels)
    plans: dict[FormPlan, str] = {untouched: site.untouched}
    for recipe, plan in _candidates(site, machine):
        plans.setdefault(plan, recipe)
    times = {
        recipe: price.site(plan, channels)
        for plan, recipe in plans.items()
        if recipe != site.untouched
    }
    priced = sorted((time, recipe) for recipe, time in (times | _absorbed(site, price)).items())
    kept = tuple(recipe for time, recipe in priced if time <= _HOPELESS * base)
    return SiteChoices(site, kept, expected)


def _absorbed(site: TunedSite, price: OnnxRuntime) -> dict[str, float]:
    """The best ways to have its channels brought in order, and what each is expected to take."""
    if site.around is None:
        return {}
    structure, learned = site.structure, site.untouched == "dense"
    share = structure.exact_macs / structure.dense_macs if learned else 1.0
    smaller = replace(price, share=share)
    found = {
        str(absorbed): site.around.cost(smaller, structure, absorbed)
        for absorbed in absorbable(structure, price.block, site.around)
    }
    return dict(sorted(found.items(), key=lambda item: item[1])[:_MOST_ABSORBED])


def _candidates(site: TunedSite, machine: Machine) -> Iterator[tuple[str, FormPlan]]:
    structure = site.structure
    price = site.price(machine)
    smaller = replace(price, share=structure.exact_macs / structure.dense_macs)
    yield from recipes(structure, smaller)
    if site.untouched == "grouped":
        # One group of all is a convolution that the runtime knows best.
        yield "dense", recipe_plan("dense", structure)
        return
    for ways in _WAYS:
        binned = pack_bins(structure, smaller, ways)
        if binned is not None:
            yield str(binned), binned.plan(structure)
    for factor in _LEANINGS:
        other = replace(
            machine,
            node=machine.node * factor,
            move=machine.move * factor,
            reorder=machine.reorder * factor,
        )
        binned = pack_bins(structure, replace(smaller, machine=other))
        if binned is not None:
            yield str(binned), binned.plan(structure)


def expected_recipes(choices: Sequence[SiteChoices]) -> Mapping[str, str]:
    """What the cost model takes, where that is not what is there."""
    return {c.site.name: c.expected for c in choices if c.expected != c.site.untouched}


def model_variants(choices: Sequence[SiteChoices]) -> tuple[Mapping[str, str], ...]:
    """Recipes by sites for each variant: as it is, as expected, then down the lists of the sites.

    A site whose list is at its end stays untouched, as a second look at that.
    """
    found: list[Mapping[str, str]] = [{}, expected_recipes(choices)]
    longest = max((len(choice.recipes) for choice in choices), default=0)
    found += [
        {c.site.name: c.recipes[place] for c in choices if place < len(c.recipes)}
        for place in range(longest)
    ]
    unique = [variant for at, variant in enumerate(found) if variant not in found[:at]]
    return tuple(unique[:MOST_VARIANTS])
