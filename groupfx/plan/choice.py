"""The form that a cost model says is fastest, never one it calls slower than what is there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

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


def choose(
    structure: BlockStructure,
    *works: Work,
    machine: Machine | None = None,
    around: Around | None = None,
) -> Choice:
    """The form of learned groups that is expected to be fastest in ONNX Runtime.

    Dense, the mask folded into the weight, is taken unless another form saves a share that the
    model can be trusted for: in each of `works`, which differ in their batch. The times of the
    choice are those of the first of them. Where layers `around` the site can bring its channels in
    order, that is weighed as well.
    """
    dense = _prices(structure, works, machine)
    # As if the other layers shrank as much as this one.
    share = structure.exact_macs / structure.dense_macs
    smaller = [replace(price, share=share) for price in dense]
    found = dict(each for price in smaller for each in recipes(structure, price))
    candidates = [_candidate(structure, *each, smaller) for each in found.items()]
    candidates += _absorbed(structure, smaller, around)
    return _best(_candidate(structure, "dense", recipe_plan("dense", structure), dense), candidates)


def choose_groups(
    structure: BlockStructure,
    *works: Work,
    machine: Machine | None = None,
    around: Around | None = None,
) -> Choice:
    """The form of groups that an author wrote, which stay as they are unless another saves enough.

    They are merged into fewer, or one, with zeros between them: more products, in the blocked
    layout. Where layers `around` the site take channels of zeros along, numbers of groups are
    merged that have no such divisor.
    """
    prices = _prices(structure, works, machine)
    block = prices[0].block
    merged = [f"merge {by}" for by in merge_counts(structure, block)] if block else []
    found = ((recipe, recipe_plan(recipe, structure)) for recipe in (*merged, "dense"))
    candidates = [_candidate(structure, *each, prices) for each in found]
    candidates += _absorbed(structure, prices, around) if block else []
    there = recipe_plan("grouped", structure)
    return _best(_candidate(structure, "grouped", there, prices), candidates)


def _prices(
    structure: BlockStructure, works: Sequence[Work], machine: Machine | None
) -> list[OnnxRuntime]:
    channels, own = structure.in_channels, machine or Machine()
    return [OnnxRuntime(work, own, read_channels=channels) for work in works]


def choose_eager(structure: BlockStructure, work: Work) -> Choice:
    """The form of learned groups that is expected to be fastest in eager PyTorch.

    That is one of `groupfx.plan.forms`; dense, the mask folded into the weight, where no other
    saves enough.
    """
    plain = (form for form in FORMS if form != "grouped" or structure.equal)
    dense, *others = (
        _candidate(structure, form, recipe_plan(form, structure), [Eager(work)])
        for form in ("dense", *plain)
    )
    least = _LEAST_POINTWISE_SAVING if work.taps == 1 else _LEAST_EAGER_SAVING
    return _best(dense, others, least)


class Price(Protocol):
    """What choosing asks of a cost model."""

    def site(self, plan: FormPlan, in_channels: int) -> float:
        """Microseconds of a site that reads `in_channels`, in the form of `plan`."""

    def products(self, plan: FormPlan) -> float:
        """Microseconds of its convolutions alone."""


@dataclass(frozen=True)
class _Candidate:
    """Microseconds of a form, and of its convolutions alone, for each price."""

    recipe: str
    plan: FormPlan
    times: tuple[float, ...]
    products: tuple[float, ...]


def _candidate(
    structure: BlockStructure, recipe: str, plan: FormPlan, prices: Sequence[Price]
) -> _Candidate:
    times = tuple(price.site(plan, structure.in_channels) for price in prices)
    return _Candidate(recipe, plan, times, tuple(price.products(plan) for price in prices))


def _absorbed(
    structure: BlockStructure, prices: Sequence[OnnxRuntime], around: Around | None
) -> Iterator[_Candidate]:
    """What the layers around make possible, in the blocked layout and, without padding, in the
    plain one.
    """
    if around is None:
        return
    for width in dict.fromkeys((prices[0].block or 1, 1)):
        for absorbed in absorbed_bins(structure, width):
            plan = absorbed.layout(structure).in_order(None)
            times = tuple(around.cost(price, structure, absorbed) for price in prices)
            products = tuple(price.products(plan) for price in prices)
            yield _Candidate(str(absorbed), absorbed.plan(structure), times, products)


def _best(
    there: _Candidate, candidates: Iterable[_Candidate], least: float = _LEAST_SAVING
) -> Choice:
    """What takes least, if that saves enough of what is there, by each of the prices."""
    best, ratio = there, 1.0
    for candidate in candidates:
        both = list(zip(candidate.times, there.times, strict=True))
        pay = (
            _pays(new, old, new - products, least)
            for (new, old), products in zip(both, candidate.products, strict=True)
        )
        found = math.prod(new / old for new, old in both)
        if found < ratio and all(pay):
            best, ratio = candidate, found
    return Choice(best.recipe, best.plan, best.times[0], there.times[0])


def _pays(new: float, old: float, moved: float, least: float) -> bool:
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
