"""The form that a cost model says is fastest, never one it calls slower than what is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .absorbed import Absorbed
from .around import Around, absorbed_bins
from .blocks import BlockStructure
from .cost import OnnxRuntime, Work
from .eager import Eager
from .forms import FORMS, FormPlan
from .machine import Machine
from .packing import pack_bins
from .recipes import merge_counts, recipe_plan

# What a form must save to be taken: the model is right to about a tenth, and to a microsecond. What
# is copied for it can take twice as long, by what else uses the memory.
_LEAST_SAVING = 0.07
_LEAST_MICROSECONDS = 1.5
_OF_MOVES = 0.3
# That of eager PyTorch only to a factor of 1.5, or for 1x1 kernels of 2: a MobileNetV2 that it
# expected at 0.61 of masked dense took 0.98.
_LEAST_EAGER_SAVING, _LEAST_POINTWISE_SAVING = 0.35, 0.5


@dataclass(frozen=True)
class Choice:
    """A form, what it is expected to take, and what is there takes, both in microseconds.

    `recipe` says the same as `plan`, see `groupfx.plan.recipes`.
    """

    recipe: str
    plan: FormPlan
    time: float
    untouched: float

    @property
    def ratio(self) -> float:
        """Expected time by that of what is there."""
        return self.time / self.untouched


def learned_recipes(
    structure: BlockStructure, prices: Sequence[OnnxRuntime]
) -> Mapping[str, FormPlan]:
    """Every recipe but dense that is worth weighing for learned groups, by one of the prices."""
    return dict(each for price in prices for each in recipes(structure, price))


def group_recipes(structure: BlockStructure, block: int) -> Mapping[str, FormPlan]:
    """Those worth weighing for groups that an author wrote, but for what they are."""
    merged = [f"merge {by}" for by in merge_counts(structure, block)] if block else []
    return {recipe: recipe_plan(recipe, structure) for recipe in (*merged, "dense")}


def shrunk(structure: BlockStructure, prices: Sequence[OnnxRuntime]) -> list[OnnxRuntime]:
    """As if all weights of the model shrank as much as those of this site."""
    share = structure.exact_macs / structure.dense_macs
    return [replace(price, share=share) for price in prices]


def prices(
    structure: BlockStructure, works: Sequence[Work], machine: Machine | None
) -> list[OnnxRuntime]:
    """Of a site in each of its works."""
    channels, own = structure.in_channels, machine or Machine()
    return [OnnxRuntime(work, own, read_channels=channels) for work in works]


def choose_eager(structure: BlockStructure, work: Work) -> Choice:
    """The form of learned groups that is expected to be fastest in eager PyTorch.

    That is one of `groupfx.plan.forms`; dense, the mask folded into the weight, where no other
    saves enough.
    """
    price, channels = Eager(work), structure.in_channels
    names = ("dense", *(form for form in FORMS if form != "grouped" or structure.equal))
    plans = {form: recipe_plan(form, structure) for form in names}
    times = {form: price.site(plan, channels) for form, plan in plans.items()}
    there = times["dense"]
    least = _LEAST_POINTWISE_SAVING if work.taps == 1 else _LEAST_EAGER_SAVING
    sure = [
        form
        for form, plan in plans.items()
        if form == "dense" or pays(times[form], there, times[form] - price.products(plan), least)
    ]
    best = min(sure, key=times.__getitem__)
    return Choice(best, plans[best], times[best], there)


def absorbable(structure: BlockStructure, block: int, around: Around | None) -> Iterator[Absorbed]:
    """Bins whose channels the layers around are to bring in order; none where they cannot."""
    if around is None:
        return
    for width in dict.fromkeys((block or 1, 1)):
        found = absorbed_bins(structure, width)
        yield from found
        if around.outputs is None and width == block:
            yield from (replace(absorbed, by_product=True) for absorbed in found)


def pays(new: float, old: float, moved: float, least: float = _LEAST_SAVING) -> bool:
    """Whether a site of `new` microseconds, with what is `moved`, is surely faster than `old`."""
    return old - new >= max(least * old, _LEAST_MICROSECONDS, _OF_MOVES * moved)


def expectation(choices: Sequence[Choice]) -> str:
    """What to expect of learned groups, such as `expected 0.93 x the time of masked dense; 9 sites
    dense, 8 in 2-3 bins`.
    """
    time, untouched = (sum(getattr(c, k) for c in choices) for k in ("time", "untouched"))
    said = forms_text([choice.plan for choice in choices])
    return f"expected {time / untouched:.2f} x the time of masked dense; {said}"


def forms_text(forms: Collection[FormPlan]) -> str:
    """How many are dense, and in how many bins the others are: `9 sites dense, 8 in 2-3 bins`."""
    bins = [sum(c.groups for c in f.convs if not c.added) for f in forms if f.form != "dense"]
    dense, parts = len(forms) - len(bins), []
    if dense:
        parts.append(f"{sites_text(dense)} dense")
    if bins:
        span = f"{min(bins)}-{max(bins)}" if min(bins) < max(bins) else str(max(bins))
        number = str(len(bins)) if dense else sites_text(len(bins))
        parts.append(f"{number} in {span} {'bin' if max(bins) == 1 else 'bins'}")
    return ", ".join(parts)


def sites_text(number: int) -> str:
    """`1 site`, `2 sites`."""
    return "1 site" if number == 1 else f"{number} sites"


def recipes(structure: BlockStructure, price: OnnxRuntime) -> Iterator[tuple[str, FormPlan]]:
    """Every recipe but dense that is worth weighing, and its plan."""
    for form in FORMS:
        if form not in ("dense", "grouped") or (form == "grouped" and structure.equal):
            yield form, recipe_plan(form, structure)
    for by in merge_counts(structure, price.block):
        yield f"merge {by}", recipe_plan(f"merge {by}", structure)
    packed = pack_bins(structure, price)
    if packed is not None:
        for binned in (packed, replace(packed, at_once=True)):
            yield str(binned), binned.plan(structure)
