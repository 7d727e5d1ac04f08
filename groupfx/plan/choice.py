"""The form that a cost model says is fastest, never one it calls slower than what is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .blocks import BlockStructure
from .cost import OnnxRuntime, Work
from .forms import FORMS, FormPlan
from .machine import Machine
from .packing import pack_bins
from .recipes import merge_counts, recipe_plan

# What a form must save to be taken: the model is right to about a tenth, and to a microsecond.
_LEAST_SAVING = 0.07
_LEAST_MICROSECONDS = 1.5


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


def choose(structure: BlockStructure, work: Work, machine: Machine | None = None) -> Choice:
    """The form of learned groups that is expected to be fastest in ONNX Runtime.

    Dense, the mask folded into the weight, is taken unless another form saves a share that the
    model can be trusted for.
    """
    price = OnnxRuntime(work, machine or Machine())
    # As if the other layers shrank as much as this one.
    smaller = replace(price, share=structure.exact_macs / structure.dense_macs)
    return _best(structure, "dense", price, smaller, recipes(structure, smaller))


def choose_groups(structure: BlockStructure, work: Work, machine: Machine | None = None) -> Choice:
    """The form of groups that an author wrote, which stay as they are unless another saves enough.

    They are merged into fewer, or one, with zeros between them: more products, in the blocked
    layout.
    """
    price = OnnxRuntime(work, machine or Machine())
    merged = [f"merge {by}" for by in merge_counts(structure, price.block)] if price.block else []
    found = ((recipe, recipe_plan(recipe, structure)) for recipe in (*merged, "dense"))
    return _best(structure, "grouped", price, price, found)


def _best(
    structure: BlockStructure,
    untouched: str,
    price: OnnxRuntime,
    others: OnnxRuntime,
    candidates: Iterable[tuple[str, FormPlan]],
) -> Choice:
    """What takes least, if that saves enough of what `untouched` does."""
    channels = structure.in_channels
    there = recipe_plan(untouched, structure)
    time = price.site(there, channels)
    best = Choice(untouched, there, time, time)
    for recipe, plan in candidates:
        own = others.site(plan, channels)
        saved = time - own
        if saved < max(_LEAST_SAVING * time, _LEAST_MICROSECONDS):
            continue
        if own < best.time:
            best = Choice(recipe, plan, own, time)
    return best


def recipes(structure: BlockStructure, price: OnnxRuntime) -> Iterator[tuple[str, FormPlan]]:
    """Every recipe but dense that is worth weighing, and its plan."""
    for form in FORMS:
        if form not in ("dense", "grouped") or (form == "grouped" and structure.equal):
            yield form, recipe_plan(form, structure)
    for by in merge_counts(structure, price.block):
        yield f"merge {by}", recipe_plan(f"merge {by}", structure)
    packed = pack_bins(structure, price)
    if packed is not None:
        yield str(packed), packed.plan(structure)
